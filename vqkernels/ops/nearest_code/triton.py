"""Launcher of the Triton lookup: prepare, scan on tensor cores, decide in float64. README.md has the proof."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.triton import (
    launch_device,
    launch_target,
    triton_by_name_only_reasons,
    triton_unsupported_reasons,
)

LANES = 8  # columns of an accumulator that one quad of threads holds: reducing over the others needs no shuffle
WORKSPACE = 1 << 28  # bytes of packed vectors at a time
PLAIN = {"enable_fp_fusion": False}  # the canonical sums are defined without fused multiply-add


class Config(NamedTuple):
    """Shapes of programs."""

    block_n: int  # of the scan
    block_k: int
    num_warps: int
    num_stages: int
    prepare: int = 64  # codes per program that measures and packs them
    step: int = 16  # columns packed at a time
    box_parts: int = 64  # programs that share the bounding box of a codebook
    decide: int = 16  # vectors per program that decides
    listed_codes: int = 64  # codes per step of the scan of listed vectors


class Tuned(NamedTuple):
    """A row of the launch table."""

    columns: int  # the largest number of packed columns that it is for
    config: Config
    source: str  # what it was chosen by: a file of bench/results, or COMPILED


COMPILED = "machine code: no spills, no shuffles in the loop over codes, fewest instructions per pair"
WIDEST = 1 << 20
_MMA_V2 = (Tuned(80, Config(128, 128, 8, 3), COMPILED), Tuned(WIDEST, Config(128, 128, 8, 2), COMPILED))
# target -> rows by ascending columns; `python -m bench.gpu.tuned` writes measured ones
CONFIGS: dict[str, tuple[Tuned, ...]] = {
    "sm_80": _MMA_V2,
    "sm_90": (
        Tuned(32, Config(128, 256, 4, 3), COMPILED),
        Tuned(48, Config(128, 128, 4, 3), COMPILED),
        Tuned(WIDEST, Config(128, 128, 8, 3), COMPILED),
    ),
    "sm_100": (Tuned(32, Config(128, 256, 4, 3), COMPILED), Tuned(WIDEST, Config(128, 128, 4, 3), COMPILED)),
    "other": _MMA_V2,
    "interpreter": (
        Tuned(
            WIDEST,
            Config(128, 512, 4, 1, prepare=512, step=1024, box_parts=1, decide=64, listed_codes=512),
            "few steps, each a numpy call",
        ),
    ),
}
# targets where a row of accumulators stays in one warp only if two products follow one another: always a tail
CHAINED = ("sm_80", "other")


class Layout(NamedTuple):
    """Columns of packed vectors and codes: ``chunks`` times ``width``, and a ``tail``."""

    pieces: int  # 3: entries are pairs of halves, 1: single halves
    width: int
    chunks: int
    tail: int

    @property
    def columns(self) -> int:
        return self.width * self.chunks + self.tail


def layout(d: int, *, chained: bool = False) -> Layout:
    """The narrowest layout of ``pieces * d + 3`` columns that tensor cores take; ``chained``: with a tail.

    Pairs of halves where they cost at most 32 columns: single halves would leave half of the vectors undecided
    at D = 4 and a sixth at D = 8 (K = 65536), but at most a twentieth from D = 16 on.
    """
    pieces = 3 if 3 * d + 3 <= 32 else 1
    needed = pieces * d + 3
    if needed > 144:
        chunks, rest = divmod(needed, 64)
        return Layout(pieces, 64, chunks + (rest > 16), 16 if chained or 0 < rest <= 16 else 0)
    width = max(16, 1 << (needed - 1).bit_length())
    if needed <= width // 2 + 16 and width > (16 if chained else 32):
        return Layout(pieces, width // 2, 1, 16)
    return Layout(pieces, width, 1, 16 if chained else 0)


def choose(target: str, d: int) -> tuple[Layout, Config]:
    """Layout and program shapes for vectors of D entries."""
    packing = layout(d, chained=target in CHAINED)
    return packing, next(row.config for row in CONFIGS[target] if packing.columns <= row.columns)


def score_error(packing: Layout) -> float:
    """Relative error of a score: the rounding of the halves and the accumulation, which may truncate."""
    inputs = 2.0**-20 if packing.pieces == 3 else 1.002 * 2.0**-10
    return 1.01 * (inputs + accumulation_error(packing))


def accumulation_error(packing: Layout) -> float:
    """The error of a sum of products on tensor cores, over the sum of their magnitudes."""
    return 4 * packing.columns * 2.0**-23


def unsupported_reasons(*args: object) -> list[str]:
    return triton_unsupported_reasons(*args)


def by_name_only_reasons(*args: object) -> list[str]:
    return triton_by_name_only_reasons(*args)


class _Codes(NamedTuple):
    """The codebook, prepared once per call."""

    codes: torch.Tensor  # [G, K, D]
    norm: torch.Tensor  # [G, K] float64
    centre: torch.Tensor  # [G, D] float64
    scale: torch.Tensor  # [G, 2] float64
    radius: torch.Tensor  # [G] float32
    packed: torch.Tensor  # [G, tiles * BLOCK_K, columns] float16
    packing: Layout
    config: Config
    metric: str
    programs: int  # that fill the device

    @property
    def tiles(self) -> int:
        return self.packed.shape[1] // self.config.block_k


def run(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    indices = torch.empty(x.shape[:2], dtype=torch.int64, device=x.device)
    distance = torch.empty(x.shape[:2], dtype=torch.float32, device=x.device)
    if indices.numel() == 0:
        return indices, distance
    with launch_device(x):
        codes = prepare_codes(codebook, metric)
        block_n = codes.config.block_n
        slab = max(1, WORKSPACE // (2 * x.shape[1] * codes.packing.columns * block_n)) * block_n
        for start in range(0, x.shape[0], slab):
            part = slice(start, start + slab)
            look_up(x[part], codes, indices[part], distance[part])
    return indices, distance


def prepare_codes(codebook: torch.Tensor, metric: str) -> _Codes:
    """Measure, centre, scale and pack a codebook ``[G, K, D]``."""
    from vqkernels._core.triton_canonical import canonical_norms
    from vqkernels.ops.nearest_code import triton_prepare as kernels

    g, k, d = codebook.shape
    target = launch_target(codebook)
    packing, config = choose(target if target in CONFIGS else "other", d)
    prepare = config.prepare
    padded = -(-k // config.block_k) * config.block_k
    new = codebook.new_empty
    norm, box = new(g, k, dtype=torch.float64), new(g, config.box_parts, 3, d, dtype=torch.float64)
    centre, scale = new(g, d, dtype=torch.float64), new(g, 2, dtype=torch.float64)
    packed = new(g, padded, packing.columns, dtype=torch.float16)
    radius = codebook.new_zeros(g, dtype=torch.int32)
    width = min(64, 1 << (d - 1).bit_length())
    canonical_norms[(-(-k // prepare), g)](codebook, norm, k, *codebook.stride(), d, prepare, **PLAIN)
    kernels.measure_box[(config.box_parts, g)](
        codebook, norm, box, k, *codebook.stride(), -(-k // config.box_parts), d, metric, prepare, width
    )
    kernels.place_frame[(g,)](box, centre, scale, k, d, config.box_parts, width)
    kernels.pack_codes[(padded // prepare, g)](
        codebook, norm, centre, scale, packed, radius, k, *codebook.stride(),
        d, metric, packing.pieces, packing.columns, prepare, _step(packing, config),
    )  # fmt: skip
    interpreted = target == "interpreter"
    multiprocessors = 1 if interpreted else torch.cuda.get_device_properties(codebook.device).multi_processor_count
    return _Codes(
        codebook,
        norm,
        centre,
        scale,
        radius.view(torch.float32),
        packed,
        packing,
        config,
        metric,
        4 * multiprocessors,
    )


def _step(packing: Layout, config: Config) -> int:
    return min(config.step, 1 << (packing.columns - 1).bit_length())


class _Rows(NamedTuple):
    """Some of the vectors, prepared."""

    x: torch.Tensor  # [N, G, D]
    norm: torch.Tensor  # [G, N] float64
    slack: torch.Tensor  # [G, N] float32
    packed: torch.Tensor  # [G, N rounded up to BLOCK_N, columns] float16


def prepare_rows(x: torch.Tensor, codes: _Codes) -> _Rows:
    """Centre, scale and pack vectors ``[N, G, D]``, and bound the error of their scores."""
    from vqkernels.ops.nearest_code import triton_prepare as kernels

    (n, g, d), packing, block = x.shape, codes.packing, codes.config.block_n
    blocks = -(-n // block)
    norm, slack = (x.new_empty(g, n, dtype=dtype) for dtype in (torch.float64, torch.float32))
    packed = x.new_empty(g, blocks * block, packing.columns, dtype=torch.float16)
    kernels.pack_rows[(blocks, g)](
        x, codes.centre, codes.scale, codes.radius, packed, slack, norm, n, *x.stride(),
        d, codes.metric, packing.pieces, packing.columns, block, _step(packing, codes.config),
        score_error(packing), 2.0**-24 * d**0.5, **PLAIN,
    )  # fmt: skip
    return _Rows(x, norm, slack, packed)


class _Scan(NamedTuple):
    """What the scan leaves of the scores of a vector."""

    best: torch.Tensor  # [G, N, splits * LANES] float32
    tile: torch.Tensor  # [G, N, splits * LANES] int32
    second: torch.Tensor  # [G, N, splits] float32


def scan(rows: _Rows, codes: _Codes) -> _Scan:
    """Coarse scores of all pairs, reduced as they are made."""
    from vqkernels.ops.nearest_code import triton_search as kernels

    (n, g, _), config, packing = rows.x.shape, codes.config, codes.packing
    blocks = rows.packed.shape[1] // config.block_n
    splits = _splits(codes.programs // (blocks * g), codes.tiles)
    best, tile = (rows.x.new_empty(g, n, splits * LANES, dtype=dtype) for dtype in (torch.float32, torch.int32))
    second = rows.x.new_empty(g, n, splits, dtype=torch.float32)
    kernels.scan_codes[(blocks, splits, g)](
        rows.packed, codes.packed, best, tile, second, n, codes.tiles, -(-codes.tiles // splits),
        packing.width, packing.chunks, packing.tail, config.block_n, config.block_k, LANES,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return _Scan(best, tile, second)


def _splits(idle: int, tiles: int) -> int:
    """Parts of the codebook for different programs, where vectors are too few to fill the device; a power of two."""
    wanted = min(idle, tiles // 4, 16)
    return 1 << max(0, wanted.bit_length() - 1)


def look_up(
    x: torch.Tensor,  # [N, G, D]
    codes: _Codes,
    indices: torch.Tensor,  # [N, G] int64, written
    distance: torch.Tensor,  # [N, G] float32, written
) -> None:
    from vqkernels.ops.nearest_code import triton_search as kernels

    (n, g, d), k, packing = x.shape, codes.codes.shape[1], codes.packing
    decide = codes.config.decide
    rows = prepare_rows(x, codes)
    found = scan(rows, codes)
    listed, limit = (x.new_empty(g, n, dtype=dtype) for dtype in (torch.int32, torch.float32))
    count = x.new_zeros(g, dtype=torch.int32)
    strides = (*x.stride(), *codes.codes.stride())
    kernels.decide_rows[(-(-n // decide), g)](
        x, codes.codes, rows.norm, codes.norm, rows.slack, *found, listed, limit, count, indices, distance,
        n, k, *strides, d, codes.metric, found.second.shape[2], LANES, codes.config.block_k, decide, **PLAIN,
    )  # fmt: skip
    # the list's length stays on the device; `items` is as many blocks of it as there can be
    items = max(codes.programs, -(-n // decide))
    key, index = (x.new_empty(g, items, decide, dtype=dtype) for dtype in (torch.float64, torch.int32))
    tiles = codes.packed.shape[1] // codes.config.listed_codes
    kernels.scan_listed[(codes.programs, g)](
        x, codes.codes, rows.norm, codes.norm, rows.packed, codes.packed, listed, limit, count, key, index,
        n, k, tiles, items, rows.packed.shape[1], *strides, d, codes.metric,
        packing.width, packing.chunks, packing.tail, decide, codes.config.listed_codes, **PLAIN,
    )  # fmt: skip
    kernels.decide_listed[(codes.programs, g)](
        rows.norm, listed, count, key, index, indices, distance, n, tiles, items, codes.metric, decide, **PLAIN
    )
