"""How tensor cores add, and what the proofs assume of it.

Oracle: exact products, summed in float64. On a GPU the kernels' own scores are held against the bound; without one,
the same code is interpreted, and an emulation of a tensor core at its worst shows that the adversary is one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from bench.gpu.adversary import Adversary, adversary, share
from bench.gpu.bounds import KERNELS
from vqkernels.ops.nearest_code import triton as lookup
from vqkernels.testing import interpreted

COLUMNS = (16, 48, 144, 272)
DEVICE = torch.device("cpu" if interpreted("triton") else "cuda")


@pytest.mark.parametrize(
    ("kernel", "d"),
    [
        pytest.param(name, d, marks=() if DEVICE.type == "cpu" else pytest.mark.gpu)
        for name, (_, dims) in KERNELS.items()
        for d in dims
    ],
)
def test_kernels_add_as_exactly_as_is_assumed(kernel: str, d: int) -> None:
    sums = KERNELS[kernel][0](d, DEVICE)
    greatest, _ = sums.share
    # whatever else a unit does, it ends in float32: some sum is off by a quarter of its last place at least
    assert 2.0**-26 / sums.bound < greatest < 1


def to_zero(a: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """float64 to 24 bits, towards zero."""
    mantissa, exponent = np.frexp(a)
    cut: npt.NDArray[np.float64] = np.ldexp(np.trunc(np.ldexp(mantissa, 24)), exponent - 24)
    return cut


def truncating(problem: Adversary, at_once: int) -> torch.Tensor:  # [N, K]
    """Products aligned to the largest of them and the sum so far, 24 bits of each kept, and of their sum."""
    rows, codes = problem.rows.double().numpy(), problem.codes.double().numpy()
    total = np.zeros((len(rows), len(codes)))
    for start in range(0, rows.shape[1], at_once):
        part = slice(start, start + at_once)
        terms = np.concatenate([np.einsum("nd,kd->dnk", rows[:, part], codes[:, part]), total[None]])
        _, exponent = np.frexp(np.abs(terms).max(0))
        total = to_zero(np.ldexp(np.trunc(np.ldexp(terms, 24 - exponent)), exponent - 24).sum(0))
    return torch.from_numpy(total)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("at_once", [1, 4, 16])
def test_the_adversary_finds_what_truncation_loses(columns: int, at_once: int) -> None:
    """Nearly one unit in the last place of the sum for every product but one, which is a quarter of the bound."""
    problem = adversary(columns, torch.float16)
    bound = lookup.accumulation_error(lookup.Layout(1, columns, 1, 0))
    greatest, row = share(truncating(problem, at_once), problem, bound)
    assert 0.98 * (columns - 1) / columns / 4 < greatest < 0.26
    assert row.startswith("one large")
    # units that round, as the float32 of a processor does, lose half as much at most
    rounded, _ = share(problem.rows.float() @ problem.codes.float().T, problem, bound)
    assert rounded < 0.6 * greatest


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_products_of_an_adversary_are_exact(dtype: torch.dtype) -> None:
    """And finite in float32; a wrong sum is seen, and one that is no number."""
    problem = adversary(48, dtype)
    assert bool(problem.rows.isfinite().all())
    assert bool(problem.codes.isfinite().all())
    assert 0 < float(problem.magnitude.min()) < float(problem.magnitude.max()) < 2.0**48
    assert share(problem.exact, problem, 2.0**-30)[0] == 0
    wrong = problem.exact + 2.0**-20 * problem.magnitude
    assert share(wrong, problem, 2.0**-20)[0] == pytest.approx(1, rel=1e-6)
    wrong[3, 2] = torch.nan
    assert share(wrong, problem, 2.0**-20) == (float("inf"), problem.names[3])
