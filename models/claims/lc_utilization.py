"""VQGAN-LC: a codebook that is frozen features behind a trained projector stays in use as it grows."""

from __future__ import annotations

from typing import Any

from models.claims.claim import Chart, Check, Claim, Line, Metric, Train, Trial, Variant
from models.claims.measures import data_set, photographs
from models.claims.small import patch
from models.recipes import TOKENIZERS

SIZES = (256, 1024, 4096)
_NETWORK: dict[str, Any] = {"features": "efficientnet_lite0", "features_layer": "expand5", "features_size": 64}
_METRICS = (
    Metric(key="usage", title="codes used", unit="%", digits=1),
    Metric(key="psnr", title="PSNR", unit="dB"),
    Metric(key="perplexity", title="perplexity", digits=0),
)


def lc(num_codes: int, **quantizer: Any) -> Train:
    """VQGAN-LC with features of EfficientNet, unless other ones are asked for."""
    return Train(config=patch("patch_lc", **{**_NETWORK, "num_codes": num_codes, **quantizer}))


def rival(recipe: str, num_codes: int) -> Train:
    """FC, EMA or CVQ with as many codes."""
    return Train(config=patch(recipe, num_codes=num_codes))


def _sweep() -> tuple[Variant, ...]:
    made = [Variant(name=f"LC {size}", run=lc(size)) for size in SIZES]
    for name, recipe in (("FC", "patch_fc"), ("EMA", "patch_ema"), ("CVQ", "patch_cvq")):
        made += [Variant(name=f"{name} {size}", run=rival(recipe, size)) for size in SIZES]
    return tuple(made)


_ABLATIONS = (
    Variant(name="as it is", run=lc(1024)),
    Variant(name="patches", run=lc(1024, features="patches")),
    Variant(name="drawn", run=lc(1024, features_pick="sample")),
    Variant(name="random", run=lc(1024, features="random", init="published")),
    Variant(name="static", run=lc(1024, features="patches", feature_dim=8, projector="none", init="published")),
    Variant(name="tuned", run=lc(1024, tuned=True)),
    Variant(name="published start", run=lc(1024, init="published")),
    Variant(name="D' 4", run=lc(1024, code_dim=4)),
    Variant(name="D' 32", run=lc(1024, code_dim=32)),
)


def _paper() -> Trial:
    numbers = {
        "vqgan_fc": ("FC", {"usage": 11.2, "psnr_luma": 22.8, "ssim": 54.5}),
        "vqgan_ema": ("EMA", {"usage": 83.2, "psnr_luma": 23.5, "ssim": 56.6}),
        "vqgan_lc": ("LC", {"usage": 99.9, "psnr_luma": 23.8, "ssim": 58.9}),
    }
    return Trial(
        form="The published recipes on ImageNet; FC and EMA with 16,384 codes, LC with 100,000; use of codes is "
        "counted over held-out images.",
        variants=tuple(
            Variant(name=name, run=Train(config=TOKENIZERS[recipe]()), published=published)
            for recipe, (name, published) in numbers.items()
        ),
        measure=data_set,
        metrics=(
            Metric(key="usage", title="codes used", unit="%", digits=1),
            Metric(key="psnr_luma", title="PSNR of luma", unit="dB"),
            Metric(key="ssim", title="SSIM", unit="%", digits=1),
        ),
        checks=(
            Check(
                says="LC uses more of its codes than FC, points", high=("LC", "usage"), low=("FC", "usage"), margin=40
            ),
            Check(says="PSNR of LC above FC, dB", high=("LC", "psnr_luma"), low=("FC", "psnr_luma"), margin=0.3),
        ),
        chart=Chart(y="psnr_luma"),
        seeds=(0,),
        minutes=60_000,
    )


LC_UTILIZATION = Claim(
    name="lc-utilization",
    title="A frozen codebook stays in use as it grows",
    system="VQGAN-LC",
    place="Tables 2 and 7",
    says="Codes that are features of a pretrained network behind a trained projector stay in use at any size, where "
    "codes trained by gradient or running mean fall out of use, and they reconstruct better.",
    published="used with 16,384 / 100,000 codes: FC 11.2 / 1.9 %, EMA 83.2 / 24.2 %, LC 99.9 / 99.9 %; "
    "PSNR at 100,000: 22.9, 23.2, 23.8 dB",
    pocket=Trial(
        form="Patch tokenizers on photographs, whole photographs held out; use of codes counted over the training "
        "photographs (66,000 tokens). LC's codes are k-means centres of EfficientNet-Lite0's features (the paper: "
        "CLIP), its projector starts matched to the encoder.",
        variants=_sweep(),
        measure=photographs,
        metrics=_METRICS,
        checks=(
            *(
                Check(
                    says=f"LC uses more of {size} codes than {name}, points",
                    high=(f"LC {size}", "usage"),
                    low=(f"{name} {size}", "usage"),
                    margin=20,
                )
                for size in SIZES[1:]
                for name in ("FC", "EMA")
            ),
            Check(
                says="PSNR of LC with 4096 codes above FC, dB",
                high=("LC 4096", "psnr"),
                low=("FC 4096", "psnr"),
                margin=0.4,
            ),
        ),
        chart=Chart(
            x="codes",
            y="codes used, %",
            log=True,
            lines=tuple(
                Line(name=name, points=tuple((size, f"{name} {size}", "usage") for size in SIZES))
                for name in ("LC", "FC", "EMA", "CVQ")
            ),
        ),
        minutes=5,
    ),
    paper=_paper(),
)

LC_CODEBOOK = Claim(
    name="lc-codebook",
    title="What a frozen codebook has to be made of",
    system="VQGAN-LC",
    place="Tables 6, 9, 10",
    says="Frozen codes must be features, centres or samples of them, not random numbers; it is the projector that "
    "keeps them in use, tuned codes are no better; the number of dimensions matters little.",
    published="used: random 5.4, features drawn 99.8, centres 99.9 %; static without projector 3.9 %, tuned 99.1 %; "
    "PSNR 23.5 to 23.9 dB with 8 to 512 dimensions",
    pocket=Trial(
        form="VQGAN-LC with 1024 codes, as in lc-utilization, with one thing changed at a time: features of patches "
        "in place of EfficientNet's, drawn and not clustered, random; patches without a projector (static); codes "
        "that are trained, too; the projector's published start; 4 and 32 dimensions in place of 8.",
        variants=_ABLATIONS,
        measure=photographs,
        metrics=_METRICS,
        checks=(
            Check(
                says="codes used: features above random, points",
                high=("as it is", "usage"),
                low=("random", "usage"),
                margin=20,
            ),
            Check(
                says="PSNR: features above random, dB", high=("as it is", "psnr"), low=("random", "psnr"), margin=1.0
            ),
            Check(
                says="codes used: drawn against clustered, 20 points allowed",
                high=("drawn", "usage"),
                low=("as it is", "usage"),
                margin=-20.0,
            ),
            Check(
                says="PSNR: not tuned against tuned, 0.3 dB allowed",
                high=("as it is", "psnr"),
                low=("tuned", "psnr"),
                margin=-0.3,
            ),
        ),
        chart=Chart(y="usage"),
        minutes=4,
    ),
)
