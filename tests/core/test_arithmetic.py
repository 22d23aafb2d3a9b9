"""Threads told to flush subnormal numbers to zero compute as others do. Oracle: the same calls in a thread that was
not told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from needs import needs_extension

import vqkernels
from vqkernels.testing import assert_bitwise_equal

pytestmark = needs_extension

N, K, D = 20_000, 64, 8


@contextmanager
def flushed() -> Iterator[None]:
    """Subnormal numbers are zero in this thread, as far as the processor can do that."""
    if not torch.set_flush_denormal(True):
        pytest.skip("the machine's processor does not flush subnormal numbers")
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def subnormal(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 1000, (rows, D), generator=generator, dtype=torch.int32).view(torch.float32)


def near(rows: int, seed: int) -> torch.Tensor:
    """Normal numbers whose squared distances are subnormal."""
    generator = torch.Generator().manual_seed(seed)
    return 1e-19 + 1e-21 * torch.randn(rows, D, generator=generator)


CALLS: dict[str, Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "nearest_code": lambda x, codes: tuple(vqkernels.nearest_code(x, codes, backend="cpu")),
    "top_codes": lambda x, codes: tuple(vqkernels.top_codes(x, codes, 5, backend="cpu")),
    "code_stats": lambda x, codes: tuple(vqkernels.code_stats(x, torch.arange(N) % K, K, backend="cpu")),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("call", "inputs"),
    # sums of the latter are normal
    [*((call, subnormal) for call in CALLS), ("nearest_code", near), ("top_codes", near)],
)
def test_flushing_subnormal_numbers_changes_no_bit(
    call: str, inputs: Callable[[int, int], torch.Tensor], threads: int
) -> None:
    x, codes, before = inputs(N, 1), inputs(K, 2), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        expected = CALLS[call](x, codes)  # from here on all threads exist
        with flushed():
            found = CALLS[call](x, codes)
            assert not (torch.tensor(1e-40) * torch.tensor(1.0)).item()  # and it stays as it was asked for
    finally:
        torch.set_num_threads(before)
    for ours, truth in zip(found, expected, strict=True):
        assert_bitwise_equal(ours, truth)
