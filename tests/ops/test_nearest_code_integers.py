"""Lower bounds of scores from products of integers: below the score, and not far below.

Oracle: the exact score of the same float32 coordinates, summed by ``math.fsum``.
"""

from __future__ import annotations

import math
from itertools import product
from typing import NamedTuple

import pytest
import torch
from needs import needs_extension
from variants import BYTES, INTEGERS, processor_isas

from vqkernels import nearest_code
from vqkernels._core.env import ISA_CODES
from vqkernels._core.extension import extension

DIMS = (1, 2, 3, 8, 15, 16, 33, 64, 65, 130, 255, 770)
LANES = {isa: 4 if "neon" in isa else 16 if "512" in isa or "amx" in isa else 8 for isa in INTEGERS}


class Format(NamedTuple):
    """How large integers may be; the rules of ``IntegerFormat`` in csrc/cpu/integer_scan.h, told once more."""

    bits: int
    most: tuple[float, float]  # of a vector and of a code: no number is larger
    longest: tuple[float, float] = (math.inf, math.inf)  # nor are those of one sum
    sums: int = 1  # of four neighbours
    segment: int = 1 << 20  # dimensions

    def steps(self, rows: torch.Tensor, side: int) -> torch.Tensor:
        """The step of each row ``[N]``."""
        n, d = rows.shape
        segment = min(self.segment, -(-d // 4) * 4)
        squares = torch.nn.functional.pad(rows.double().square(), (0, -d % segment))
        sums = squares.view(n, -1, segment // 4, self.sums, 4 // self.sums).sum(dim=(2, 4))
        of_sums = sums.amax(dim=(1, 2)).sqrt() / (self.longest[side] - math.sqrt(min(d, segment) / self.sums) / 2)
        return torch.maximum(of_sums, rows.double().abs().amax(1) / self.most[side]).clamp_min(2.0**-95)


WORDS = Format(16, (32767, 32767), (32767, 32767))
FORMATS = dict.fromkeys(INTEGERS, WORDS) | dict.fromkeys(BYTES, Format(8, (127, 127)))
FORMATS["avx2_int8"] = Format(8, (64, 127), (150, 218), 2, 64)
KINDS = (
    "gaussian",
    "hard to round",
    "far",
    "tiny vectors",
    "tiny codes",
    "cancelling",
    "unlike lengths",
    "one entry",
    "parallel",
    "opposite",
)

pytestmark = needs_extension


@pytest.fixture(
    params=[
        pytest.param(
            isa,
            marks=pytest.mark.skipif(isa not in processor_isas(), reason=f"the machine's processor has no {isa}"),
        )
        for isa in INTEGERS
    ]
)
def isa(request: pytest.FixtureRequest) -> str:
    return request.param


class Bounds(NamedTuple):
    low: torch.Tensor  # [N, lanes]: no score of a lane is lower
    high: torch.Tensor  # [N]: nor are all higher, but for rounding


def integer_bounds(negated: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor, isa: str) -> Bounds:
    """Bounds of the scores of up to two codes in each lane."""
    n, d = negated.shape
    bounds = Bounds(torch.empty(n, LANES[isa]), torch.empty(n))
    x, c, b, low, high = (t.data_ptr() for t in (negated, codes, bias, *bounds))
    extension().integer_bounds(x, n, c, b, len(codes), d, ISA_CODES[isa], FORMATS[isa].bits, low, high)
    return bounds


def almost_half(rows: int, d: int, isa: str, side: int) -> torch.Tensor:
    """Rows whose entries lie almost half way between two integers, once scaled.

    All along the diagonal: the remainders of one row are parallel to the other row, which is the worst case of
    Cauchy-Schwarz. The last entry makes up the step.
    """
    form = FORMATS[isa]
    terms = min(d, form.segment) / form.sums
    most = min(form.most[side] / 2, (form.longest[side] - math.sqrt(terms) / 2) / math.sqrt(terms + 4))
    values = torch.full((rows, d), math.floor(most) - 0.51, dtype=torch.float64)
    if form.bits == 16:
        values[:, -1] = math.sqrt(form.longest[side] ** 2 - (d - 1) * values[0, 0].item() ** 2)
    else:
        values[:, -1] = form.most[side]
    return (values * torch.logspace(-2, 2, rows, dtype=torch.float64)[:, None] / form.most[side]).float()


def problem(kind: str, n: int, d: int, isa: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator, lanes = torch.Generator().manual_seed(d), LANES[isa]
    x, c = (torch.randn(rows, d, generator=generator) for rows in (n, lanes))
    if kind == "hard to round":
        x, c = almost_half(n, d, isa, 0), almost_half(lanes, d, isa, 1)
    elif kind == "far":
        x = x * 1e12
    elif kind == "unlike lengths":
        x, c = x * torch.logspace(-4, 4, n)[:, None], c * torch.logspace(-4, 4, lanes)[:, None]
    elif kind == "tiny vectors":
        x = x * torch.logspace(-38, -15, n)[:, None]
    elif kind == "tiny codes":
        c = c * torch.logspace(-38, -15, lanes)[:, None]
    elif kind == "cancelling":
        x, c = torch.ones(n, d) + x * 1e-6, torch.ones(lanes, d) + c * 1e-6
        x[:, ::2] *= -1
    elif kind == "one entry":
        x, c = torch.zeros(n, d), torch.zeros(lanes, d)
        x[torch.arange(n), torch.arange(n) % d] = torch.randn(n, generator=generator)
        c[torch.arange(lanes), torch.arange(lanes) % d] = torch.randn(lanes, generator=generator)
    elif kind in ("parallel", "opposite"):  # sums as large as they may be
        x, c = torch.ones(n, d), torch.ones(lanes, d) * (1 if kind == "parallel" else -1)
    return x.contiguous(), c.contiguous()


def allowed(x: torch.Tensor, codes: torch.Tensor, bias: torch.Tensor, isa: str) -> torch.Tensor:
    """What a score may be off by, ``[N, lanes]``: half a step in every dimension, on either side, and rounding."""
    rounding = extension().integer_error(x.shape[1])
    length, code_length = (t.double().norm(dim=1).clamp_min(2.0**-80) for t in (x, codes))
    rest, code_rest = (
        math.sqrt(x.shape[1]) * 0.51 * FORMATS[isa].steps(t, side) / along + 2.0**-21
        for side, (t, along) in enumerate([(x, length), (codes, code_length)])
    )
    share = rest[:, None] + (1 + rest[:, None]) * code_rest
    return (share + rounding) * length[:, None] * code_length + (rounding + 2.0**-21) * bias.double()


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_bounded_from_below(kind: str, isa: str) -> None:
    least = most = 1.0
    for d in DIMS:
        x, c = problem(kind, 23, d, isa)
        # squares of tiny entries underflow; a dot product is a score without any
        bias = torch.zeros(len(c)) if "tiny" in kind else (c.double().square().sum(1) / 2).float()
        scores, error = integer_bounds(-x, c, bias, isa).low, allowed(x, c, bias, isa)
        terms = -x.double()[:, None] * c.double()  # exact: 24 bits times 24 bits
        for row, code in product(range(len(x)), range(len(c))):
            exact = math.fsum([bias[code].item(), *terms[row, code].tolist()])
            # 0: as high as can be, 1: exact but for the margin, 2: as low as can be
            distance = (exact - scores[row, code].item()) / (error[row, code].item() + 1e-42)
            assert distance >= 0, (d, row, code)
            least, most = min(least, distance), max(most, distance)
    assert most <= 2 * 1.01 or "tiny" in kind
    # a margin that nothing uses would be waste, and a test of it blind
    if kind == "hard to round":
        assert least < 0.2


def test_a_score_is_the_score_of_its_own_code(isa: str) -> None:
    lanes = LANES[isa]
    for d in DIMS:
        x, codes, bias = torch.randn(5, d), torch.zeros(lanes, d), torch.arange(lanes, dtype=torch.float32)
        assert (integer_bounds(x, codes, bias, isa).low.round() == bias).all()
        x, ones, zeros = torch.arange(20.0)[:, None].repeat(1, d), torch.ones(lanes, d), torch.zeros(lanes)
        lower = integer_bounds(-x, ones, zeros, isa).low.double()
        exact = -x.double().sum(1, keepdim=True)
        assert (lower <= exact).all()
        assert (lower >= exact - 2.1 * allowed(x, ones, zeros, isa)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_codes_that_share_a_lane_share_its_bounds(kind: str, isa: str) -> None:
    """Whose codes may be as unlike as can be: below the lowest score, and above it."""
    lanes = LANES[isa]
    for d in DIMS:
        x, c = problem(kind, 23, d, isa)
        codes = torch.cat([c, c.flip(0)])  # a short one with a long one
        bias = torch.zeros(len(codes)) if "tiny" in kind else (codes.double().square().sum(1) / 2).float()
        low, high = integer_bounds(-x, codes, bias, isa)
        products = -x.double()[:, None] * codes.double()  # exact, as above
        exact = torch.tensor(
            [[math.fsum([b.item(), *row]) for b, row in zip(bias, rows, strict=True)] for rows in products.tolist()]
        ).double()
        assert (low.double() <= exact.view(23, 2, lanes).amin(1)).all(), d
        longest, length = (t.double().norm(dim=-1).clamp_min(2.0**-80) for t in (codes, x))
        radius = longest.max()
        rounding = (extension().integer_error(d) + 2.0**-20) * radius * (radius + 2 * length)
        assert (high.double() + rounding >= exact.amin(1)).all(), d
        # a bound of another code may be lower still, but none of its own is as high as this
        own = (exact + 2.1 * allowed(x, codes, bias, isa)).amin(1)
        assert "tiny" in kind or (high.double() <= own + rounding).all(), d


def crowded(n: int, k: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes so close together, seen from far away, that integers cannot tell them apart."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(k, d, generator=generator)
    return codes[torch.randint(k, (n,), generator=generator)] * 1e-5 + 30 * torch.randn(
        n, 1, generator=generator
    ), codes * 1e-5


def check(x: torch.Tensor, codes: torch.Tensor, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQKERNELS_ISA", isa)
    got, truth = nearest_code(x, codes, backend="cpu"), nearest_code(x, codes, backend="reference")
    assert torch.equal(got.indices, truth.indices)
    assert torch.equal(got.distance, truth.distance)


@pytest.mark.parametrize(("n", "k"), [(100, 64), (5000, 64), (50, 3000)])
def test_codes_that_integers_cannot_tell_apart_are_told_apart(
    n: int, k: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a few vectors, in so many that the scan is tried on some and given up, and more codes than a list holds."""
    check(*crowded(n, k, 32), isa, monkeypatch)


@pytest.mark.parametrize("k", [1, 5, 200])
def test_codes_that_are_all_the_same(k: int, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that none has any length, once their mean is subtracted."""
    check(torch.randn(300, 16), torch.full((k, 16), 3.0), isa, monkeypatch)


@pytest.mark.parametrize("threads", [1, 2])
def test_codes_that_come_nearer_and_nearer(threads: int, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the nearest so far, some vectors have more within reach than their list may hold, others few."""
    torch.set_num_threads(threads)
    x = torch.cat([torch.randn(20, 40) * 1e-3, torch.randn(20, 40) * 5])
    codes = torch.randn(2500, 40)
    codes = codes[codes.norm(dim=1).argsort(descending=True)] * torch.linspace(1, 0.1, 2500)[:, None]
    check(x, codes, isa, monkeypatch)
