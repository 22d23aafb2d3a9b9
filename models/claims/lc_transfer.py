"""VQGAN-LC: frozen codes of one data set serve another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.claims.claim import Chart, Check, Claim, Metric, Train, Trial, Variant
from models.claims.measures import scenes
from models.claims.small import patch, scene
from models.recipes import TOKENIZERS
from models.training.tokenizer_run import TokenizerRun

_FEATURES: dict[str, Any] = {"features": "efficientnet_lite0", "features_layer": "expand5", "features_size": 64}


def street(**quantizer: Any) -> TokenizerRun:
    """VQGAN-LC on street scenes, 256 frozen codes of features of them."""
    return scene(replace(TOKENIZERS["patch_lc"]().quantizer, **{**_FEATURES, **quantizer}), recipe="patch_lc")


def _photographs() -> Train:
    """One step of training: what is wanted of it is its codebook."""
    run = patch("patch_lc", steps=1, **_FEATURES, num_codes=256, code_dim=32)
    return Train(config=replace(run, stage=replace(run.stage, image_size=32)))


LC_TRANSFER = Claim(
    name="lc-transfer",
    title="A frozen codebook serves another data set",
    system="VQGAN-LC",
    place="transfer table",
    says="A codebook of features of one data set, frozen, is used almost as fully on another one as a codebook of "
    "its own, and reconstructs nearly as well.",
    published="used: ImageNet's codes on FFHQ 99.4 %, FFHQ's on ImageNet 99.9 %; rFID 4.08 (own 3.81), 2.91 (own "
    "2.62)",
    pocket=Trial(
        form="Tokenizers of street scenes of 32 pixels with 256 frozen codes: centres of EfficientNet's features of "
        "the scenes themselves, of photographs, and random numbers; 60 scenes held out.",
        variants=(
            Variant(name="own", run=Train(config=street())),
            Variant(name="from photographs", run=Train(config=street(), features_of=_photographs())),
            Variant(name="random", run=Train(config=street(features="random", init="published"))),
        ),
        measure=scenes,
        metrics=(
            Metric(key="usage", title="codes used", unit="%", digits=1),
            Metric(key="psnr", title="PSNR", unit="dB"),
        ),
        checks=(
            Check(
                says="codes used: from photographs against own, 10 points allowed",
                high=("from photographs", "usage"),
                low=("own", "usage"),
                margin=-10.0,
            ),
            Check(
                says="codes used: from photographs above random, points",
                high=("from photographs", "usage"),
                low=("random", "usage"),
                margin=20.0,
            ),
            Check(
                says="PSNR: from photographs against own, 0.5 dB allowed",
                high=("from photographs", "psnr"),
                low=("own", "psnr"),
                margin=-0.5,
            ),
        ),
        chart=Chart(y="usage"),
        minutes=2,
    ),
)
