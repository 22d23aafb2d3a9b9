"""``ema_update_`` on every backend. Oracle: the formulas of its docstring in float64."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from vqkernels import ema_update_
from vqkernels.testing import assert_bitwise_equal, assert_within_budget

OPS = ("ema_update_",)


class State(NamedTuple):
    codebook: torch.Tensor  # [G, K, D]
    cluster_size: torch.Tensor  # [G, K]
    embed_sum: torch.Tensor  # [G, K, D]

    def copy(self, dtype: torch.dtype | None = None) -> State:
        return State(*(t.detach().to(dtype or t.dtype, copy=True) for t in self))


class Step(NamedTuple):
    count: torch.Tensor  # [G, K]
    total: torch.Tensor  # [G, K, D]

    def to(self, dtype: torch.dtype) -> Step:
        return Step(*(t.to(dtype) for t in self))


def make(g: int, k: int, d: int, dtype: torch.dtype = torch.float32) -> tuple[State, Step]:
    state = State(torch.randn(g, k, d), 10 * torch.rand(g, k), torch.randn(g, k, d))
    return state.copy(dtype), Step(torch.randint(0, 5, (g, k)).float(), torch.randn(g, k, d)).to(dtype)


def written_out(state: State, step: Step, decay: float, eps: float, normalize: bool) -> State:
    """One update in the dtype of the state; only for finite steps and, with ``eps=0``, codes in use."""
    size = decay * state.cluster_size + (1 - decay) * step.count
    total = decay * state.embed_sum + (1 - decay) * step.total
    if eps > 0:
        n = size.sum(1, keepdim=True)
        codebook = total / ((size + eps) / (n + size.shape[1] * eps) * n)[..., None]
    else:
        codebook = total / size[..., None]
    if normalize:
        codebook = codebook / codebook.norm(dim=2, keepdim=True)
    return State(codebook, size, total)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 1.0])
@pytest.mark.parametrize(("g", "k", "d"), [(1, 1, 1), (3, 40, 7), (2, 3000, 33)])
def test_formulas(g: int, k: int, d: int, decay: float, eps: float, normalize: bool, backend: str) -> None:
    state, step = make(g, k, d)
    step = step._replace(count=step.count + 1)  # every code in use
    exact = written_out(state.copy(torch.float64), step.to(torch.float64), decay, eps, normalize)
    plain = written_out(state, step, decay, eps, normalize)
    ema_update_(*state, *step, decay=decay, eps=eps, normalize=normalize, backend=backend)
    for actual, truth, reference in zip(state, exact, plain, strict=True):
        assert_within_budget(actual, truth, reference)


def test_float64_state(backend: str) -> None:
    state, step = make(2, 50, 5, torch.float64)
    step = step._replace(count=step.count + 1)
    exact = written_out(state, step, 0.9, 1e-3, False)
    ema_update_(*state, *step, decay=0.9, eps=1e-3, backend=backend)
    # a moving average takes 4 roundings, the smoothing a sum of K and 5 more
    operations = 50 + 12
    for actual, truth in zip(state, exact, strict=True):
        magnitude = truth.abs().clamp(min=float(truth.abs().max()))
        assert bool(((actual - truth).abs() <= 2 * operations * 2.0**-53 * magnitude).all())


def test_flat_state_is_one_group(backend: str) -> None:
    state, step = make(1, 20, 6)
    flat = [t[0].clone() for t in (*state, *step)]
    ema_update_(*state, *step, decay=0.8, backend=backend)
    ema_update_(*flat, decay=0.8, backend=backend)
    for grouped, alone in zip(state, flat, strict=False):
        assert_bitwise_equal(grouped[0], alone)


def test_groups_do_not_mix(backend: str) -> None:
    state, step = make(4, 20, 6)
    alone = [[t[g].clone() for t in (*state, *step)] for g in range(4)]
    ema_update_(*state, *step, decay=0.8, backend=backend)
    for g, tensors in enumerate(alone):
        ema_update_(*tensors, decay=0.8, backend=backend)
        for grouped, single in zip(state, tensors, strict=False):
            assert_bitwise_equal(grouped[g], single)


def test_same_bits_at_any_thread_count(backend: str) -> None:
    start, step = make(2, 5000, 16)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        state = start.copy()
        ema_update_(*state, *step, decay=0.9, normalize=True, backend=backend)
        results.append(state)
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            assert_bitwise_equal(actual, expected)


def test_without_smoothing_an_unused_code_keeps_its_value(backend: str) -> None:
    state, step = make(1, 6, 3)
    for tensor in (state.cluster_size, state.embed_sum, *step):
        tensor[0, 2:4] = 0
    before = state.copy()
    ema_update_(*state, *step, decay=0.9, eps=0.0, normalize=True, backend=backend)
    assert_bitwise_equal(state.codebook[0, 2:4], before.codebook[0, 2:4])
    assert bool((state.codebook[0, 4:] != before.codebook[0, 4:]).all())


def test_no_vector_ever_seen_leaves_the_codebook(backend: str) -> None:
    state = State(torch.randn(1, 4, 3), torch.zeros(1, 4), torch.zeros(1, 4, 3))
    before = state.copy()
    ema_update_(*state, torch.zeros(1, 4), torch.zeros(1, 4, 3), decay=0.9, backend=backend)
    for actual, expected in zip(state, before, strict=True):
        assert_bitwise_equal(actual, expected)


def test_normalize_keeps_a_zero_code_zero(backend: str) -> None:
    state, step = make(1, 5, 4)
    state.embed_sum[0, 1], step.total[0, 1] = 0, 0
    ema_update_(*state, *step, decay=0.9, normalize=True, backend=backend)
    assert state.codebook[0, 1].tolist() == [0.0] * 4
    lengths = state.codebook[0].double().norm(dim=1)
    # a float32 norm, a division per coordinate
    assert bool(((lengths - 1).abs()[[0, 2, 3, 4]] <= 4 * 2.0**-24).all())


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_a_nonfinite_step_leaves_that_code_alone(eps: float, backend: str) -> None:
    state, step = make(2, 8, 3)
    step = step._replace(count=step.count + 1)
    clean = State(*state.copy()), Step(*(t.clone() for t in step))
    step.count[0, 1], step.count[1, 6] = torch.nan, torch.inf
    step.total[0, 2, 1], step.total[1, 3, 0] = torch.nan, -torch.inf
    hit = torch.zeros(2, 8, dtype=torch.bool)
    hit[0, 1], hit[0, 2], hit[1, 3], hit[1, 6] = True, True, True, True
    before = state.copy()
    ema_update_(*state, *step, decay=0.9, eps=eps, backend=backend)
    for actual, expected in zip(state, before, strict=True):
        assert_bitwise_equal(actual[hit], expected[hit])
    # the others move as if the step had repeated the averages of the codes that were hit
    quiet, quiet_step = clean
    quiet_step.count[hit], quiet_step.total[hit] = quiet.cluster_size[hit], quiet.embed_sum[hit]
    exact = written_out(quiet.copy(torch.float64), quiet_step.to(torch.float64), 0.9, eps, False)
    plain = written_out(quiet, quiet_step, 0.9, eps, False)
    for actual, truth, reference in zip(state, exact, plain, strict=True):
        assert_within_budget(actual[~hit], truth[~hit], reference[~hit])


def test_writes_in_place_and_nothing_else(backend: str) -> None:
    state, step = make(1, 10, 4)
    before, addresses = Step(*(t.clone() for t in step)), [t.data_ptr() for t in state]
    codebook = torch.nn.Parameter(state.codebook)
    returned = ema_update_(codebook, *state[1:], *step, decay=0.5, backend=backend)
    assert returned is None
    assert [t.data_ptr() for t in (codebook, *state[1:])] == addresses
    assert codebook.requires_grad
    for actual, expected in zip(step, before, strict=True):
        assert_bitwise_equal(actual, expected)


def test_autograd_sees_the_write(backend: str) -> None:
    """A backward that still needs the old codebook must fail, not use the new one."""
    state, step = make(1, 10, 4)
    weight = torch.ones(1, requires_grad=True)
    loss = (weight * state.codebook).sum()
    ema_update_(*state, *step, decay=0.5, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_statistics_may_be_strided_or_of_another_dtype(backend: str) -> None:
    state, step = make(2, 10, 4)
    other = state.copy()
    ema_update_(*state, *step, decay=0.5, backend=backend)
    count, total = step.count.double().t().contiguous().t(), step.total.double().mT.contiguous().mT
    ema_update_(*other, count, total, decay=0.5, backend=backend)
    for actual, expected in zip(other, state, strict=True):
        assert_bitwise_equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_state_of_16_bits_moves_in_float32(dtype: torch.dtype, backend: str) -> None:
    state, step = make(2, 10, 4)
    state = state.copy(dtype)
    wide = state.copy(torch.float32)
    ema_update_(*state, *step, decay=0.9, backend=backend)
    ema_update_(*wide, *step, decay=0.9, backend=backend)
    for actual, expected in zip(state, wide, strict=True):
        assert_bitwise_equal(actual, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_a_state_stays_finite_whatever_finite_step_comes(dtype: torch.dtype, backend: str) -> None:
    largest = torch.finfo(dtype).max
    state, step = make(1, 8, 3)
    state, step = state.copy(dtype), step.to(torch.float64)
    # a sum that 16 bits cannot hold, a code of hardly any size, and a sum at the end of the range
    state.cluster_size[0, 1], step.count[0, 1] = 2.0**-14, 0
    state.embed_sum[0, 1], step.total[0, 1] = largest / 2, 0
    step.total[0, 2] = 0.99 * largest if dtype != torch.float16 else 1e6
    before = state.copy()
    ema_update_(*state, *step, decay=0.9, eps=0.0, backend=backend)
    assert all(bool(t.isfinite().all()) for t in state)
    assert_bitwise_equal(state.codebook[0, 1], before.codebook[0, 1])
    if dtype == torch.float16:
        for actual, expected in zip(state, before, strict=True):
            assert_bitwise_equal(actual[0, 2], expected[0, 2])
    assert not torch.equal(state.codebook[0, 3:], before.codebook[0, 3:])
