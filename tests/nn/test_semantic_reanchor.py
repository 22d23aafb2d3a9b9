"""``semantic_reanchor_``. Oracle: equations 2 to 5, 7 and 8 of SGC-VQGAN in float64, one code at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vqkernels import multilevel_nearest_code, semantic_reanchor_
from vqkernels.testing import assert_bitwise_equal, assert_within_budget

N, K, D, H, C = 60, 24, 6, 2, 5


def problem() -> dict[str, torch.Tensor]:
    x, codebook = torch.randn(N, D), torch.randn(K, D)
    indices, distance = multilevel_nearest_code((x[:, :H], x[:, H:]), (codebook[:, :H], codebook[:, H:]), (1.0, 1.0))
    return {
        "codebook": codebook,
        "usage": torch.logspace(-7, -1, K),  # between dead and alive: the pull takes every value between 0 and 1
        "x": x,
        "indices": indices,
        "distance": distance,
        "labels": torch.randint(-1, C, (N,)),
        "class_embedding": torch.randn(C, H),
    }


def distances(codebook: torch.Tensor, x: torch.Tensor, beta: float) -> torch.Tensor:  # [K, N] float64, equation 6
    a, b = codebook.double(), x.double()
    return beta * torch.cdist(a[:, :H], b[:, :H]) + torch.cdist(a[:, H:], b[:, H:])


def transcription(
    p: dict[str, torch.Tensor], anchor: list[int], decay: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    codebook, usage, x, classes = (p[name].to(dtype) for name in ("codebook", "usage", "x", "class_embedding"))
    codebook, usage = codebook.clone(), usage.clone()
    for k in range(K):
        hits = int((p["indices"] == k).sum())
        usage[k] = decay * usage[k] + (1 - decay) * hits / N
        a = torch.exp(-usage[k] * K * 10 / (1 - decay) - 1e-3)
        z, y = x[anchor[k]], int(p["labels"][anchor[k]])
        meaning = classes[y] if y >= 0 else z[:H]
        codebook[k, :H] = (1 - a) * codebook[k, :H] + a * (a * z[:H] + (1 - a) * meaning)
        codebook[k, H:] = (1 - a) * codebook[k, H:] + a * z[H:]
    return codebook, usage


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_closest_is_the_transcription(beta: float) -> None:
    p = problem()
    anchor = distances(p["codebook"], p["x"], beta).argmin(1).tolist()
    want, plain = (transcription(p, anchor, 0.9, dtype) for dtype in (torch.float64, torch.float32))
    semantic_reanchor_(**p, decay=0.9, high_weight=beta, anchor="closest")  # type: ignore[arg-type]
    for actual, truth, reference in zip((p["codebook"], p["usage"]), want, plain, strict=True):
        assert_within_budget(actual, truth, reference)


def test_probabilistic_draws_by_softmax_of_the_level_distance() -> None:
    k = 4000  # equal dead codes: many draws of one distribution
    p = problem()
    p["x"], p["labels"] = p["x"][:6], torch.full((6,), -1)
    p["indices"], p["distance"] = torch.zeros(6, dtype=torch.int64), torch.zeros(6)
    p["codebook"], p["usage"] = torch.zeros(k, D), torch.zeros(k)
    semantic_reanchor_(**p, decay=0.9, high_weight=2.0)
    pull = torch.exp(torch.tensor(-1e-3))
    drawn = torch.cdist(p["codebook"][1:] / pull, p["x"]).argmin(1).bincount(minlength=6)
    expected = (k - 1) * (-distances(torch.zeros(1, D), p["x"], 2.0)[0]).softmax(0)
    # chi-squared with 5 degrees of freedom exceeds 34 with a probability of 2e-6
    assert float(((drawn - expected) ** 2 / expected).sum()) < 34


@pytest.mark.parametrize("anchor", ["closest", "probabilistic"])
def test_vectors_that_take_no_part(anchor: str) -> None:
    p = problem()
    p["x"][5] = torch.nan
    p["distance"][5] = torch.nan
    p["indices"][7:20] = -1
    before = {name: p[name].clone() for name in ("codebook", "usage")}
    semantic_reanchor_(**p, anchor=anchor)  # type: ignore[arg-type]
    assert bool(p["codebook"].isfinite().all())
    lost = {**p, **{name: t.clone() for name, t in before.items()}, "indices": torch.full((N,), -1)}
    semantic_reanchor_(**lost, anchor=anchor)  # type: ignore[arg-type]
    for name, expected in before.items():
        assert_bitwise_equal(lost[name], expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"anchor": "random"}, ValueError, "anchor: expected one of closest, probabilistic, got 'random'"),
        ({"high_weight": -1.0}, ValueError, "high_weight: expected a finite number >= 0, got -1.0"),
        ({"decay": 1.0}, ValueError, "decay"),
        ({"labels": torch.full((N,), C)}, IndexError, r"labels: expected values in \[-1, 5\), got 5"),
        ({"labels": torch.zeros(N)}, TypeError, "labels"),
        ({"class_embedding": torch.zeros(C, D)}, ValueError, r"class_embedding: expected \[C, H\] with 0 < H < 6"),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        semantic_reanchor_(**{**problem(), **change})
