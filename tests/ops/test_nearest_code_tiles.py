"""Lower bounds of scores from the matrix unit: below the score, and not far below.

Oracle: the exact score of the same float32 coordinates, summed by ``math.fsum``.
"""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from needs import needs_extension
from variants import processor_isas

from vqkernels._core.extension import extension

pytestmark = [
    needs_extension,
    pytest.mark.skipif("amx" not in processor_isas(), reason="the machine's processor has no AMX"),
]

DIMS = (1, 4, 8, 9, 10, 16, 31, 32, 64, 255, 256, 770)
LANES = 16
KINDS = ("gaussian", "hard to split", "far", "tiny vectors", "tiny codes", "cancelling", "unlike lengths")


def tile_scores(negated: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor, products: int) -> torch.Tensor:
    """Lower bounds of scores ``[N, 16]``."""
    n, d = negated.shape
    scores = torch.empty(n, LANES)
    x, c, b, out = (t.data_ptr() for t in (negated, codes, bias, scores))
    extension().tile_scores(x, n, c, b, d, products, out)
    return scores


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
    elif kind == "unlike lengths":
        x, c = x * torch.logspace(-4, 4, n)[:, None], c * torch.logspace(-4, 4, LANES)[:, None]
    elif kind == "tiny vectors":
        x = x * torch.logspace(-30, -15, n)[:, None]
    elif kind == "tiny codes":
        c = c * torch.logspace(-30, -15, LANES)[:, None]
    elif kind == "cancelling":
        x, c = torch.ones(n, d) + x * 1e-6, torch.ones(LANES, d) + c * 1e-6
        x[:, ::2] *= -1
    return x.contiguous(), c.contiguous()


def allowed(x: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor, products: int) -> torch.Tensor:
    """What a score may be off by, ``[N, 16]``: what the parts leave out, by Cauchy-Schwarz, and rounding."""
    rounding = extension().tile_error(x.shape[1], products)
    (length, rest), (code_length, code_rest) = (
        (t.double().norm(dim=1), (t.double() - t.bfloat16().double()).norm(dim=1)) for t in (x, codes)
    )
    part = 1.01 * 2.0**-8  # of a remainder is what its nearest bfloat16 leaves
    of_code, of_rest = (rest, length + rest) if products == 1 else (part * rest, rest + part * length)
    of_code = of_code + rounding * length
    return of_code[:, None] * code_length + of_rest[:, None] * code_rest + (rounding + 2.0**-22) * bias.double()


@pytest.mark.parametrize("products", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_bounded_from_below(kind: str, products: int) -> None:
    least = most = 1.0
    for d in DIMS:
        x, c = problem(kind, 37, d)
        # squares of tiny entries underflow; a dot product is a score without any
        bias = torch.zeros(LANES) if "tiny" in kind else (c.double().square().sum(1) / 2).float()
        scores, error = tile_scores(-x, c, bias, products), allowed(x, c, bias, products)
        terms = -x.double()[:, None] * c.double()  # exact: 24 bits times 24 bits
        for row, code in product(range(37), range(LANES)):
            exact = math.fsum([bias[code].item(), *terms[row, code].tolist()])
            # 0: as high as can be, 1: exact but for the margin, 2: as low as can be
            distance = (exact - scores[row, code].item()) / (error[row, code].item() + 1e-36)
            assert distance >= 0, (d, row, code)
            least, most = min(least, distance), max(most, distance)
    # margins are rounded up to bfloat16 twice; those of tiny vectors and codes come from their largest entries
    assert most <= 2 * 1.04 or "tiny" in kind
    # a margin that nothing uses would be waste, and a test of it blind
    if kind == "hard to split":
        assert least < 0.5


@pytest.mark.parametrize("products", [1, 3])
def test_a_score_is_the_score_of_its_own_code(products: int) -> None:
    for d in DIMS:
        x, codes, bias = torch.randn(5, d), torch.zeros(LANES, d), torch.arange(LANES, dtype=torch.float32)
        assert (tile_scores(x, codes, bias, products).round() == bias).all()
        x, ones, zeros = torch.arange(40.0)[:, None].repeat(1, d), torch.ones(LANES, d), torch.zeros(LANES)
        lower = tile_scores(-x, ones, zeros, products).double()
        exact, error = -x.double().sum(1, keepdim=True), allowed(x, ones, zeros, products)
        assert (lower <= exact).all()
        assert (lower >= exact - 2.1 * error).all()
