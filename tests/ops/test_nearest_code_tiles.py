"""Scores of the matrix unit: what they err by, against the bound that the lookup relies on.

Oracle: the exact score of the same float32 coordinates, summed in float64 by ``math.fsum``.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from tests.ops.variants import ISA_FLAGS, processor_flags

pytestmark = pytest.mark.skipif(not ISA_FLAGS["amx"] <= processor_flags(), reason="needs a processor with AMX")

DIMS = (1, 4, 8, 9, 10, 16, 31, 32, 64, 255, 256, 770)
LANES = 16


def tile_scores(
    negated: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor, products: int
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Scores ``[N, 16]``, squared remainders of the vectors ``[N]``, the largest of the codes."""
    kernels = pytest.importorskip("vqkernels._C")
    n, d = negated.shape
    scores, rest = torch.empty(n, LANES), torch.empty(n)
    x, c, b, out, left = (t.data_ptr() for t in (negated, codes, bias, scores, rest))
    code_rest = kernels.tile_scores(x, n, c, b, d, products, out, left)
    return scores, rest, code_rest


def just_above_half(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Numbers near 1 that lie almost half way between two bfloat16, and what is left of them, too."""
    steps = torch.randint(128, 140, shape, generator=generator) * 2.0**-7
    return steps + 2.0**-8 - 2.0**-16 - 2.0**-17 - 2.0**-23


def problem(kind: str, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(d)
    x, c = (torch.randn(rows, d, generator=generator) for rows in (n, LANES))
    if kind == "hard to split":
        x, c = just_above_half((n, d), generator), just_above_half((LANES, d), generator)
    elif kind == "far":
        x = x * 1e12
    elif kind == "tiny":
        x = x * 1e-30
    elif kind == "cancelling":
        x, c = torch.ones(n, d) + x * 1e-6, torch.ones(LANES, d) + c * 1e-6
        x[:, ::2] *= -1
    return x.contiguous(), c.contiguous()


@pytest.mark.parametrize("products", [1, 3])
@pytest.mark.parametrize("kind", ["gaussian", "hard to split", "far", "tiny", "cancelling"])
def test_scores_err_by_less_than_the_bound(kind: str, products: int) -> None:
    kernels = pytest.importorskip("vqkernels._C")
    largest = 0.0
    for d in DIMS:
        x, c = problem(kind, 37, d)
        bias = (c.double().square().sum(1) / 2).float()
        scores, rest, code_rest = tile_scores(-x, c, bias, products)
        remainders = [(t.double() - t.bfloat16().double()).square().sum(1) for t in (x, c)]
        within = (d + 6) * 2.0**-24
        torch.testing.assert_close(rest.double(), remainders[0], rtol=within, atol=1e-45)
        assert code_rest == pytest.approx(remainders[1].max().item(), rel=within)
        terms = -x.double()[:, None] * c.double()  # exact: 24 bits times 24 bits
        for row, code in product(range(37), range(LANES)):
            exact = math.fsum([bias[code].item(), *terms[row, code].tolist()])
            length, radius = (t.double().norm().item() for t in (x[row], c[code]))
            bound = kernels.tile_error(d, products) * (bias[code].item() + length * radius) + kernels.left_out(
                products, length, remainders[0][row].sqrt().item(), radius, code_rest**0.5
            )
            error = abs(scores[row, code].item() - exact) / (bound + 1e-36)
            assert error <= 1, (d, row, code)
            largest = max(largest, error)
    # a bound that nothing comes near would be waste, and a test of it blind
    if kind == "hard to split":
        assert largest > 0.5


@pytest.mark.parametrize("products", [1, 3])
def test_a_score_is_the_score_of_its_own_code(products: int) -> None:
    for d in DIMS:
        codes = torch.zeros(LANES, d)
        bias = torch.arange(LANES, dtype=torch.float32)
        assert torch.equal(tile_scores(torch.randn(5, d), codes, bias, products)[0], bias.expand(5, -1))
        x, ones = torch.arange(40.0)[:, None].repeat(1, d), torch.ones(LANES, d)
        expected = -x.sum(1, keepdim=True).expand(-1, LANES)
        assert torch.equal(tile_scores(-x, ones, torch.zeros(LANES), products)[0], expected)
