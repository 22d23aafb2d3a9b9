"""``VectorQuantizer``: values, losses, gradients, layouts, and vectors that take no part.

Oracles: plain differentiable torch in float64; the same batch without the vectors that are left out; the same
batch in another layout.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from nn_oracle import COMPOSED, KINDS, assert_loss, assert_same_state, compose, dense_step, make, snapshot
from torch.nn import functional as F

import vqkernels
from vqkernels import VectorQuantizer
from vqkernels.nn.codebook import LearnedCodebook
from vqkernels.testing import assert_bitwise_equal, assert_exact_lookup, assert_within_budget, usable_backends

LAYOUTS = {
    "flat": {},
    "groups": {"groups": 2},
    "projected": {"groups": 2, "code_dim": 4},
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


@each_kind
@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
@pytest.mark.parametrize("groups", [1, 2])
def test_value_losses_and_gradients_are_those_of_plain_torch(kind: str, metric: str, groups: int) -> None:
    quantizer = make(kind, metric=metric, groups=groups)
    x = torch.randn(3, 10, 8, requires_grad=True)
    upstream = torch.randn(3, 10, 8)
    codebook = quantizer.table.codes().detach().clone()
    out = quantizer(x)
    ((out.quantized * upstream).sum() + out.loss).backward()

    rows, indices = x.detach().reshape(30, groups, -1), out.indices.reshape(30, groups)
    assert_exact_lookup(
        rows, codebook, indices, vqkernels.nearest_code(rows, codebook, metric=metric).distance, metric
    )

    def truth(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        x_, book = rows.to(dtype).requires_grad_(), codebook.to(dtype).requires_grad_()
        step = dense_step(x_, book, indices, metric)
        loss = 0.25 * step.commitment + (step.codebook if quantizer.table.trained else 0)
        ((step.quantized * upstream.to(dtype).reshape(rows.shape)).sum() + loss).backward()
        return step.quantized, x_.grad, book.grad

    actual = [out.quantized.reshape(rows.shape), x.grad.reshape(rows.shape)]
    if isinstance(quantizer.table, LearnedCodebook):
        # backward ran after the codebook was moved: the gradient is still that of the codes that were used
        actual.append(quantizer.table.weight.grad)
    for got, want, reference in zip(actual, truth(torch.float64), truth(torch.float32), strict=False):
        assert_within_budget(got, want, reference)

    terms = ["commitment", "codebook"] if quantizer.table.trained else ["commitment"]
    assert list(out.losses) == terms
    for term in terms:
        assert_loss(out.losses[term], rows, codebook, indices, term, metric)
    weights = {"commitment": 0.25, "codebook": 1.0}
    assert_bitwise_equal(out.loss.detach(), sum(weights[term] * out.losses[term].detach() for term in terms))


@each_kind
def test_the_value_sends_no_gradient_to_the_codebook(kind: str) -> None:
    quantizer = make(kind)
    x = torch.randn(20, 8, requires_grad=True)
    out = quantizer(x)
    leaves = [x, *quantizer.parameters()]
    to_x, *to_codes = torch.autograd.grad(out.quantized.sum() + out.losses["commitment"], leaves, allow_unused=True)
    assert to_x is not None
    assert all(grad is None for grad in to_codes)


@pytest.mark.parametrize("gradient", ["ste", "rotation", "none"])
def test_gradient_estimator_is_the_functional_one(gradient: str) -> None:
    quantizer = make("learned", gradient=gradient, commitment_weight=0.0)
    x, upstream = torch.randn(20, 8, requires_grad=True), torch.randn(20, 8)
    out = quantizer(x)
    codes = quantizer.decode(out.indices).detach()
    if gradient == "none":
        assert not out.quantized.requires_grad
    else:
        wide = x.detach().double().requires_grad_()
        value, exact = (vqkernels.estimate_gradient(rows, codes.to(rows), gradient) for rows in (x, wide))
        actual, plain = (torch.autograd.grad(q, x, upstream)[0] for q in (out.quantized, value))
        assert_within_budget(actual, torch.autograd.grad(exact, wide, upstream.double())[0], plain)


@each_kind
@each_layout
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_decode_inverts_encode(kind: str, layout: str, metric: str) -> None:
    quantizer = make(kind, metric=metric, **LAYOUTS[layout])
    x, mask = torch.randn(4, 6, 8), torch.rand(4, 6) > 0.3
    before = quantizer.eval().decode(quantizer.encode(x, mask))
    trained = quantizer.train()(x, mask)
    assert_bitwise_equal(trained.quantized.detach(), before.detach())  # codes from before this step's update
    for argument in (None, mask):
        out = quantizer.eval()(x, argument)
        assert torch.equal(out.indices, quantizer.encode(x, argument))
        assert_bitwise_equal(out.quantized.detach(), quantizer.decode(out.indices).detach())


@each_kind
def test_codebook_property_is_what_decode_reads(kind: str) -> None:
    quantizer = make(kind, metric="cosine", groups=2)
    book = quantizer.codebook
    assert list(book.shape) == [2, 32, 4]
    assert not book.requires_grad
    indices = torch.arange(32)[:, None].expand(32, 2)
    rows = quantizer.table.codes().detach().transpose(0, 1)
    unit = F.normalize(rows.double(), dim=2)
    for codes in (quantizer.decode(indices).detach().view(32, 2, 4), book.transpose(0, 1)):
        assert_within_budget(codes, unit, F.normalize(rows, dim=2))


@each_kind
@each_layout
def test_channels_first_is_channels_last_moved(kind: str, layout: str) -> None:
    last = make(kind, **LAYOUTS[layout])
    first = make(kind, channels_first=True, **LAYOUTS[layout])
    first.load_state_dict(last.state_dict())
    x, mask = torch.randn(2, 8, 3, 5), torch.rand(2, 3, 5) > 0.2
    a, b = first(x, mask), last(x.movedim(1, -1), mask)
    assert a.quantized.shape == x.shape
    assert torch.equal(a.indices, b.indices)
    assert_bitwise_equal(a.quantized.detach(), b.quantized.detach().movedim(-1, 1))
    assert_bitwise_equal(a.loss.detach(), b.loss.detach())
    assert_same_state(snapshot(first), snapshot(last))
    decoded = first.decode(a.indices)
    assert decoded.shape == x.shape


@pytest.mark.parametrize("kind", ["learned", "ema", "online-closest"])
def test_groups_are_quantizers_side_by_side(kind: str) -> None:
    together = make(kind, groups=2)
    apart = [make(kind, dim=4) for _ in range(2)]
    for group, single in enumerate(apart):
        state = {name: t[group : group + 1] if t.dim() else t for name, t in together.state_dict().items()}
        single.load_state_dict(state)
    x = torch.randn(50, 8)
    out = together(x)
    parts = [single(part) for single, part in zip(apart, x.split(4, dim=1), strict=True)]
    assert torch.equal(out.indices, torch.stack([part.indices for part in parts], dim=1))
    assert_bitwise_equal(out.quantized, torch.cat([part.quantized for part in parts], dim=1))
    for group, single in enumerate(apart):
        state = {name: t[group : group + 1] if t.dim() else t for name, t in together.state_dict().items()}
        assert_same_state(snapshot(single), state)


def spoiled(why: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Vectors, which of them take part, and the mask: the others hold NaN and infinities, masked or not."""
    keep = torch.rand(60) > 0.4
    x = torch.randn(60, 8)
    bad = torch.tensor([torch.nan, torch.inf, -torch.inf])
    x[~keep, 3] = bad[torch.arange(int((~keep).sum())) % 3]
    return x, keep, keep if why == "masked" else None


@each_kind
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("why", ["masked", "nonfinite"])
def test_a_vector_left_out_is_as_if_it_were_not_there(kind: str, groups: int, why: str) -> None:
    quantizer, compact = make(kind, groups=groups), make(kind, groups=groups)
    x, keep, mask = spoiled(why)
    label = -1 if why == "masked" else 0
    index = torch.full((60, groups)[: 1 + (groups > 1)], label)
    value = quantizer.decode(index).detach()
    codebook = quantizer.codebook.clone()
    x.requires_grad_()
    out, kept = quantizer(x, mask), compact(x.detach()[keep])
    (out.quantized.square().sum() + out.loss).backward()

    assert_bitwise_equal(out.indices, index.masked_scatter(keep if groups == 1 else keep[:, None], kept.indices))
    assert_bitwise_equal(out.quantized.detach()[keep], kept.quantized.detach())
    assert_bitwise_equal(out.quantized.detach()[~keep], value[~keep])
    assert_same_state(snapshot(quantizer), snapshot(compact))
    assert bool((x.grad[~keep] == 0).all())

    rows, indices = x.detach()[keep].reshape(-1, groups, 8 // groups), kept.indices.reshape(-1, groups)
    for term, loss in out.losses.items():
        assert_loss(loss, rows, codebook, indices, term)

    def gradient(dtype: torch.dtype) -> torch.Tensor:
        rows_ = rows.to(dtype).requires_grad_()
        step = dense_step(rows_, codebook.to(dtype), indices)
        (step.quantized.square().sum() + 0.25 * step.commitment).backward()
        return rows_.grad.reshape(-1, 8)

    assert_within_budget(x.grad[keep], gradient(torch.float64), gradient(torch.float32))


@each_kind
@pytest.mark.parametrize("why", ["masked", "nonfinite"])
def test_projections_never_see_what_is_left_out(kind: str, why: str) -> None:
    quantizer = make(kind, code_dim=4)
    x, keep, mask = spoiled(why)
    x.requires_grad_()
    out = quantizer(x, mask)
    (out.quantized.square().sum() + out.loss).backward()
    assert all(bool(p.grad.isfinite().all()) for p in [x, *quantizer.parameters()])
    assert bool((x.grad[~keep] == 0).all())
    assert why == "nonfinite" or bool((out.quantized[~keep] == 0).all())
    assert bool(quantizer.codebook.isfinite().all())


@pytest.mark.parametrize("kind", [*KINDS, *COMPOSED])
def test_five_spoiled_steps_of_fifty_leave_no_trace(kind: str) -> None:
    """Oracle: the 45 clean steps alone."""
    clean, disturbed = (compose(kind, **({"groups": 2} if kind in KINDS else {})) for _ in range(2))
    optimizers = [torch.optim.SGD([*q.parameters(), torch.zeros(1)], lr=0.1) for q in (clean, disturbed)]

    def step(number: int, x: torch.Tensor) -> None:
        quantizer, optimizer = (clean, disturbed)[number], optimizers[number]
        optimizer.zero_grad()
        x = x.clone().requires_grad_()
        out = quantizer(x)
        (out.quantized.square().sum() + out.loss).backward()
        optimizer.step()

    for turn in range(50):
        if turn % 10 == 7:
            step(1, torch.full((12, 8), torch.nan if turn % 20 == 7 else torch.inf))
            continue
        x = torch.randn(12, 8)
        step(0, x)
        step(1, x)
    assert_same_state(snapshot(disturbed), snapshot(clean))


@pytest.mark.parametrize("kind", [*KINDS, *COMPOSED])
@pytest.mark.parametrize("batch", ["nonfinite", "masked", "empty"])
def test_a_step_without_vectors_changes_nothing(kind: str, batch: str) -> None:
    quantizer = compose(kind, **({"groups": 2} if kind in KINDS else {}))
    quantizer(torch.randn(40, 8))
    before = snapshot(quantizer)
    n = 0 if batch == "empty" else 5
    x = torch.full((n, 8), torch.nan if batch == "nonfinite" else 1.0, requires_grad=True)
    out = quantizer(x, torch.zeros(n, dtype=torch.bool) if batch == "masked" else None)
    assert out.loss == 0
    (out.quantized.sum() + out.loss).backward()
    assert all(p.grad is None or not p.grad.any() for p in [x, *quantizer.parameters()])
    assert_same_state(snapshot(quantizer), before)


@each_kind
def test_evaluation_changes_no_state(kind: str) -> None:
    quantizer = make(kind).eval()
    before = snapshot(quantizer)
    quantizer(torch.randn(40, 8))
    quantizer.train().encode(torch.randn(40, 8))
    assert_same_state(snapshot(quantizer), before)


@each_kind
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_losses_are_float32_under_autocast_and_for_bfloat16(kind: str, metric: str) -> None:
    # the same numbers, given in float32 without autocast, are the oracle
    x = torch.randn(40, 8).bfloat16()
    expected = make(kind, metric=metric)(x.float())
    for dtype in (torch.bfloat16, torch.float32):
        quantizer = make(kind, metric=metric)
        with torch.autocast("cpu", torch.bfloat16):
            out = quantizer(x.to(dtype))
        assert out.quantized.dtype == dtype
        assert_bitwise_equal(out.loss.detach(), expected.loss.detach())
        assert_bitwise_equal(out.quantized.detach(), expected.quantized.detach().to(dtype))
        assert torch.equal(out.indices, expected.indices)


def test_autocast_reaches_the_projections_but_not_the_loss() -> None:
    quantizer = make("learned", code_dim=4)
    x = torch.randn(40, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(x)
        rows = quantizer.project_in(x)
    assert rows.dtype == torch.bfloat16
    assert (out.quantized.dtype, out.loss.dtype) == (torch.float32, torch.float32)
    nearest = vqkernels.nearest_code(rows, quantizer.codebook[0])
    assert torch.equal(out.indices, nearest.indices)
    (out.quantized.sum() + out.loss).backward()
    assert all(bool(p.grad.isfinite().all()) for p in [x, *quantizer.parameters()])


def test_bfloat16_vectors_meet_float32_projections() -> None:
    quantizer = make("learned", code_dim=4)
    x = torch.randn(40, 8).bfloat16()
    out, expected = quantizer(x), quantizer(x.float())
    assert torch.equal(out.indices, expected.indices)
    assert_bitwise_equal(out.quantized.detach(), expected.quantized.detach().bfloat16())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@each_kind
def test_a_module_cast_to_another_dtype_counts_what_it_counted(kind: str, dtype: torch.dtype) -> None:
    """Oracle: the counts of its own indices."""
    quantizer = make(kind).to(dtype)
    assert bool(quantizer.usage().perplexity.isfinite())
    before = snapshot(quantizer)
    out = quantizer(torch.randn(40, 8, dtype=dtype, requires_grad=True))
    out.loss.backward()
    assert bool(out.loss.isfinite())
    used = out.indices.reshape(-1).bincount(minlength=quantizer.num_codes) > 0
    assert torch.equal(quantizer.statistics.last_used[0] > 0, used)
    usage = quantizer.usage()
    assert usage.utilization == used.float().mean()
    assert 1 < usage.perplexity <= quantizer.num_codes
    if kind.startswith(("ema", "online")):
        assert not torch.equal(quantizer.table.weight, before["table.weight"])


def test_float64_vectors_keep_their_precision() -> None:
    quantizer = make("learned", metric="cosine")
    x = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)
    out = quantizer(x)
    step = dense_step(x[:, None], quantizer.codebook.double(), out.indices[:, None], "cosine")
    assert out.loss.dtype == torch.float64
    (expected,) = torch.autograd.grad(step.commitment, x)
    (actual,) = torch.autograd.grad(out.losses["commitment"], x)
    # the codes were scaled to unit length in float32 at one place and here again
    assert_within_budget(actual, expected, expected * (1 + 2.0**-20))


@each_kind
def test_every_backend_trains_the_same_bits(kind: str) -> None:
    results = []
    for backend in usable_backends("nearest_code", "gather_codes", "code_stats", "ema_update_"):
        # few codes: each is a lookup when the codebook is fitted, and interpreted ones take long
        quantizer = make(kind, num_codes=8, groups=2, backend=backend)
        x = torch.randn(30, 8, generator=torch.Generator().manual_seed(1), requires_grad=True)
        (quantizer(x).loss + quantizer(x).quantized.sum()).backward()
        gradients = {name: p.grad for name, p in quantizer.named_parameters()}
        results.append({**snapshot(quantizer), **gradients, "x": x.grad})
    for result in results[1:]:
        assert_same_state(result, results[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 0}, ValueError, r"dim: expected an integer in \[1, 2\^31\), got 0"),
        ({"num_codes": 0}, ValueError, "num_codes"),
        ({"groups": 3}, ValueError, "groups: expected a divisor of the code width 8, got 3"),
        ({"metric": "l1"}, ValueError, "metric"),
        ({"gradient": "gumbel"}, ValueError, "gradient"),
        ({"backend": "abacus"}, ValueError, "backend"),
        ({"usage_window": 0}, ValueError, "usage_window"),
        (
            {"codebook": "ema"},
            TypeError,
            "codebook: expected Learned or OnlineClustering or SemanticClustering or Ema or Frozen, got str",
        ),
        ({"codebook": vqkernels.Frozen(features=torch.randn(5, 3))}, ValueError, "features: expected"),
        ({"codebook": vqkernels.Frozen(features=torch.randn(16, 3), projector=False)}, ValueError, "features"),
    ],
)
def test_constructor_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VectorQuantizer(**{"dim": 8, "num_codes": 16, **options})


def test_call_errors() -> None:
    quantizer = VectorQuantizer(8, 16, groups=2)
    for call, error, message in (
        (
            lambda: quantizer(torch.randn(3, 7)),
            ValueError,
            r"x: expected \[..., dim\] with dim=8, got shape \[3, 7\]",
        ),
        (lambda: quantizer(torch.zeros(3, 8, dtype=torch.int64)), TypeError, "x: expected a floating point"),
        (lambda: quantizer(torch.randn(3, 8), torch.ones(3)), TypeError, "mask: expected bool, got torch.float32"),
        (lambda: quantizer(torch.randn(3, 8), torch.ones(4, dtype=torch.bool)), ValueError, "mask: expected shape"),
        (lambda: quantizer.decode(torch.zeros(3, 3, dtype=torch.int64)), ValueError, "indices: expected"),
        (lambda: quantizer.decode(torch.full((3, 2), 16)), IndexError, "indices: expected values in"),
        (lambda: quantizer.fit_codebook([]), ValueError, "batches: expected at least one finite vector, got none"),
    ):
        with pytest.raises(error, match=message):
            call()
