"""VQGAN-LC: a classifier reads more from codes that are features."""

from __future__ import annotations

import json
from dataclasses import replace

from models.claims.claim import Chart, Check, Claim, Codes, Made, Metric, Prior, Train, Trial, Variant
from models.claims.lc_transfer import street
from models.claims.small import scene
from models.networks.vit import ViTConfig
from models.recipes import CLASSIFIERS, TOKENIZERS
from models.training.tokenizer_run import TokenizerRun

_STEPS = 300
_DATA = "classes:scenes:length=2000,size=32x32"  # 200 others are held out


def _classified(tokenizer: TokenizerRun) -> Prior:
    run = CLASSIFIERS["token_classifier_pocket"]()
    network = ViTConfig(grid=8, layers=2, width=96, heads=4)
    small = replace(run, network=network, stage=replace(run.stage, steps=_STEPS), log_every=50, val_every=_STEPS)
    return Prior(
        config=replace(small, checkpoint_every=_STEPS), codes=Codes(tokenizer=Train(config=tokenizer), data=_DATA)
    )


def _plain(recipe: str) -> TokenizerRun:
    return scene(TOKENIZERS[recipe]().quantizer, recipe=recipe)


def accuracy(made: Made) -> dict[str, float]:
    """Held-out samples told rightly, in per cent."""
    scores = json.loads((made.run / "scores.json").read_text(encoding="utf-8"))
    return {"top1": 100 * scores["top1"], "most_frequent": 100 * scores["most_frequent"]}


TOKEN_CLASSIFIER = Claim(
    name="token-classifier",
    title="A classifier reads more from codes that are features",
    system="VQGAN-LC",
    place="classification of token maps",
    says="A vision transformer on token maps tells the class of an image best from VQGAN-LC's codes.",
    published="top-1 on ImageNet: FC 74.1, EMA 73.8, LC 75.7 %",
    pocket=Trial(
        form="The weather of street scenes of 32 pixels from 8 x 8 tokens of 256 codes: 2000 scenes to learn from, "
        "200 held out; a transformer of two layers of 96 from random weights (the paper: MAE's ViT-B). LC may fall "
        "short of the others by 2 points, which is within the noise of 400 answers: that it is no worse is all this "
        "can tell.",
        variants=(
            Variant(name="LC", run=_classified(street())),
            Variant(name="FC", run=_classified(_plain("patch_fc"))),
            Variant(name="EMA", run=_classified(_plain("patch_ema"))),
        ),
        measure=accuracy,
        metrics=(
            Metric(key="top1", title="top-1", unit="%", digits=1),
            Metric(key="most_frequent", title="most frequent class", unit="%", digits=1),
        ),
        checks=(
            Check(
                says="top-1: LC against FC, 2 points allowed", high=("LC", "top1"), low=("FC", "top1"), margin=-2.0
            ),
            Check(
                says="top-1: LC against EMA, 2 points allowed", high=("LC", "top1"), low=("EMA", "top1"), margin=-2.0
            ),
            Check(
                says="top-1: LC above the most frequent class, points",
                high=("LC", "top1"),
                low=("LC", "most_frequent"),
                margin=20.0,
            ),
        ),
        chart=Chart(y="top1"),
        minutes=4,
    ),
)
