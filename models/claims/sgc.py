"""SGC-VQGAN: codes that mean something, on street scenes with exact label maps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from models.claims.claim import Chart, Check, Claim, Line, Metric, Train, Trial, Variant
from models.claims.measures import data_set, scenes
from models.claims.small import on_pictures, scene, sgc_scene
from models.losses.semantic import SemanticLossConfig
from models.networks.aggregator import AggregatorConfig
from models.recipes import TOKENIZERS
from models.tokenizers.config import QuantizerConfig

_SGC = Train(config=sgc_scene())
_TAUS = ("0.1", "0.3", "0.5", "0.7", "0.9")
_FORM = (
    "256 codes of 32 dimensions on street scenes of 32 pixels, 4 x 4 pixels a token, labels from their maps; 60 "
    "scenes held out, 3,840 tokens."
)
_SHORT = (
    Metric(key="psnr", title="PSNR", unit="dB"),
    Metric(key="usage", title="codes used", unit="%", digits=1),
    Metric(key="uniqueness_0.5", title="uniqueness(0.5)", unit="%", digits=1),
    Metric(key="silhouette", title="SS", digits=3),
    Metric(key="davies_bouldin", title="DBI", digits=2),
)


# what, metric, high, low, margin: a third of what an earlier experiment found on these photographs
_PICTURED = (
    ("uniqueness at 0.5", "uniqueness_0.5", "SGC", "CVQ", 5.0),
    ("uniqueness at 0.5", "uniqueness_0.5", "CVQ", "VQ", 4.0),
    ("uniqueness at 0.9", "uniqueness_0.9", "SGC", "CVQ", 3.0),
    ("codes used", "usage", "SGC", "CVQ", 8.0),
    ("codes used", "usage", "CVQ", "VQ", 5.0),
)


def cvq() -> Train:
    """CVQ-VAE's quantizer, the anchors of SGC's recipe."""
    quantizer = QuantizerConfig(
        codebook="online", anchor="probabilistic", commitment_weight=0.25, codebook_weight=1.0
    )
    return Train(config=scene(quantizer, recipe="cvq_pocket"))


def sgc() -> Train:
    """SGC-VQGAN as the pocket recipe has it."""
    return _SGC


def _vq() -> Train:
    quantizer = QuantizerConfig(codebook="learned", commitment_weight=0.25, codebook_weight=1.0)
    return Train(config=scene(quantizer, recipe="vqgan_pocket"))


def _ablated(**semantics: Any) -> Train:
    return Train(config=sgc_scene(**semantics))


def _loss(**changes: Any) -> SemanticLossConfig:
    config = _SGC.config
    assert config.kind == "tokenizer"
    assert config.semantics is not None
    return replace(config.semantics.loss, **changes)


SEMANTIC_UNIQUENESS = Claim(
    name="semantic-uniqueness",
    title="Codes of SGC-VQGAN stand for one class each",
    system="SGC-VQGAN",
    place="Tables 1 and 2",
    says="Codes that are re-anchored and drawn to classes stand for one class far more often than those of CVQ-VAE, "
    "and these more often than plain ones; they cluster by class and reconstruct about as well.",
    published="uniqueness at 0.5: VQGAN 0.8 %, CVQ-VAE 23.5 %, SGC 96.7 %; SS -.008, -.030, .737; DBI 4.3, 4.8, 0.4; "
    "PSNR 26.24, 27.37, 26.78 dB",
    pocket=Trial(
        form=_FORM
        + " SS and DBI are of the first 8 dimensions, SGC's semantic ones; codes never hit count as failures. The "
        "same on tiles of the ten photographs, labelled by photograph, 8 x 8 pixels a token, 600 steps; right "
        "quarters held out, 12,800 tokens. Scenes are compared with scenes, photographs with photographs.",
        variants=(
            Variant(name="VQ", run=_vq()),
            Variant(name="CVQ", run=cvq()),
            Variant(name="SGC", run=_SGC),
            *(
                Variant(name=f"{name}, photographs", run=Train(config=on_pictures(run.config)))
                for name, run in (("VQ", _vq()), ("CVQ", cvq()), ("SGC", _SGC))
            ),
        ),
        measure=scenes,
        metrics=(
            _SHORT[0],
            _SHORT[1],
            *(Metric(key=f"uniqueness_{tau}", title=f"uniq. {tau}", unit="%", digits=1) for tau in _TAUS),
            *_SHORT[3:],
        ),
        checks=(
            Check(
                says="uniqueness at 0.5: SGC above CVQ, points",
                high=("SGC", "uniqueness_0.5"),
                low=("CVQ", "uniqueness_0.5"),
                margin=5,
            ),
            Check(
                says="uniqueness at 0.5: CVQ above VQ, points",
                high=("CVQ", "uniqueness_0.5"),
                low=("VQ", "uniqueness_0.5"),
                margin=5,
            ),
            Check(says="codes used: SGC above VQ, points", high=("SGC", "usage"), low=("VQ", "usage"), margin=10),
            Check(says="SS: SGC above CVQ", high=("SGC", "silhouette"), low=("CVQ", "silhouette"), margin=0.05),
            Check(
                says="DBI, where less is better: CVQ above SGC",
                high=("CVQ", "davies_bouldin"),
                low=("SGC", "davies_bouldin"),
                margin=0.2,
            ),
            *(
                Check(
                    says=f"photographs, {what}: {high} above {low}, points",
                    high=(f"{high}, photographs", key),
                    low=(f"{low}, photographs", key),
                    margin=margin,
                )
                for what, key, high, low, margin in _PICTURED
            ),
        ),
        chart=Chart(
            x="more than this share of a code's pixels in one class",
            y="codes, %",
            lines=tuple(
                Line(name=name, points=tuple((float(tau), variant, f"uniqueness_{tau}") for tau in _TAUS))
                for name, variant in (
                    ("SGC", "SGC"),
                    ("CVQ", "CVQ"),
                    ("VQ", "VQ"),
                    ("SGC, photos", "SGC, photographs"),
                    ("CVQ, photos", "CVQ, photographs"),
                )
            ),
        ),
        minutes=8,
        remark="Of the codes in use SGC's stand for one class about as often as CVQ-VAE's, but SGC uses fewer, and "
        "codes never hit count as failures. In these scenes colour tells most classes, so codes that only "
        "reconstruct separate them too. Tried without success, a seed each: three times the steps; ten times "
        "the weight of the loss, also with classes by histogram; five times with a heavier high level. On "
        "photographs SGC is ahead where a code has to be nearly all of one class, and behind at 0.5: of its used "
        "codes about nine in ten pass there, of CVQ-VAE's under eight, but CVQ-VAE uses far more of them. An earlier "
        "experiment on these photographs, whose margins these are a third of, had SGC much as here and ahead "
        "throughout, of a CVQ-VAE that used 19 % of its codes; here it uses 74 %. Tried there, a seed each, SGC "
        "behind at 0.5 in all: closest anchors, a third of the rate, a tenth to five times the weight of the loss, a "
        "third and three times that of the high level, classes by histogram.",
    ),
    paper=Trial(
        form="The published recipes with maps of ImageNet-S: reconstruction and use of codes alone.",
        variants=(
            Variant(name="CVQ", run=Train(config=TOKENIZERS["cvq"]()), published={"psnr": 22.87}),
            Variant(name="SGC", run=Train(config=TOKENIZERS["sgc"]()), published={"psnr": 23.26}),
        ),
        measure=data_set,
        metrics=(
            Metric(key="psnr", title="PSNR", unit="dB"),
            Metric(key="usage", title="codes used", unit="%", digits=1),
        ),
        checks=(Check(says="SGC uses all of its codes, per cent", high=("SGC", "usage"), low=95.0, margin=0.0),),
        chart=Chart(y="usage"),
        seeds=(0,),
        minutes=60_000,
    ),
)

SGC_MFL = Claim(
    name="sgc-mfl",
    title="Levels keep the semantic loss from costing pixels",
    system="SGC-VQGAN",
    place="Table 6",
    says="Without multilevel features, the whole code under the semantic loss, reconstructions are much worse.",
    published="PSNR 26.78 dB with levels, 23.13 dB without",
    pocket=Trial(
        form=_FORM
        + " Without: every level is high and, the last apart, weighs the same in the loss (the nearest form "
        "there is an option for).",
        variants=(
            Variant(name="levels", run=_SGC),
            Variant(name="without", run=_ablated(sigma=0.0, loss=_loss(family="power", power=0.001))),
        ),
        measure=scenes,
        metrics=_SHORT,
        checks=(
            Check(
                says="PSNR with levels above without, dB",
                high=("levels", "psnr"),
                low=("without", "psnr"),
                margin=0.2,
            ),
        ),
        chart=Chart(y="psnr"),
        minutes=2,
        remark="The direction is there but smaller than the margin: at this size the semantic loss costs hardly "
        "any pixels, with levels or without; what levels keep is codes in use.",
    ),
)

_LOSSES: tuple[Literal["cosface", "l_softmax", "sphereface", "soft_triple", "proxy_nca"], ...] = (
    "cosface",
    "l_softmax",
    "sphereface",
    "soft_triple",
    "proxy_nca",
)

SGC_LOSSES = Claim(
    name="sgc-losses",
    title="The semantic loss matters: CosFace clusters best",
    system="SGC-VQGAN",
    place="Table 7",
    says="Of five losses CosFace separates the classes best; the contrastive one (proxies) reconstructs best because "
    "it hardly clusters at all.",
    published="SS .737 (CosFace), .674, .338, .305, -.053 (contrastive); PSNR 26.78 and 27.64 dB of the first and "
    "last",
    pocket=Trial(
        form=_FORM,
        variants=tuple(
            Variant(name=name, run=_SGC if name == "cosface" else _ablated(loss=_loss(loss=name))) for name in _LOSSES
        ),
        measure=scenes,
        metrics=_SHORT,
        checks=(
            Check(
                says="SS: CosFace above proxies",
                high=("cosface", "silhouette"),
                low=("proxy_nca", "silhouette"),
                margin=0.05,
            ),
            Check(
                says="uniqueness at 0.5: CosFace above proxies, points",
                high=("cosface", "uniqueness_0.5"),
                low=("proxy_nca", "uniqueness_0.5"),
                margin=3,
            ),
        ),
        chart=Chart(y="silhouette"),
        minutes=4,
        remark="SS comes out as in the paper, though noisy after 200 steps; in uniqueness the losses lie within "
        "the noise of each other.",
    ),
)

_SHARES = ((25, 0.5), (50, 0.3), (75, 0.1), (100, 0.0))

SGC_SHARE = Claim(
    name="sgc-share",
    title="A quarter of the code is semantic enough",
    system="SGC-VQGAN",
    place="Table 7",
    says="The larger the share of a code that counts as high level, the less it clusters by class, and "
    "reconstructions get no better.",
    published="25, 50, 75, 100 %: SS .737, .529, .302, .198; PSNR 26.78, 26.26, 26.39, 26.07 dB",
    pocket=Trial(
        form=_FORM + " SS and DBI are of the high part of each.",
        variants=tuple(
            Variant(name=f"{share} %", run=_SGC if share == 25 else _ablated(sigma=sigma)) for share, sigma in _SHARES
        ),
        measure=scenes,
        metrics=_SHORT,
        checks=(
            Check(says="SS: 25 % above 100 %", high=("25 %", "silhouette"), low=("100 %", "silhouette"), margin=0.05),
            Check(
                says="PSNR: 25 % against 100 %, 0.3 dB allowed",
                high=("25 %", "psnr"),
                low=("100 %", "psnr"),
                margin=-0.3,
            ),
        ),
        chart=Chart(
            x="high share, %",
            y="SS",
            lines=(Line(name="SS", points=tuple((share, f"{share} %", "silhouette") for share, _ in _SHARES)),),
        ),
        minutes=3,
        remark="SS of 8, 16, 24 and 32 dimensions are not quite the same measure, and with the whole code under "
        "the loss fewer codes stay in use, which may be easier to separate.",
    ),
)

_MODES: tuple[Literal["concat", "add", "lowest", "highest", "cross_attention"], ...] = (
    "concat",
    "add",
    "lowest",
    "highest",
    "cross_attention",
)

SGC_AGGREGATORS = Claim(
    name="sgc-aggregators",
    title="The decoder needs all levels side by side",
    system="SGC-VQGAN",
    place="Table 7",
    says="Of five ways to give levels to the decoder, all of them side by side reconstructs best.",
    published="PSNR: concat 26.78, add 26.00, lowest 26.26, highest 26.14, cross-attention 25.98 dB",
    pocket=Trial(
        form=_FORM,
        variants=tuple(
            Variant(name=mode, run=_SGC if mode == "concat" else _ablated(aggregator=AggregatorConfig(mode=mode)))
            for mode in _MODES
        ),
        measure=scenes,
        metrics=_SHORT,
        checks=tuple(
            Check(says=f"PSNR: concat above {mode}, dB", high=("concat", "psnr"), low=(mode, "psnr"), margin=0.1)
            for mode in _MODES[1:]
        ),
        chart=Chart(y="psnr"),
        minutes=4,
    ),
)
