"""VQGAN-LC: codes that are close together can stand in for each other."""

from __future__ import annotations

from models.claims.claim import Chart, Check, Claim, Line, Made, Metric, Trial, Variant
from models.claims.lc_utilization import lc, rival
from models.evaluation.replacement import replacement_curve
from models.training.runs import load_config, load_tokenizer

_RANKS = (1, 10, 50, 100)


def replacement(made: Made) -> dict[str, float]:
    """PSNR of held-out photographs with every token replaced by the M-th nearest code, and what that loses."""
    curve = replacement_curve(load_tokenizer(made.run), _RANKS, data=load_config(made.run).data, size=256)
    found = {f"psnr_{rank}": value for rank, value in zip(_RANKS, curve, strict=True)}
    # from a negative number up: what loses less is higher
    return found | {f"loss_{rank}": found[f"psnr_{rank}"] - found["psnr_1"] for rank in _RANKS[1:]}


_NAMES = ("LC 4096", "LC 1024", "EMA 1024", "FC 1024")

LC_REPLACEMENT = Claim(
    name="lc-replacement",
    title="Neighbouring codes can stand in for each other",
    system="VQGAN-LC",
    place="Figure 5",
    says="When every token is replaced by its M-th nearest code, reconstructions of VQGAN-LC decay slowest, because "
    "its codes lie close together and all of them are used.",
    pocket=Trial(
        form="The tokenizers of lc-utilization; the middle 256 pixels of the held-out photographs. LC 4096 spends "
        "two bits per token more than the others.",
        variants=(
            Variant(name="LC 4096", run=lc(4096)),
            Variant(name="LC 1024", run=lc(1024)),
            Variant(name="EMA 1024", run=rival("patch_ema", 1024)),
            Variant(name="FC 1024", run=rival("patch_fc", 1024)),
        ),
        measure=replacement,
        metrics=tuple(Metric(key=f"psnr_{rank}", title=f"PSNR, M = {rank}", unit="dB") for rank in _RANKS),
        checks=(
            *(
                Check(
                    says=f"PSNR of LC above {name} at M = 10, same codes, dB",
                    high=("LC 1024", "psnr_10"),
                    low=(f"{name} 1024", "psnr_10"),
                    margin=1.0,
                )
                for name in ("EMA", "FC")
            ),
            Check(
                says="more codes decay slower: LC 4096 loses less than LC 1024 at M = 50, dB",
                high=("LC 4096", "loss_50"),
                low=("LC 1024", "loss_50"),
                margin=0.5,
            ),
        ),
        chart=Chart(
            x="M, rank of the code taken",
            y="PSNR, dB",
            log=True,
            lines=tuple(Line(name=name, points=tuple((r, name, f"psnr_{r}") for r in _RANKS)) for name in _NAMES),
        ),
        minutes=1,
    ),
)
