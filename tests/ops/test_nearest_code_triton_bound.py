"""The error bound of the Triton lookup's coarse scores, and the protocol that relies on it.

Oracles: scores in float64 for the bound; ``reference.py`` for results under scores that are as wrong as the bound
allows. The interpreter's products are more accurate than a GPU's, so errors are put in by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqkernels import nearest_code
from vqkernels.ops.nearest_code import triton as launcher
from vqkernels.testing import assert_bitwise_equal, interpreted, lookup_problem

pytestmark = pytest.mark.skipif(
    not interpreted("triton"), reason="the machine has a GPU, which takes no single steps"
)

METRICS = ("l2", "cosine", "dot")
WIDE = 2.0 + 2.0**-9  # slack in units of the bound, as pack_rows has it


def prepared(x: torch.Tensor, codebook: torch.Tensor, metric: str) -> tuple[Any, Any]:
    """Vectors ``[N, D]`` and codes ``[K, D]`` as the launcher packs them."""
    assert launcher.unsupported_reasons(x, codebook) == []
    codes = launcher.prepare_codes(codebook[None], metric)
    return launcher.prepare_rows(x[:, None], codes), codes


def exact_scores(rows: Any, codes: Any) -> torch.Tensor:
    """What the products stand for, ``[N, K]``: in float64, in the scale of each row."""
    c, power = codes.codes[0].double(), codes.scale[0, 0]
    if codes.metric == "cosine":
        c = c / c.square().sum(1, keepdim=True).sqrt()
    c = (c - codes.centre[0]) * power
    x = rows.x[:, 0].double()
    if codes.metric != "l2":
        # scaled to a length in [2^13, 2^14)
        return -torch.ldexp(x, 14 - rows.norm[0].frexp().exponent[:, None]) @ c.T
    x = (x - codes.centre[0]) * power
    rescale = rows.packed[0, : x.shape[0], codes.packing.pieces * x.shape[1]].double()[:, None] * 2.0**-14
    return rescale * (c.square().sum(1) / 2 - x @ c.T)


def truncated_products(rows: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Products of halves summed in float32, every sum cut off towards zero: ``[N, C], [K, C] -> [N, K]``."""
    total = np.zeros((rows.shape[0], codes.shape[0]), dtype=np.float32)
    for column in range(rows.shape[1]):
        exact = total.astype(np.float64) + np.outer(
            rows[:, column].double().numpy(), codes[:, column].double().numpy()
        )
        total = exact.astype(np.float32)
        total = np.where(np.abs(total.astype(np.float64)) > np.abs(exact), np.nextafter(total, np.float32(0)), total)
    return torch.from_numpy(total).double()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [1, 4, 9, 10, 64])
@pytest.mark.parametrize("problem", ["gaussian", "clustered", "offset-1e4", "outlier-code", "scale-1e-20"])
def test_scores_err_by_less_than_the_bound(problem: str, d: int, metric: str) -> None:
    """And by more than a ten-thousandth of it on gaussian data: the bound is not idle."""
    x, codebook = lookup_problem(problem, 50, 120, d)
    x[::5] *= 1e4  # scaled down, with the norm columns
    rows, codes = prepared(x, codebook, metric)
    bound = (rows.slack[0] / WIDE).double()
    assert bool(bound.isfinite().all())
    scores = truncated_products(rows.packed[0, :50], codes.packed[0, :120])
    error = (scores - exact_scores(rows, codes)).abs().amax(dim=1)
    assert bool((error <= bound).all())
    if problem == "gaussian":
        assert bool((error > 1e-4 * bound).any())


def worst_scan(rows: Any, codes: Any, factor: float) -> Any:
    """What the scan would leave if scores erred by ``factor`` times the bound, against each row's nearest code."""
    k, tile_size = codes.codes.shape[1], codes.config.block_k
    scores = exact_scores(rows, codes)
    error = factor * (rows.slack[0] / WIDE).double()[:, None]
    nearest = torch.nn.functional.one_hot(scores.argmin(dim=1), k).bool()
    scores = torch.where(nearest, scores + error, scores - error).float()
    padded = torch.full((scores.shape[0], codes.tiles * tile_size), 2.0**30)
    padded[:, :k] = scores
    lanes = padded.reshape(scores.shape[0], codes.tiles, -1, launcher.LANES).amin(dim=2)
    best, tile = lanes.min(dim=1)
    others = lanes.scatter(1, tile[:, None], torch.inf).amin(dim=(1, 2))
    return launcher._Scan(best[None], tile.int()[None], others[None, :, None])


@pytest.mark.covering
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("d", [4, 8, 24])
def test_scores_as_wrong_as_the_bound_change_nothing(d: int, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, codebook = lookup_problem("gaussian", 300, 3000, d)
    expected = nearest_code(x, codebook, metric=metric, backend="reference")
    wrong = {}
    for factor in (1.0, 30.0):
        monkeypatch.setattr(launcher, "scan", lambda rows, codes, factor=factor: worst_scan(rows, codes, factor))
        result = nearest_code(x, codebook, metric=metric, backend="triton")
        wrong[factor] = int((result.indices != expected.indices).sum())
    assert wrong[1.0] == 0
    # so the protocol does rest on the bound
    assert wrong[30.0] > 0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("problem", ["gaussian", "near-ties", "duplicates", "two-clusters"])
def test_packed_codes_off_by_half_the_bound_change_nothing(
    problem: str, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the test before, but for the second scan too, which sees the same packed codes."""
    x, codebook = lookup_problem(problem, 100, 1500, 12)
    expected = nearest_code(x, codebook, metric=metric, backend="reference")
    prepare_rows = launcher.prepare_rows

    def disturbed(vectors: torch.Tensor, codes: Any) -> Any:
        rows = prepare_rows(vectors, codes)
        # the column of ones (2^15) times a disturbance of either sign
        bound = float(rows.slack.min()) / WIDE
        column = codes.packing.pieces * codes.codes.shape[2] + 2
        sign = 1.0 - 2.0 * (torch.arange(codes.codes.shape[1]) % 7 % 2)
        codes.packed[0, : len(sign), column] += (sign * bound / 2 * 2.0**-15).half()
        return rows

    monkeypatch.setattr(launcher, "prepare_rows", disturbed)
    result = nearest_code(x, codebook, metric=metric, backend="triton")
    assert_bitwise_equal(result.indices, expected.indices)
    assert_bitwise_equal(result.distance, expected.distance)


SHAPES = {
    "small tiles": {"block_n": 16, "block_k": 32, "prepare": 32, "listed_codes": 16, "decide": 16},
    "wide tiles": {"block_n": 32, "block_k": 2048, "prepare": 1024, "listed_codes": 2048, "step": 16, "box_parts": 4},
    "split codebook": {"block_n": 512, "block_k": 128, "prepare": 128, "listed_codes": 128},
}


@pytest.mark.parametrize(
    ("shape", "d"),
    [
        pytest.param(shape, d, marks=pytest.mark.slow if d > 20 else ())
        for shape, dimensions in zip(SHAPES, ((6, 70), (20, 150), (6, 150)), strict=True)
        for d in dimensions
    ],
)
def test_results_do_not_depend_on_the_shapes_of_programs(shape: str, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the tiles, the layout of columns, the splits of the codebook and the slabs of vectors."""
    (row,) = launcher.CONFIGS["interpreter"]
    x, codebook = lookup_problem("near-ties", 40, 700, d)
    x[3], codebook[5] = torch.nan, torch.inf
    expected = nearest_code(x, codebook, backend="reference")
    shaped = row._replace(config=row.config._replace(**SHAPES[shape]))
    monkeypatch.setitem(launcher.CONFIGS, "interpreter", (shaped,))
    monkeypatch.setattr(launcher, "WORKSPACE", 1)
    for chained in ((), ("interpreter",)):
        monkeypatch.setattr(launcher, "CHAINED", chained)
        result = nearest_code(x, codebook, backend="triton")
        assert_bitwise_equal(result.indices, expected.indices)
        assert_bitwise_equal(result.distance, expected.distance)


def test_few_vectors_split_the_codebook() -> None:
    assert [launcher._splits(idle, 100) for idle in (0, 1, 2, 3, 4, 15, 16, 1000)] == [1, 1, 2, 2, 4, 8, 16, 16]
    assert [launcher._splits(1000, tiles) for tiles in (1, 7, 8, 16, 63, 64)] == [1, 1, 2, 4, 8, 16]


@pytest.mark.parametrize("chained", [False, True])
def test_every_layout_holds_its_columns(chained: bool) -> None:
    for d in (*range(1, 300), 768, 1024):
        packing = launcher.layout(d, chained=chained)
        needed = packing.pieces * d + 3
        assert needed <= packing.columns <= max(32, needed + 64)
        assert packing.width in (16, 32, 64, 128)
        assert packing.tail in ((16,) if chained else (0, 16))


@pytest.mark.parametrize("target", launcher.CONFIGS)
def test_every_configuration_has_a_source(target: str) -> None:
    """A measured one names a result that is there; the rows ascend, and the last takes every width."""
    rows = launcher.CONFIGS[target]
    assert [row.columns for row in rows] == sorted({row.columns for row in rows})
    assert rows[-1].columns == launcher.WIDEST
    results = Path(__file__).parents[2] / "bench" / "results"
    for source in (row.source for row in rows if row.source != launcher.COMPILED and target != "interpreter"):
        assert (results / source).is_file()


@pytest.mark.parametrize("target", launcher.CONFIGS)
def test_every_configuration_divides_its_tiles(target: str) -> None:
    for d in (1, 9, 10, 40, 100, 1024):
        _, config = launcher.choose(target, d)
        assert config.block_k % config.prepare == config.block_k % config.listed_codes == 0
        assert config.block_k % launcher.LANES == 0
