"""Distances that the C++ passes remember from a forward to its backward: the same bits as measured again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from needs import needs_extension
from variants import variants

from vqkernels import soft_assignment_entropy
from vqkernels._core.env import pairs_bytes
from vqkernels.ops.soft_assignment_entropy import cpu
from vqkernels.testing import assert_bitwise_equal

pytestmark = needs_extension
SETTING = "VQKERNELS_PAIRS_MIB"
D = 130  # enough for remembering to pay


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of every backward: had it the pairs of its forward?"""
    found: list[bool] = []
    pairs_of = cpu._pairs_of

    def noted(*args: Any) -> torch.Tensor | None:
        pairs = pairs_of(*args)
        found.append(pairs is not None)
        return pairs

    monkeypatch.setattr(cpu, "_pairs_of", noted)
    return found


def problem(n: int, k: int, d: int = D, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple((torch.randn(count, 2, d, dtype=dtype) / d**0.5) for count in (n, k))  # type: ignore[return-value]


def run(x: torch.Tensor, codes: torch.Tensor, temperature: float = 0.3, **options: Any) -> list[torch.Tensor]:
    """Results and gradients, these twice: a backward must leave what is remembered as it was."""
    x, codebook = x.clone().requires_grad_(), codes.transpose(0, 1).clone().requires_grad_()
    tau = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    result = soft_assignment_entropy(x, codebook, temperature=tau, backend="cpu", **options)
    loss = (result.sample - 0.7 * result.usage).sum()
    first = torch.autograd.grad(loss, (x, codebook, tau), retain_graph=True)
    second = torch.autograd.grad(loss, (x, codebook, tau))
    for a, b in zip(first, second, strict=True):
        assert_bitwise_equal(a, b)
    return [t.detach() for t in (*result, *first)]


@pytest.mark.parametrize("isa", [isa for kernel, isa in variants("soft_assignment_entropy") if kernel == "cpu"])
@pytest.mark.parametrize(
    ("n", "k", "metric", "smoothing", "dtype"),
    [
        (131, 300, "l2", "none", torch.float32),
        (7, 700, "cosine", "clamp", torch.float32),
        (50, 77, "dot", "none", torch.float64),
        (5, 12000, "euclidean", "clamp", torch.float64),  # more codes than a batch of the backward keeps
    ],
)
def test_the_same_bits(
    n: int,
    k: int,
    metric: str,
    smoothing: str,
    dtype: torch.dtype,
    isa: str,
    remembered: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    x, codes = problem(n, k, dtype=dtype)
    options = {"metric": metric, "smoothing": smoothing}
    monkeypatch.setenv(SETTING, "0")
    expected = run(x, codes, **options)
    monkeypatch.setenv(SETTING, "64")
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for a, b in zip(run(x, codes, **options), expected, strict=True):
            assert_bitwise_equal(a, b)
    assert remembered == [False] * 2 + [True] * 4


def test_slices_of_dimensions(remembered: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Dimensions of which a block of codes does not fit the first level cache."""
    x, codes = problem(9, 70, 1100)
    expected = run(x, codes)
    monkeypatch.setenv(SETTING, "0")
    for a, b in zip(run(x, codes), expected, strict=True):
        assert_bitwise_equal(a, b)
    assert remembered == [True] * 2 + [False] * 2


def test_a_group_that_float32_does_not_suffice_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pairs are of twice the size and measured again; those of the other group are not."""
    x, codes = problem(40, 90)
    x[:, 1] *= 1e3
    expected = run(x, codes)
    monkeypatch.setenv(SETTING, "0")
    for a, b in zip(run(x, codes), expected, strict=True):
        assert_bitwise_equal(a, b)


def test_no_more_than_the_budget(remembered: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SETTING, "1")
    run(*problem(252, 512))  # two groups of 252 x 512: 8 KiB below
    run(*problem(264, 512))
    assert remembered == [True] * 2 + [False] * 2


def test_only_for_a_backward_and_long_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    with_pairs = cpu._with_pairs

    def noted(given: Any, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(size)
        return with_pairs(given, size)

    monkeypatch.setattr(cpu, "_with_pairs", noted)
    x, codes = torch.randn(24, D), torch.randn(64, D, requires_grad=True)
    with torch.no_grad():
        soft_assignment_entropy(x, codes, backend="cpu")
    soft_assignment_entropy(x, codes.detach(), backend="cpu")
    soft_assignment_entropy(x[:, :8], codes[:, :8], backend="cpu")
    assert not sizes
    soft_assignment_entropy(x, codes, backend="cpu")
    assert sizes == [24 * 64 * 4]


def test_copies_of_what_is_saved(remembered: list[bool]) -> None:
    """Saved tensors that hooks have moved elsewhere and back have lost the pairs; the gradients are the same."""
    x, codes = problem(30, 50)
    expected = run(x, codes)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        for a, b in zip(run(x, codes), expected, strict=True):
            assert_bitwise_equal(a, b)
    assert remembered == [True] * 2 + [False] * 2


def test_a_storage_that_only_looks_like_it(remembered: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the same size whose mark is another's: a byte-wise copy."""

    def copied(t: torch.Tensor) -> torch.Tensor:
        return torch.empty(0, dtype=t.dtype).set_(t.untyped_storage().clone(), 0, t.shape, t.stride())

    x, codes = problem(30, 50)
    expected = run(x, codes)
    with torch.autograd.graph.saved_tensors_hooks(copied, lambda t: t):
        for a, b in zip(run(x, codes), expected, strict=True):
            assert_bitwise_equal(a, b)
    assert remembered == [True] * 2 + [False] * 2


@pytest.mark.parametrize("given", ["", "-1", "1.5", "many", "1" * 12])
def test_a_setting_that_is_none(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(SETTING, given)
    with pytest.raises(ValueError, match=r"^VQKERNELS_PAIRS_MIB: expected a number of MiB, 0 or more, got '"):
        pairs_bytes()
