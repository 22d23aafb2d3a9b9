"""What quantizers are put together from: regularizers, samples, gradients for all codes, nested groups, stages.

Oracles: dense formulas in float64, exact integer data, binomial bounds, the quantizers themselves one by one.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from nn_oracle import assert_same_state, snapshot
from rounding import farthest, in_their_last_bits
from torch.utils._python_dispatch import TorchDispatchMode

import vqkernels
from vqkernels import Ema, FullCodebook, Learned, Regularizer, ResidualQuantizer, VectorQuantizer
from vqkernels.nn import LLAMAGEN_ENTROPY, EntropyLoss
from vqkernels.testing import assert_bitwise_equal, assert_within_budget

WIDE = Learned(init_scale=1.0)


def test_a_regularizer_is_a_weighted_loss() -> None:
    torch.manual_seed(0)
    entropy = EntropyLoss(temperature=2.0)
    part = Regularizer(name="entropy", loss=entropy, weight=0.3)
    quantizer = VectorQuantizer(8, 32, groups=2, codebook=WIDE, regularizers=[part])
    x, mask = torch.randn(40, 8), torch.rand(40) > 0.3
    out = quantizer(x, mask)
    want = entropy(x.reshape(40, 2, 4)[mask], quantizer.codebook)
    torch.testing.assert_close(out.losses["entropy"].detach(), want, rtol=1e-5, atol=0)
    total = 0.25 * out.losses["commitment"] + out.losses["codebook"] + 0.3 * out.losses["entropy"]
    assert_bitwise_equal(out.loss, total)
    out.loss.backward()
    # every code learns from the entropy, in use or not
    assert bool((quantizer.table.weight.grad != 0).any(-1).all())


def test_a_regularizer_sees_what_is_compared() -> None:
    """For the cosine that is directions, of vectors and of codes of any length."""
    torch.manual_seed(0)
    part = Regularizer(name="entropy", loss=LLAMAGEN_ENTROPY, weight=0.1)
    quantizer = VectorQuantizer(8, 32, metric="cosine", regularizers=[part])
    x = torch.randn(40, 8)
    with torch.no_grad():
        quantizer.table.weight.mul_(torch.rand(32, 1) + 0.5)
    want = LLAMAGEN_ENTROPY(torch.nn.functional.normalize(x, dim=1)[:, None], quantizer.codebook)
    torch.testing.assert_close(quantizer(x).losses["entropy"].detach(), want)


class Calls(TorchDispatchMode):
    """Counts every operator that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(func.overloadpacket)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("groups", [1, 2])
def test_lookup_and_entropy_are_one_call_each_and_nothing_at_weight_zero(groups: int) -> None:
    """Operators of a whole training step, for all groups together; at weight 0 those of a step without the part."""

    def step(*weights: float) -> Counter[str]:
        torch.manual_seed(0)
        parts = [Regularizer(name="entropy", loss=LLAMAGEN_ENTROPY, weight=weight) for weight in weights]
        quantizer = VectorQuantizer(8, 32, groups=groups, codebook=WIDE, regularizers=parts)
        x = torch.randn(20, 8, requires_grad=True)
        with Calls() as calls:
            quantizer(x).loss.backward()
        return calls.counts

    assert step(0.0) == step()
    ours = {name: count for name, count in step(0.1).items() if name.startswith("vqkernels.")}
    entropy = {f"vqkernels.soft_assignment_entropy{direction}": 1 for direction in ("", "_backward")}
    assert ours == {**{name: count for name, count in step().items() if name.startswith("vqkernels.")}, **entropy}
    assert ours["vqkernels.nearest_code"] == 1


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_full_codebook_gradient_is_that_of_dense_scores(
    metric: str, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunked:
        monkeypatch.setattr("vqkernels.nn.scores._PAIRS", 100)
    torch.manual_seed(0)
    quantizer = VectorQuantizer(8, 32, codebook=WIDE, metric=metric, gradient=FullCodebook(temperature=0.7))
    x, cotangent = torch.randn(50, 8), torch.randn(50, 8)
    given = x.clone().requires_grad_()
    out = quantizer(given)
    (out.quantized * cotangent).sum().backward()

    def wanted(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, codes = (t.detach().requires_grad_() for t in tensors)
        score = rows @ codes.T if metric == "dot" else -(rows[:, None] - codes).square().sum(-1)
        soft = (score / 0.7).softmax(1)
        hard = torch.nn.functional.one_hot(out.indices, 32).to(rows.dtype)
        # index backpropagation as published: the assignment is hard in value and soft in gradient
        objective = ((hard + soft - soft.detach()) @ codes * cotangent.to(rows.dtype)).sum()
        return torch.autograd.grad(objective, (rows, codes))

    assert_bitwise_equal(out.quantized, quantizer.codebook[0][out.indices])
    truth = wanted(x.double(), quantizer.codebook[0].double())
    runs = [wanted(*moved) for moved in in_their_last_bits([x, quantizer.codebook[0]])]
    for got, want, *plain in zip((given.grad, quantizer.table.weight.grad[0]), truth, *runs, strict=True):
        assert_within_budget(got, want, farthest(want, plain), factor=4.0)


def test_codes_are_sampled_in_proportion_to_their_softmax() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 8, codebook=WIDE, sampling_temperature=0.8)
    x = torch.randn(1, 4)
    n = 20000
    indices = quantizer(x.expand(n, 4)).indices
    p = (-(x.double() - quantizer.codebook[0].double()).square().sum(1) / 0.8).softmax(0)
    share = torch.bincount(indices, minlength=8) / n
    # five standard deviations of each of eight frequencies
    assert bool(((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1 / n).all())
    assert quantizer.eval()(x).indices.item() == p.argmax()


def test_samples_are_a_function_of_the_state() -> None:
    torch.manual_seed(0)
    first, second = (VectorQuantizer(4, 64, codebook=WIDE, sampling_temperature=1.0) for _ in range(2))
    x = torch.randn(200, 4)
    first(x)
    second.load_state_dict(first.state_dict())
    a, b = first(x).indices, second(x).indices
    assert_bitwise_equal(a, b)
    assert not torch.equal(first(x).indices, a)


def test_nested_groups_are_kept_from_the_first_on() -> None:
    torch.manual_seed(0)
    probs = (0.1, 0.2, 0.3, 0.4)
    quantizer = VectorQuantizer(8, 16, groups=4, codebook=WIDE, nested_keep_probs=probs)
    x = torch.randn(4000, 3, 8)
    out = quantizer(x)
    kept = out.indices >= 0
    assert bool((kept[..., 1:] <= kept[..., :-1]).all())
    assert bool((kept == kept[:, :1]).all())
    share = torch.bincount(kept[:, 0].sum(-1), minlength=5)[1:] / 4000
    expected = torch.tensor(probs)
    assert bool(((share - expected).abs() <= 5 * (expected * (1 - expected) / 4000).sqrt()).all())
    quantizer.eval()
    full = quantizer(x)
    assert_bitwise_equal(quantizer.decode(out.indices), out.quantized)
    assert_bitwise_equal(torch.where(kept, full.indices, -1), out.indices)
    error = (x.reshape(-1, 4, 2) - full.quantized.reshape(-1, 4, 2)).square().sum(-1)
    want = error[kept.reshape(-1, 4)].double().sum() / (kept.sum() * 2)
    torch.testing.assert_close(out.losses["commitment"].double(), want, rtol=1e-5, atol=0)


def test_nested_groups_of_a_whole_batch_are_as_many_for_every_entry() -> None:
    probs = (0.3, 0.3, 0.2, 0.2)
    quantizer = VectorQuantizer(8, 16, groups=4, codebook=WIDE, nested_keep_probs=probs, nested_scope="batch")
    kept = [(quantizer(torch.randn(5, 3, 8)).indices >= 0).sum(dim=-1) for _ in range(200)]  # each [5, 3]
    numbers = torch.stack([one.flatten() for one in kept])  # [200, 15]
    assert (numbers == numbers[:, :1]).all()
    counts = torch.bincount(numbers[:, 0], minlength=5)[1:]
    # binomial: five standard deviations of 200 draws
    for count, p in zip(counts.tolist(), probs, strict=True):
        assert abs(count - 200 * p) < 5 * (200 * p * (1 - p)) ** 0.5
    with pytest.raises(ValueError, match="nested_scope: expected one of entry, batch, got 'step'"):
        VectorQuantizer(8, 16, groups=4, nested_keep_probs=probs, nested_scope="step")


def test_dropped_groups_learn_and_pass_on_nothing() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(4, 16, groups=2, codebook=Ema(), nested_keep_probs=(1.0, 0.0))
    before = quantizer.codebook.clone()
    x = torch.randn(30, 4, requires_grad=True)
    out = quantizer(x)
    (out.quantized.sum() + out.loss).backward()
    assert not x.grad[:, 2:].any()
    assert bool(x.grad[:, :2].all())
    assert_bitwise_equal(quantizer.codebook[1], before[1])
    assert not torch.equal(quantizer.codebook[0], before[0])


@pytest.mark.parametrize("dead_after", [None, 50])
def test_accumulated_batches_are_one_step(dead_after: int | None) -> None:
    """Oracle: the batches at once; sums of small integers are exact."""
    torch.manual_seed(0)
    at_once, split = (
        VectorQuantizer(4, 8, codebook=Ema(decay=0.5, accumulate=m, dead_after=dead_after)) for m in (1, 3)
    )
    codes = torch.randint(-4, 5, (1, 8, 4)).float()
    for step in range(4):
        for quantizer in (at_once, split):
            if step == 0:
                quantizer.table.assign_(codes)
        parts = [torch.randint(-4, 5, (n, 4)).float() for n in (5, 0, 9)]
        at_once(torch.cat(parts))
        for number, part in enumerate(parts):
            before = split.codebook.clone()
            split(part)
            assert (number < 2) == torch.equal(split.codebook, before)
            # a checkpoint in the middle of a step
            resumed = VectorQuantizer(4, 8, codebook=Ema(decay=0.5, accumulate=3, dead_after=dead_after))
            resumed.load_state_dict(split.state_dict())
            split = resumed
        for name in ("weight", "cluster_size", "embed_sum"):
            assert_bitwise_equal(getattr(split.table, name), getattr(at_once.table, name))


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("codebook", [WIDE, Ema()])
def test_stages_quantize_what_is_left(codebook: Any, channels_first: bool) -> None:
    """Oracle: the stages called one by one; one straight-through gradient."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"codebook": codebook, "channels_first": channels_first, "code_dim": 4}
    quantizer = ResidualQuantizer.build(3, 8, 16, **options)
    stages = ResidualQuantizer.build(3, 8, 16, **options)
    stages.load_state_dict(quantizer.state_dict())
    x = torch.randn(2, 8, 5) if channels_first else torch.randn(2, 5, 8)
    given = x.clone().requires_grad_()
    out = quantizer(given)
    (gradient,) = torch.autograd.grad(out.quantized.sum(), given, retain_graph=True)
    assert_bitwise_equal(gradient, torch.ones_like(x))
    residual, loss = x, torch.zeros(())
    columns = []
    for stage in stages.stages:
        result = stage(residual)
        columns.append(result.indices)
        residual, loss = residual - result.quantized.detach(), loss + result.loss
    assert_bitwise_equal(out.indices, torch.stack(columns, -1))
    # means of squares
    torch.testing.assert_close(out.loss, loss, rtol=(x.numel() + 8) * torch.finfo(x.dtype).eps, atol=0)
    torch.testing.assert_close(out.quantized, x - residual, rtol=0, atol=1e-5)
    assert_same_state(snapshot(quantizer), snapshot(stages))
    quantizer.eval()
    out = quantizer(x)
    assert_bitwise_equal(quantizer.encode(x), out.indices)
    assert_bitwise_equal(quantizer.decode(out.indices).detach(), out.quantized.detach())
    # fewer stages are nearer to nothing
    first = quantizer.decode(out.indices[..., :1])
    assert_bitwise_equal(first, quantizer.stages[0].decode(out.indices[..., 0]))


def test_dropout_keeps_the_first_stages_of_every_entry() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer.build(4, 4, 16, codebook=WIDE, dropout=0.5)
    before = quantizer.stages[3].table.weight.clone()
    out = quantizer(torch.randn(4000, 2, 4))
    kept = out.indices >= 0
    assert bool((kept[..., 1:] <= kept[..., :-1]).all())
    assert bool((kept == kept[:, :1]).all())
    share = torch.bincount(kept[:, 0].sum(-1), minlength=5)[1:] / 4000
    for got, want in zip(share.tolist(), (0.5 / 3, 0.5 / 3, 0.5 / 3, 0.5), strict=True):
        assert abs(got - want) <= 5 * math.sqrt(want * (1 - want) / 4000)
    quantizer.eval()
    torch.testing.assert_close(quantizer.decode(out.indices), out.quantized.detach(), rtol=0, atol=1e-6)
    assert_bitwise_equal(quantizer.stages[3].table.weight, before)


def test_stages_leave_out_what_is_masked_or_not_finite() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer.build(2, 4, 16, codebook=Ema())
    clean = ResidualQuantizer.build(2, 4, 16, codebook=Ema())
    clean.load_state_dict(quantizer.state_dict())
    x = torch.randn(10, 4)
    x[3] = torch.nan
    mask = torch.arange(10) != 7
    given = x.clone().requires_grad_()
    out = quantizer(given, mask)
    (out.quantized.sum() + out.loss).backward()
    assert quantizer.encode(x, mask)[[3, 7]].tolist() == [[-1, -1]] * 2
    assert out.indices[[3, 7]].tolist() == [[-1, -1]] * 2
    assert not out.quantized[[3, 7]].any()
    assert not given.grad[[3, 7]].any()
    clean(x[[0, 1, 2, 4, 5, 6, 8, 9]])
    for got, want in zip(quantizer.stages, clean.stages, strict=True):
        assert_bitwise_equal(got.codebook, want.codebook)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient": FullCodebook(), "codebook": Ema()}, "gradient: "),
        ({"sampling_temperature": 0.0}, "sampling_temperature: "),
        ({"groups": 2, "nested_keep_probs": (0.5, 0.4)}, "nested_keep_probs: "),
        ({"groups": 2, "nested_keep_probs": (1.0,)}, "nested_keep_probs: "),
    ],
)
def test_parts_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(4, 8, **arguments)


def test_stages_and_parts_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="stages: "):
        ResidualQuantizer([VectorQuantizer(4, 8), VectorQuantizer(6, 8)])
    with pytest.raises(ValueError, match="dropout: "):
        ResidualQuantizer.build(2, 4, 8, dropout=2.0)
    with pytest.raises(ValueError, match="indices: "):
        ResidualQuantizer.build(2, 4, 8).decode(torch.zeros(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="accumulate: "):
        Ema(accumulate=0)
    with pytest.raises(ValueError, match="temperature: "):
        FullCodebook(temperature=0)
    with pytest.raises(ValueError, match="name: "):
        Regularizer(name="commitment", loss=LLAMAGEN_ENTROPY, weight=1.0)


def test_compositions_compile_into_one_graph() -> None:
    torch._dynamo.reset()  # graphs of other tests count against the limit of this one
    torch.manual_seed(0)
    quantizer = VectorQuantizer(
        8,
        16,
        groups=2,
        codebook=Ema(accumulate=2, dead_after=3),
        sampling_temperature=1.0,
        nested_keep_probs=(0.5, 0.5),
    )
    full = VectorQuantizer(8, 16, codebook=WIDE, gradient=FullCodebook())
    for module in (quantizer, ResidualQuantizer.build(2, 8, 16, codebook=WIDE, dropout=0.5)):
        eager, x = copy.deepcopy(module), torch.randn(6, 8)
        graph = torch.compile(module, fullgraph=True, backend="aot_eager")
        # aot_eager runs the kernels of eager mode
        results = []
        for step in (eager, graph):
            given = x.clone().requires_grad_()
            out = step(given)
            (out.quantized.square().sum() + out.loss).backward()
            results.append((out.indices, out.quantized.detach(), out.loss.detach(), given.grad))
        for want, got in zip(*results, strict=True):
            assert_bitwise_equal(got, want)
        assert_same_state(snapshot(module), snapshot(eager))
    x = torch.randn(6, 8)
    gradients = []
    for step in (full, torch.compile(full, fullgraph=True, backend="aot_eager")):
        given = x.clone().requires_grad_()
        out = step(given)
        assert bool(out.loss.isfinite())
        gradients.append(torch.autograd.grad(out.quantized.square().sum(), (given, full.table.weight)))
    for want, got in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_the_drop_in_compiles_into_one_graph() -> None:
    torch.manual_seed(0)
    quantizer = vqkernels.VectorQuantize(8, 16)
    graph = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 6, 8, requires_grad=True)
    quantized, _, loss = graph(x)
    (quantized.sum() + loss).backward()
    assert x.grad is not None
