"""Vectors spread evenly over codes. Oracle: Sinkhorn on the whole matrix in float64, as LC-Rec writes it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vqkernels
from vqkernels.nn import scores, sinkhorn
from vqkernels.nn.sinkhorn import balanced_codes_of
from vqkernels.testing import assert_bitwise_equal

CONFIG = vqkernels.Sinkhorn(epsilon=0.05, iterations=30)
METRICS = ("l2", "cosine", "dot")
each_metric = pytest.mark.parametrize("metric", METRICS)


def plan(x: torch.Tensor, codes: torch.Tensor, metric: str, config: vqkernels.Sinkhorn) -> torch.Tensor:  # [N, K]
    x, codes = x.double(), codes.double()
    if metric == "l2":
        cost = (x[:, None] - codes).square().sum(2)
    elif metric == "dot":
        cost = -x @ codes.t()
    else:
        cost = -F.normalize(x) @ F.normalize(codes).t()
    middle = (cost.amax() + cost.amin()) / 2
    q = torch.exp(-(cost - middle) / (cost.amax() - middle) / config.epsilon)
    for _ in range(config.iterations):
        q = q / q.sum(1, keepdim=True) / len(x)
        q = q / q.sum(0, keepdim=True) / len(codes)
    return q


def problem(n: int = 120, k: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of which most are nearest to one code."""
    torch.manual_seed(0)
    return torch.randn(n, 4) * 0.3 + 1, torch.randn(k, 4)


def found(x: torch.Tensor, codes: torch.Tensor, metric: str = "l2", part: torch.Tensor | None = None) -> torch.Tensor:
    part = torch.ones(len(x), dtype=torch.bool) if part is None else part
    return balanced_codes_of(x[:, None], codes[None], part, metric, CONFIG)[:, 0]


@each_metric
def test_indices_are_those_of_the_plan(metric: str) -> None:
    x, codes = problem()
    q = plan(x, codes, metric, CONFIG)
    first, second = q.topk(2, dim=1).values.unbind(1)
    assert bool((first > second * (1 + 1e-6)).all()), "a near tie tells nothing"
    assert_bitwise_equal(found(x, codes, metric), q.argmax(1))


def test_codes_are_used_alike() -> None:
    x, codes = problem()
    nearest = torch.bincount(vqkernels.nearest_code(x, codes).indices, minlength=8)
    even = torch.bincount(found(x, codes), minlength=8)
    assert nearest.max() > 60
    assert nearest.min() == 0
    assert even.min() >= 8
    assert even.max() <= 24


def test_items_collide_less_in_codes_that_are_used_alike() -> None:
    """Collisions counted one by one; the suffix tells what is left of them apart."""
    x, codes = problem(60, 40)
    reports = []
    for indices in (vqkernels.nearest_code(x, codes).indices, found(x, codes)):
        report = vqkernels.semantic_ids(indices[:, None])
        sizes = [indices.tolist().count(code) for code in indices.tolist()]
        assert report.collision_rate == sum(size > 1 for size in sizes) / 60
        assert report.largest == max(sizes)
        assert len(report.ids.unique(dim=0)) == 60
        reports.append(report)
    nearest, spread = reports
    assert spread.collision_rate < nearest.collision_rate
    assert spread.largest < nearest.largest
    assert spread.num_unique > nearest.num_unique


def test_pieces_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    x, codes = problem()
    want = found(x, codes)
    monkeypatch.setattr(scores, "_PAIRS", 100)
    assert_bitwise_equal(found(x, codes), want)
    monkeypatch.setattr(sinkhorn, "_KEPT", 0)
    assert_bitwise_equal(found(x, codes), want)


def test_vectors_left_out_are_no_rows() -> None:
    """Oracle: the others alone. A code that is not finite is never taken."""
    x, codes = problem()
    part = torch.rand(len(x)) < 0.6
    got = found(torch.where(part[:, None], x, 1e6), codes, part=part)
    assert_bitwise_equal(got[part], found(x[part], codes))
    assert not got[~part].any()
    assert not found(x, codes, part=torch.zeros(len(x), dtype=torch.bool)).any()
    assert found(x[:0], codes).shape == (0,)
    codes[3] = torch.nan
    kept = [i for i in range(8) if i != 3]
    assert_bitwise_equal(found(x, codes), torch.tensor(kept)[found(x, codes[kept])])


@pytest.mark.parametrize("codebook", [vqkernels.Learned(init_scale=1.0), vqkernels.Ema()])
def test_a_quantizer_is_balanced_in_training_alone(codebook: Any) -> None:
    torch.manual_seed(1)
    x = torch.randn(4, 30, 8)
    mask = torch.rand(4, 30) < 0.8
    quantizer = vqkernels.VectorQuantizer(8, 6, groups=2, codebook=codebook, balance=CONFIG)
    codes = quantizer.codebook.clone()
    with torch.no_grad():
        want = torch.stack([found(x[mask][:, 4 * g : 4 * g + 4], codes[g]) for g in range(2)], dim=1)
    out = quantizer(x, mask)
    assert_bitwise_equal(out.indices[mask], want)
    assert bool((out.indices[~mask] == -1).all())
    values = torch.cat([codes[g][want[:, g]] for g in range(2)], dim=1)
    torch.testing.assert_close(out.losses["commitment"], F.mse_loss(x[mask], values))
    assert_bitwise_equal(out.quantized[mask].detach(), values)
    quantizer.eval()
    nearest = vqkernels.nearest_code(x.reshape(-1, 2, 4), quantizer.codebook).indices.view(4, 30, 2)
    assert_bitwise_equal(quantizer(x).indices, nearest)
    assert_bitwise_equal(quantizer.train().encode(x), nearest)


def test_the_last_stage_of_a_stack_may_be_balanced() -> None:
    """As LC-Rec trains. Oracle: the stages one after the other."""
    torch.manual_seed(2)
    stages = [vqkernels.VectorQuantizer(4, 6, codebook=vqkernels.Ema()) for _ in range(2)]
    stages.append(vqkernels.VectorQuantizer(4, 6, codebook=vqkernels.Ema(), balance=CONFIG))
    x, alone = torch.randn(60, 4), copy.deepcopy(stages)
    indices = vqkernels.ResidualQuantizer(stages)(x).indices
    left = x
    for number, stage in enumerate(alone):
        out = stage(left)
        assert_bitwise_equal(indices[:, number], out.indices)
        left = left - out.quantized
    assert torch.bincount(indices[:, 2], minlength=6).max() <= 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling_temperature": 1.0}, "balance: expected None with sampling_temperature, got Sinkhorn"),
        (
            {"codebook": vqkernels.SemanticClustering(num_classes=2)},
            "balance: expected None with SemanticClustering, got Sinkhorn",
        ),
    ],
)
def test_what_has_another_assignment_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vqkernels.VectorQuantizer(4, 6, balance=CONFIG, **options)
