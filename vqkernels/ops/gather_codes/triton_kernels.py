"""Kernel that copies the codes of given indices."""

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["num_rows", "num_codes", "num_groups", "stride_cg", "stride_ck", "stride_in", "stride_ig"]


@triton.jit(do_not_specialize=SIZES)
def copy_codes(
    codebook,  # [G, K, D]
    indices,  # [N, G]
    codes,  # [N, G, D] out
    num_rows,  # N * G
    num_codes,
    num_groups,
    stride_cg,
    stride_ck,
    stride_cd,
    stride_in,
    stride_ig,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    n, group = row // num_groups, row % num_groups
    real = row < num_rows
    index = tl.load(indices + n * stride_in + group * stride_ig, mask=real, other=-1)
    named = (index >= 0) & (index < num_codes)
    source = codebook + (group * stride_cg + index * stride_ck)[:, None]
    target = codes + row[:, None] * D
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        inside = (d < D)[None, :]
        code = tl.load(source + d[None, :] * stride_cd, mask=named[:, None] & inside, other=0.0)
        tl.store(target + d[None, :], code, mask=real[:, None] & inside)
