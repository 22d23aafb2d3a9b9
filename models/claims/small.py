"""The small trainings that claims are made of: pocket recipes with fewer channels, steps and samples.

A training of a tokenizer sees 200 batches of 1024 tokens at three times the rate of the recipes, which this few steps
need; that of a prior 300 batches of 16 samples. What a claim changes beside that is what it is about.
"""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from models.claims.claim import Codes, Prior, Train
from models.claims.rendered import PICTURES
from models.networks.patch import PatchConfig
from models.recipes import PRIORS, TOKENIZERS
from models.recipes.sgc import sgc_pocket
from models.tokenizers.config import QuantizerConfig, SemanticsConfig
from models.training.prior_run import PriorRun
from models.training.tokenizer_run import TokenizerRun

STEPS = 200
PICTURE_STEPS = 600
SCENES = "scenes:length=600,size=32x32"  # 60 others are held out
CLIPS = "scenes:length=256,size=32x32,frames=4"
_PRIOR_STEPS = 200
PICTURE_STEPS = 600
_SAMPLES = 2048  # crops whose codes a prior sees; an eighth as many are held out


def patch(recipe: str, *, steps: int = STEPS, **quantizer: Any) -> TokenizerRun:
    """A ``patch_*`` recipe at 128 channels on crops of 64 pixels, 16 a step; with other options of its quantizer."""
    run = TOKENIZERS[recipe]()
    optimizer = replace(run.stage.optimizer, lr=3e-3, warmup_steps=20)
    stage = replace(run.stage, steps=steps, batch_size=16, optimizer=optimizer)
    return replace(
        run,
        network=PatchConfig(hidden=128),
        quantizer=replace(run.quantizer, **quantizer),
        stage=stage,
        **_looks(steps),
    )


def scene(quantizer: QuantizerConfig, semantics: SemanticsConfig | None = None, *, recipe: str) -> TokenizerRun:
    """The same network at 4 x 4 pixels a token on street scenes of 32 pixels: 8 x 8 tokens, 256 codes."""
    run = patch("patch_fc")
    stage = replace(run.stage, image_size=32, flip=True)
    return replace(
        run,
        recipe=recipe,
        network=PatchConfig(hidden=128, patch_size=4),
        quantizer=replace(quantizer, num_codes=256, code_dim=32),
        semantics=semantics,
        stage=stage,
        data=SCENES,
    )


def on_pictures(run: TokenizerRun) -> TokenizerRun:
    """The same on tiles of photographs, the number of the photograph the class: 8 x 8 pixels a token, 600 steps."""
    stage = replace(run.stage, steps=PICTURE_STEPS, image_size=64)
    semantics = None if run.semantics is None else replace(run.semantics, num_classes=10)
    return replace(
        run,
        network=PatchConfig(hidden=128),
        semantics=semantics,
        stage=stage,
        data=PICTURES,
        **_looks(PICTURE_STEPS),
    )


def sgc_scene(**semantics: Any) -> TokenizerRun:
    """SGC-VQGAN as ``sgc_pocket`` has it, on that network, with other options of its semantics."""
    run = sgc_pocket()
    assert run.semantics is not None
    return scene(run.quantizer, replace(run.semantics, **semantics), recipe="sgc_pocket")


def prior(recipe: str, codes: Codes, *, steps: int = _PRIOR_STEPS, **changes: Any) -> Prior:
    """A pocket prior of two layers of 96 on codes or latents."""
    run = PRIORS[recipe]()
    stage = replace(run.stage, steps=steps, batch_size=16)
    small = replace(run, prior=_shrunk(run.prior), stage=stage, val_samples=256, **_looks(steps))
    return Prior(config=replace(small, **changes), codes=codes)


def codes(tokenizer: TokenizerRun, **options: Any) -> Codes:
    """Codes of crops of the tokenizer's data."""
    return Codes(tokenizer=Train(config=tokenizer), **{"samples": _SAMPLES, **options})


def _shrunk(config: Any) -> Any:
    network = config.network
    known = {field.name for field in dataclasses.fields(network)}
    changes = {"layers": 2, "width": 96} if "width" in known else {}
    return replace(config, network=replace(network, **changes))


def _looks(steps: int) -> dict[str, int]:
    """Short trainings are looked at and saved at their end."""
    return {"log_every": 50, "val_every": steps, "checkpoint_every": steps}


__all__ = ["CLIPS", "SCENES", "STEPS", "PriorRun", "codes", "on_pictures", "patch", "prior", "scene", "sgc_scene"]
