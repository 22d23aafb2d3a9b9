"""``quantize`` and ``estimate_gradient``. Oracle: the published estimators written out with autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from vqkernels import estimate_gradient, nearest_code, quantize
from vqkernels.testing import assert_bitwise_equal, assert_within_budget, lookup_problem

OPS = ("nearest_code", "gather_codes", "code_stats")
Estimator = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def straight_through(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    return x + (codes - x).detach() + (codes - codes.detach())


def rotation(x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Fifty et al. 2024: code = s R x with the rotation matrix R and the scale s constant, one vector at a time."""
    turned = []
    for row, code in zip(x, codes.detach(), strict=True):
        u, v = (t.detach() / t.detach().norm() for t in (row, code))
        r = (u + v) / (u + v).norm()
        matrix = torch.eye(len(u), dtype=u.dtype) - 2 * torch.outer(r, r) + 2 * torch.outer(v, u)
        turned.append(code.norm() / row.detach().norm() * (matrix @ row))
    return torch.stack(turned) + (codes - codes.detach())


ESTIMATORS: dict[str, Estimator] = {
    "ste": straight_through,
    "rotation": rotation,
    "none": lambda x, codes: codes,
}


def gradients(
    estimator: Estimator, x: torch.Tensor, codes: torch.Tensor, upstream: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Value, gradient of x and gradient of the codes, computed in ``dtype``."""
    leaf, code_leaf = (t.detach().to(dtype).requires_grad_() for t in (x, codes))
    value = estimator(leaf, code_leaf)
    dx, dc = torch.autograd.grad(value, (leaf, code_leaf), upstream.to(dtype), allow_unused=True)
    zero = torch.zeros_like(leaf)
    return value.detach(), zero if dx is None else dx, zero if dc is None else dc


@pytest.mark.parametrize("d", [1, 2, 8, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("gradient", ESTIMATORS)
def test_estimators(gradient: str, dtype: torch.dtype, d: int) -> None:
    x, codes, upstream = (torch.randn(60, d).to(dtype) for _ in range(3))
    if d == 1:
        codes = codes.abs() * x.sign()  # opposite numbers have no rotation
    estimator = ESTIMATORS[gradient]
    exact = gradients(estimator, x, codes, upstream, torch.float64)
    plain = gradients(estimator, x, codes, upstream, dtype)
    result = gradients(lambda x, codes: estimate_gradient(x, codes, gradient), x, codes, upstream, dtype)
    assert_bitwise_equal(result[0], codes)
    for actual, truth, reference in zip(result[1:], exact[1:], plain[1:], strict=True):
        assert_within_budget(actual, truth, reference)


def rotation_rounding(x: torch.Tensor, codes: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:  # [N]
    """First-order bound on the error of a float64 evaluation of the rotation gradient.

    Normalising costs (d/2 + 3) roundings, so r = (u + v) / |u + v| is off by about (d + 6) / |u + v| of them; it
    enters twice in 2 r (r.g), as do u and v in 2 u (v.g), beside the d roundings of each dot product.
    """
    d = x.shape[1]
    scale = codes.norm(dim=1) / x.norm(dim=1)
    middle = (x / x.norm(dim=1, keepdim=True) + codes / codes.norm(dim=1, keepdim=True)).norm(dim=1)
    return 2.0**-53 * (8 * d + 60) * (1 + 1 / middle) * scale * upstream.norm(dim=1)


@pytest.mark.parametrize("d", [2, 16])
def test_rotation_in_float64(d: int) -> None:
    """The gradient is the written-out one; it has length s |g| and the component s v.g along u."""
    x, codes, upstream = (torch.randn(200, d, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    (dx,) = torch.autograd.grad(estimate_gradient(x, codes, "rotation"), x, upstream)
    _, truth, _ = gradients(rotation, x, codes, upstream, torch.float64)
    x = x.detach()
    rounding = rotation_rounding(x, codes, upstream)
    assert bool(((dx - truth).norm(dim=1) <= 2 * rounding).all())
    scale = codes.norm(dim=1) / x.norm(dim=1)
    assert bool(((dx.norm(dim=1) - scale * upstream.norm(dim=1)).abs() <= 2 * rounding).all())
    u, v = (t / t.norm(dim=1, keepdim=True) for t in (x, codes))
    assert bool((((dx * u).sum(1) - scale * (upstream * v).sum(1)).abs() <= 2 * rounding).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("x", "code"),
    [
        ([0.0, 0.0], [1.0, 2.0]),
        ([1.0, 2.0], [0.0, 0.0]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([1.0, -2.0], [-1.0, 2.0]),
        ([1.0, -2.0], [-3.0, 6.0]),
        ([1e-30, 1e-30], [1.0, 2.0]),
    ],
    ids=["zero x", "zero code", "both zero", "opposite", "opposite, longer", "almost zero x"],
)
def test_rotation_falls_back_to_straight_through(x: list[float], code: list[float], dtype: torch.dtype) -> None:
    upstream = torch.tensor([3.0, -4.0], dtype=dtype)
    leaf = torch.tensor(x, dtype=dtype, requires_grad=True)
    codes = torch.tensor(code, dtype=dtype, requires_grad=True)
    estimate_gradient(leaf, codes, "rotation").backward(upstream)
    assert leaf.grad is not None
    assert codes.grad is not None
    assert_bitwise_equal(codes.grad, upstream)
    if dtype == torch.float64 and x[0] == 1e-30:
        assert bool(leaf.grad.isfinite().all())  # a rotation exists at this precision
    else:
        assert_bitwise_equal(leaf.grad, upstream)


@pytest.mark.parametrize("angle", [1e-2, 1e-4, 1e-5, 1e-6, 1e-7])
def test_rotation_near_opposite_vectors_stays_bounded(angle: float) -> None:
    # I - 2 r r^T + 2 v u^T has norm at most 5 for unit vectors, however r was rounded
    turn = torch.tensor(torch.pi - angle, dtype=torch.float64)
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    codes = 2 * torch.stack([turn.cos(), turn.sin()])[None].float()
    estimate_gradient(x, codes, "rotation").backward(torch.tensor([[3.0, 4.0]]))
    assert x.grad is not None
    assert float(x.grad.norm()) <= 5 * 2 * 5 * (1 + 1e-5)


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("gradient", ESTIMATORS)
@pytest.mark.parametrize("groups", [None, 3])
def test_quantize_end_to_end(groups: int | None, gradient: str, metric: str, backend: str) -> None:
    """Gradients of x and of the codebook through lookup, gather and estimator."""
    x, codebook = (t.requires_grad_() for t in lookup_problem("gaussian", 80, 30, 6, groups=groups))
    upstream = torch.randn(x.shape)
    result = quantize(x, codebook, metric=metric, gradient=gradient, backend=backend)
    lookup = nearest_code(x, codebook, metric=metric, backend=backend)
    assert_bitwise_equal(result.indices, lookup.indices)
    assert_bitwise_equal(result.distance, lookup.distance)

    def written_out(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        leaf, book = (t.detach().to(dtype).requires_grad_() for t in (x, codebook))
        if groups is None:
            codes = book[lookup.indices]
        else:
            codes = torch.stack([book[g][lookup.indices[:, g]] for g in range(groups)], dim=1)
        value = ESTIMATORS[gradient](leaf.reshape(-1, 6), codes.reshape(-1, 6)).reshape(x.shape)
        dx, dc = torch.autograd.grad(value, (leaf, book), upstream.to(dtype), allow_unused=True)
        assert dc is not None
        return torch.zeros_like(leaf) if dx is None else dx, dc

    if gradient == "none":
        (dc,) = torch.autograd.grad(result.quantized, codebook, upstream)
        dx = torch.zeros_like(x)
    else:
        dx, dc = torch.autograd.grad(result.quantized, (x, codebook), upstream)
    for actual, truth, reference in zip(
        (dx, dc), written_out(torch.float64), written_out(torch.float32), strict=True
    ):
        assert_within_budget(actual, truth, reference)


def test_a_detached_codebook_gets_no_gradient(backend: str) -> None:
    x, codebook = (t.requires_grad_() for t in lookup_problem("gaussian", 20, 5, 4))
    quantize(x, codebook.detach(), backend=backend).quantized.sum().backward()
    assert x.grad is not None
    assert codebook.grad is None


def test_without_a_gradient_nothing_is_recorded(backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 20, 5, 4)
    assert not quantize(x, codebook, backend=backend).quantized.requires_grad
    assert not quantize(x.requires_grad_(), codebook, gradient="none", backend=backend).quantized.requires_grad
    with torch.no_grad():
        assert not quantize(x, codebook, gradient="rotation", backend=backend).quantized.requires_grad


@pytest.mark.parametrize("gradient", ["ste", "rotation"])
def test_the_value_is_memory_of_its_own(gradient: str, backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 5, 5, 4)
    before, codes = codebook.clone(), codebook.clone()
    quantize(x, codebook, gradient=gradient, backend=backend).quantized.zero_()
    assert_bitwise_equal(codebook, before)
    estimate_gradient(x, codes, gradient).zero_()
    assert_bitwise_equal(codes, before)


@pytest.mark.parametrize("gradient", ["ste", "rotation"])
def test_bfloat16_under_autocast(gradient: str, backend: str) -> None:
    """Half vectors, float32 codebook: chosen and differentiated as without autocast."""
    x, codebook = lookup_problem("gaussian", 50, 20, 8)
    layer = torch.nn.Linear(8, 8)
    codebook.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = layer(x)
        result = quantize(hidden, codebook, gradient=gradient, backend=backend)
    assert hidden.dtype == result.quantized.dtype == torch.bfloat16
    outside = nearest_code(hidden.detach(), codebook, backend=backend)
    assert_bitwise_equal(result.indices, outside.indices)
    assert_bitwise_equal(result.distance, outside.distance)
    assert_bitwise_equal(result.quantized, codebook.detach()[outside.indices].bfloat16())
    upstream = torch.randn(50, 8).bfloat16()
    dx, dc = torch.autograd.grad(result.quantized, (hidden, codebook), upstream)
    codes = codebook.detach()[outside.indices]
    truth, reference = (
        gradients(ESTIMATORS[gradient], hidden, codes, upstream, dtype) for dtype in (torch.float64, torch.bfloat16)
    )
    assert_within_budget(dx, truth[1], reference[1])
    segment = torch.zeros(20, 8, dtype=torch.float64).index_add_(0, outside.indices, upstream.double())
    assert_within_budget(dc, segment, segment.float())


def test_nonfinite_vectors_read_code_zero(backend: str) -> None:
    x, codebook = lookup_problem("gaussian", 4, 5, 3)
    x[1, 0], x[2, 2] = torch.nan, -torch.inf
    result = quantize(x, codebook, backend=backend)
    assert result.indices[1:3].tolist() == [0, 0]
    assert result.distance.isnan().tolist() == [False, True, True, False]
    assert_bitwise_equal(result.quantized, codebook[result.indices])
