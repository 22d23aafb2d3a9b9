"""Launcher of the Triton lookup in levels: lower bounds of sections of the codebook, then float64."""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import torch

from vqkernels._core.triton import (
    launch_device,
    launch_target,
    triton_by_name_only_reasons,
    triton_unsupported_reasons,
)

SECTIONS = 64  # at most: a lower bound is kept for each, and each is evaluated as a whole
PLAIN = {"enable_fp_fusion": False}  # the canonical sums are defined without fused multiply-add


class Config(NamedTuple):
    """Shapes of programs."""

    block_n: int  # of the scan
    block_k: int
    rows: int  # of the decision
    codes: int


# cross-compiled without spills; not yet measured on hardware
DEVICE = Config(64, 64, 1, 128)
INTERPRETER = Config(256, 256, 256, 256)


def unsupported_reasons(*args: object) -> list[str]:
    return triton_unsupported_reasons(*args)


def by_name_only_reasons(*args: object) -> list[str]:
    return triton_by_name_only_reasons(*args)


def run(
    xs: list[torch.Tensor],  # L of [N, D_l]
    codebooks: list[torch.Tensor],  # L of [K, D_l]
    weights: list[float],
    squared: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    from vqkernels.ops.multilevel_nearest_code import triton_search as kernels

    n, k = xs[0].shape[0], codebooks[0].shape[0]
    dims = tuple(x.shape[1] for x in xs)
    indices = torch.empty(n, dtype=torch.int64, device=xs[0].device)
    distance = torch.empty(n, dtype=torch.float32, device=xs[0].device)
    if n == 0:
        return indices, distance
    # of the inputs, in which they are exact and are scanned
    dtype = reduce(torch.promote_types, (t.dtype for t in (*xs, *codebooks)), torch.float32)
    with launch_device(xs[0]):
        x, codes = (torch.cat([t.t().to(dtype) for t in levels]) for levels in (xs, codebooks))  # [D, N], [D, K]
        given = torch.tensor(weights, dtype=torch.float64)
        exponent = max(math.frexp(max(weights))[1], -1000)
        factors = _rounded_down(torch.ldexp(given, torch.tensor(-exponent)), dtype)
        unit = torch.tensor(_unit(dims, exponent, squared, dtype), dtype=torch.float64)
        given, factors, unit = (t.to(x.device) for t in (given, factors, unit))

        config = INTERPRETER if launch_target(x) == "interpreter" else DEVICE
        step = max(config.block_k, config.codes)
        section_codes = -(-k // (SECTIONS * step)) * step
        sections = -(-k // section_codes)
        lows = x.new_empty(n, sections)
        kernels.scan_sections[(-(-n // config.block_n), sections)](
            x, codes, factors, lows, n, k, section_codes, dims, squared, config.block_n, config.block_k
        )
        kernels.decide_rows[(-(-n // config.rows),)](
            x, codes, given, lows, unit, indices, distance, n, k, section_codes,
            sum(dims), dims, squared, sections, 1 << (sections - 1).bit_length(), config.rows, config.codes, **PLAIN,
        )  # fmt: skip
    return indices, distance


def _rounded_down(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    near = value.to(dtype)
    return torch.where(near.double() > value, near.nextafter(torch.zeros_like(near)), near)


def _unit(dims: tuple[int, ...], exponent: int, squared: bool, dtype: torch.dtype) -> tuple[float, float]:
    """Factor and addend that turn a canonical key into a bound of the sums that the scan finds for codes as near.

    A scan rounds a difference, a square and D sums of one sign per level, the root (twice, it may be approximate),
    the product with the weight and L sums; the canonical evaluation does as many in float64, twice. What underflows
    adds the square root of the smallest normal number at most.
    """
    operations = max(dims) + len(dims) + 16
    info = torch.finfo(dtype)
    relative = 1.01 * operations * (info.eps / 2 + 2.0**-51)
    underflow = 4 * max(dims) * info.tiny
    floor = len(dims) * (underflow if squared else math.sqrt(underflow)) + math.ldexp(len(dims), -1074 - exponent)
    return math.ldexp(1 + relative, -exponent), floor
