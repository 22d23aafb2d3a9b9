"""The first losses of every pocket recipe, made tiny, are those that were recorded.

``PYTHONPATH=. python tests/models/test_golden_losses.py`` records them again, after a change that is meant to move
them. Other processors round in another order: a hundredth is far more than that, and far less than what a changed
loss, rate or initialization makes. Codes that are drawn anew are drawn by the bits of vectors, so that such recipes
are held to their first loss alone.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
import torch

from models.recipes import CONCEPTS, TOKENIZERS
from models.tokenizers.config import QuantizerConfig
from models.train_tokenizer import train
from models.training.run_log import read_metrics

GOLDEN = Path(__file__).with_name("golden_losses.json")
RECIPES = {
    name: recipe for name, recipe in (TOKENIZERS | CONCEPTS).items() if name.endswith(("_pocket", "_clusters"))
}
STEPS = 4


def losses(name: str, out: Path) -> list[float]:
    """Of each step, all stages one after the other."""
    torch.set_num_threads(1)
    config = RECIPES[name]()
    scenes = config.data.startswith("scenes")

    def small(quantizer: QuantizerConfig | None) -> QuantizerConfig | None:
        if quantizer is None:
            return None
        features = "patches" if quantizer.features == "efficientnet_lite0" else quantizer.features
        return dataclasses.replace(quantizer, num_codes=16, features=features)

    def few(stage, first):
        changes = {"steps": STEPS if first else 2, "batch_size": 2, "quantizer": small(stage.quantizer)}
        if hasattr(stage.loss, "disc_start"):
            # without other networks, whose own tests there are
            loss = dataclasses.replace(stage.loss, disc_start=None, perceptual_weight=0.0)
            changes |= {"image_size": 32, "loss": loss}
        return dataclasses.replace(stage, **changes)

    config = dataclasses.replace(
        config,
        data="scenes:size=64,length=4" if scenes else config.data,
        quantizer=small(config.quantizer),
        stage=few(config.stage, True),
        then=tuple(few(stage, False) for stage in config.then),
        workers=0,
        log_every=1,
        val_every=1000,
        val_samples=1,
    )
    train(config, out=out, progress=False)
    return [line["loss"] for line in read_metrics(out)]


@pytest.mark.parametrize("name", RECIPES)
def test_losses_are_the_recorded_ones(name: str, tmp_path: Path) -> None:
    recorded, found = json.loads(GOLDEN.read_text(encoding="utf-8"))[name], losses(name, tmp_path / "run")
    assert len(found) == len(recorded)
    quantizer = RECIPES[name]().quantizer
    drawn = quantizer is not None and quantizer.codebook in ("online", "semantic")
    held = 1 if drawn else len(recorded)
    assert found[:held] == pytest.approx(recorded[:held], rel=0.01)


def record() -> None:
    found = {}
    for name in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            found[name] = losses(name, Path(folder) / "run")
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
