"""Kernels that find the nearest code: a coarse score of every pair on tensor cores, float64 where it decides.

A lane of a row is a set of codes that share a running minimum: in every tile of BLOCK_K codes the codes j with
j mod LANES equal, one set per split of the codebook. README.md proves that nothing is lost.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vqkernels._core.triton_canonical import canonical_keys, first_lowest, reported

SIZES = ["num_rows", "num_codes", "num_tiles", "tiles_per_split", "stride_xn", "stride_xg", "stride_cg", "stride_ck"]


@triton.jit
def _tile_scores(
    row,  # pointers to rows of the packed vectors, [R, 1]
    code,  # pointers to rows of the packed codes, [C, 1]
    held,  # the rows' first WIDTH columns, loaded before the loop if CHUNKS is 1
    held_tail,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Products of packed rows and codes over WIDTH * CHUNKS + TAIL columns, ``[R, C]`` float32."""
    column = tl.arange(0, WIDTH)[None, :]
    if TAIL > 0:
        tail = WIDTH * CHUNKS + tl.arange(0, TAIL)[None, :]
        scores = tl.dot(held_tail, tl.trans(tl.load(code + tail)))
    else:
        scores = tl.zeros([row.shape[0], code.shape[0]], tl.float32)
    if CHUNKS == 1:
        scores = tl.dot(held, tl.trans(tl.load(code + column)), scores)
    else:
        for _ in range(CHUNKS):
            scores = tl.dot(tl.load(row + column), tl.trans(tl.load(code + column)), scores)
            row += WIDTH
            code += WIDTH
    return scores


@triton.jit(do_not_specialize=SIZES)
def scan_codes(
    packed_x,  # [G, N rounded up to BLOCK_N, COLUMNS] float16
    packed_codes,  # [G, K rounded up to BLOCK_K, COLUMNS] float16
    best,  # [G, N, SPLITS * LANES] float32 out: lowest score of a lane
    tile,  # [G, N, SPLITS * LANES] int32 out: the tile that has it
    second,  # [G, N, SPLITS] float32 out: lowest score that any lane has in another tile
    num_rows,
    num_tiles,
    tiles_per_split,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    LANES: tl.constexpr,
):
    COLUMNS: tl.constexpr = WIDTH * CHUNKS + TAIL
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    split, splits = tl.program_id(1), tl.num_programs(1)
    group = tl.program_id(2).to(tl.int64)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, num_tiles)

    row = packed_x + (group * tl.num_programs(0) * BLOCK_N + n)[:, None] * COLUMNS
    code = packed_codes + (group * num_tiles + first) * BLOCK_K * COLUMNS
    code += tl.arange(0, BLOCK_K)[:, None] * COLUMNS
    held = tl.load(row + tl.arange(0, WIDTH)[None, :])
    held_tail = tl.load(row + WIDTH * CHUNKS + tl.arange(0, TAIL)[None, :]) if TAIL > 0 else held

    lowest = tl.full([BLOCK_N, LANES], float("inf"), tl.float32)
    where = tl.zeros([BLOCK_N, LANES], tl.int32)
    runner_up = tl.full([BLOCK_N, LANES], float("inf"), tl.float32)
    for t in range(first, last):
        scores = _tile_scores(row, code, held, held_tail, WIDTH, CHUNKS, TAIL)
        # every thread has all it needs: column j belongs to lane j mod LANES, as the accumulator's layout has it
        low = tl.min(tl.reshape(scores, [BLOCK_N, BLOCK_K // LANES, LANES]), axis=1)
        runner_up = tl.minimum(runner_up, tl.maximum(low, lowest))
        where = tl.where(low < lowest, t, where)
        lowest = tl.minimum(low, lowest)
        code += BLOCK_K * COLUMNS

    at = ((group * num_rows + n) * splits + split)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    real = (n < num_rows)[:, None]
    tl.store(best + at, lowest, mask=real)
    tl.store(tile + at, where, mask=real)
    tl.store(second + (group * num_rows + n) * splits + split, tl.min(runner_up, axis=1), mask=n < num_rows)


@triton.jit(do_not_specialize=SIZES)
def decide_rows(
    x,  # [N, G, D]
    codes,  # [G, K, D]
    x_norm,  # [G, N]
    code_norm,  # [G, K]
    slack,  # [G, N]
    best,  # [G, N, LANES]
    tile,  # [G, N, LANES]
    second,  # [G, N, SPLITS]
    listed,  # [G, N] int32 out: rows left to decide
    limit,  # [G, N] float32 out: the score up to which their codes are candidates
    count,  # [G] int32: how many are listed
    indices,  # [N, G] int64 out
    distance,  # [N, G] float32 out
    num_rows,
    num_codes,
    stride_xn,
    stride_xg,
    stride_xd,
    stride_cg,
    stride_ck,
    stride_cd,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    SPLITS: tl.constexpr,
    LANES: tl.constexpr,  # of one split
    BLOCK_K: tl.constexpr,  # codes in a tile of the scan
    BLOCK: tl.constexpr,
):
    """One or a few lanes per row hold all candidates: evaluate them; list the rows where that is not so."""
    group, groups = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = n < num_rows
    at = group * num_rows + tl.minimum(n, num_rows - 1)
    lane = tl.arange(0, SPLITS * LANES)[None, :]
    low = tl.load(best + at[:, None] * (SPLITS * LANES) + lane)
    where = tl.load(tile + at[:, None] * (SPLITS * LANES) + lane)
    other = tl.min(tl.load(second + at[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]), axis=1)
    margin = tl.load(slack + at)
    usable = margin == margin
    highest = tl.min(low, axis=1) + margin
    open_row = real & usable & (other <= highest)

    slot = tl.cumsum(open_row.to(tl.int32), axis=0) - 1
    slot += tl.atomic_add(count + group, tl.sum(open_row.to(tl.int32), axis=0))
    tl.store(listed + group * num_rows + slot, n, mask=open_row)
    tl.store(limit + group * num_rows + slot, highest, mask=open_row)

    row = x + (tl.minimum(n, num_rows - 1).to(tl.int64) * stride_xn + group * stride_xg)[:, None]
    row_norm = tl.load(x_norm + at)
    key = tl.full([BLOCK], float("inf"), tl.float64)
    index = tl.zeros([BLOCK], tl.int32)
    pending = (low <= highest[:, None]) & (real & usable & ~open_row)[:, None]
    while tl.max(pending.to(tl.int32)) > 0:
        chosen = tl.min(tl.where(pending, lane, SPLITS * LANES), axis=1)[:, None]
        member = tl.sum(tl.where(lane == chosen, where, 0), axis=1)[:, None] * BLOCK_K
        member += tl.arange(0, BLOCK_K // LANES)[None, :] * LANES + chosen % LANES
        k = tl.minimum(member, num_codes - 1)
        code_length = tl.load(code_norm + group * num_codes + k)
        code = codes + group * stride_cg + k.to(tl.int64) * stride_ck
        keys = canonical_keys(row, stride_xd, code, stride_cd, code_length, row_norm[:, None], D, METRIC)
        keys = tl.where((chosen < SPLITS * LANES) & (member < num_codes), keys, float("inf"))
        lane_key, lane_index = first_lowest(keys, member, 1)
        nearer = (lane_key < key) | ((lane_key == key) & (lane_index < index))
        key, index = tl.where(nearer, lane_key, key), tl.where(nearer, lane_index, index)
        pending = pending & (lane != chosen)

    final_index, final_distance = reported(key, index, row_norm, METRIC)
    out = n.to(tl.int64) * groups + group
    tl.store(indices + out, final_index, mask=real & ~open_row)
    tl.store(distance + out, final_distance, mask=real & ~open_row)


@triton.jit
def _parts(count, num_tiles, ROWS: tl.constexpr):
    """How the programs of a group share its list: blocks of rows times parts of the codebook."""
    blocks = tl.cdiv(count, ROWS)
    parts = tl.minimum(tl.maximum(tl.num_programs(0) // tl.maximum(blocks, 1), 1), num_tiles)
    return blocks, parts


@triton.jit(do_not_specialize=SIZES)
def scan_listed(
    x,  # [N, G, D]
    codes,  # [G, K, D]
    x_norm,  # [G, N]
    code_norm,  # [G, K]
    packed_x,
    packed_codes,
    listed,  # [G, N]
    limit,  # [G, N]
    count,  # [G]
    found_key,  # [G, ITEMS, ROWS] float64 out: the winner among a part of the codes
    found_index,  # [G, ITEMS, ROWS] int32 out
    num_rows,
    num_codes,
    num_tiles,
    items_per_group,
    rows_per_group,  # of packed_x
    stride_xn,
    stride_xg,
    stride_xd,
    stride_cg,
    stride_ck,
    stride_cd,
    D: tl.constexpr,
    METRIC: tl.constexpr,
    WIDTH: tl.constexpr,
    CHUNKS: tl.constexpr,
    TAIL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Evaluate every code whose score is within a listed row's limit, on a grid that fits any length of the list."""
    COLUMNS: tl.constexpr = WIDTH * CHUNKS + TAIL
    group = tl.program_id(1).to(tl.int64)
    listed_rows = tl.load(count + group)
    blocks, parts = _parts(listed_rows, num_tiles, ROWS)
    tiles_per_part = tl.cdiv(num_tiles, parts)
    for item in range(tl.program_id(0), blocks * parts, tl.num_programs(0)):
        first = (item % parts) * tiles_per_part
        last = tl.minimum(first + tiles_per_part, num_tiles)
        slot = group * num_rows + tl.minimum((item // parts) * ROWS + tl.arange(0, ROWS), listed_rows - 1)
        n = tl.load(listed + slot).to(tl.int64)
        highest = tl.load(limit + slot)
        row_norm = tl.load(x_norm + group * num_rows + n)
        row = x + (n * stride_xn + group * stride_xg)[:, None]
        packed_row = packed_x + (group * rows_per_group + n)[:, None] * COLUMNS
        held = tl.load(packed_row + tl.arange(0, WIDTH)[None, :])
        held_tail = tl.load(packed_row + WIDTH * CHUNKS + tl.arange(0, TAIL)[None, :]) if TAIL > 0 else held
        packed_code = packed_codes + (group * num_tiles + first) * BLOCK_K * COLUMNS
        packed_code += tl.arange(0, BLOCK_K)[:, None] * COLUMNS
        key = tl.full([ROWS], float("inf"), tl.float64)
        index = tl.zeros([ROWS], tl.int32)
        for t in range(first, last):
            scores = _tile_scores(packed_row, packed_code, held, held_tail, WIDTH, CHUNKS, TAIL)
            near = scores <= highest[:, None]
            if tl.max(near.to(tl.int32)) > 0:
                member = t * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
                k = tl.minimum(member, num_codes - 1)
                code_length = tl.load(code_norm + group * num_codes + k)
                code = codes + group * stride_cg + k.to(tl.int64) * stride_ck
                keys = canonical_keys(row, stride_xd, code, stride_cd, code_length, row_norm[:, None], D, METRIC)
                keys = tl.where(near & (member < num_codes), keys, float("inf"))
                tile_key, tile_index = first_lowest(keys, member, 1)
                # later tiles hold higher indices: an equal key does not replace
                index = tl.where(tile_key < key, tile_index, index)
                key = tl.minimum(tile_key, key)
            packed_code += BLOCK_K * COLUMNS
        out = (group * items_per_group + item) * ROWS + tl.arange(0, ROWS)
        tl.store(found_key + out, key)
        tl.store(found_index + out, index)


@triton.jit(do_not_specialize=SIZES)
def decide_listed(
    x_norm,  # [G, N]
    listed,  # [G, N]
    count,  # [G]
    found_key,  # [G, ITEMS, ROWS]
    found_index,  # [G, ITEMS, ROWS]
    indices,  # [N, G] int64 out
    distance,  # [N, G] float32 out
    num_rows,
    num_tiles,
    items_per_group,
    METRIC: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The winner of each listed row among the winners of the parts; launched on the grid of ``scan_listed``."""
    group, groups = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    listed_rows = tl.load(count + group)
    blocks, parts = _parts(listed_rows, num_tiles, ROWS)
    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        slot = block * ROWS + tl.arange(0, ROWS)
        real = slot < listed_rows
        n = tl.load(listed + group * num_rows + slot, mask=real, other=0).to(tl.int64)
        key = tl.full([ROWS], float("inf"), tl.float64)
        index = tl.zeros([ROWS], tl.int32)
        for part in range(0, parts):
            at = (group * items_per_group + block * parts + part) * ROWS + tl.arange(0, ROWS)
            part_key, part_index = tl.load(found_key + at), tl.load(found_index + at)
            index = tl.where(part_key < key, part_index, index)
            key = tl.minimum(part_key, key)
        final_index, final_distance = reported(key, index, tl.load(x_norm + group * num_rows + n), METRIC)
        tl.store(indices + n * groups + group, final_index, mask=real)
        tl.store(distance + n * groups + group, final_distance, mask=real)
