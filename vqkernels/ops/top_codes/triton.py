"""Launcher of the Triton top-M lookup: a bound on the M-th key, the codes within it, a stable sort."""

from __future__ import annotations

import torch

from vqkernels._core.triton import (
    launch_device,
    launch_target,
    triton_by_name_only_reasons,
    triton_unsupported_reasons,
)

MEASURED = 64  # vectors or codes per program of the kernel that measures them
ELEMENTS = 2048  # keys that a program holds at a time
INTERPRETED_ELEMENTS = 1 << 14
WORKSPACE = 1 << 22  # candidates at a time
PLAIN = {"enable_fp_fusion": False}  # the canonical sums are defined without fused multiply-add


def unsupported_reasons(*args: object) -> list[str]:
    return triton_unsupported_reasons(*args)


def by_name_only_reasons(*args: object) -> list[str]:
    return triton_by_name_only_reasons(*args)


def run(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    m: int,
    metric: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    n, g, _ = x.shape
    indices = torch.empty(n, g, m, dtype=torch.int64, device=x.device)
    distance = torch.empty(n, g, m, dtype=torch.float32, device=x.device)
    with launch_device(x):
        code_norm = _measure(codebook)
        slab = max(1, WORKSPACE // (g * 2 * lanes(m)))
        for start in range(0, n, slab):
            part = slice(start, start + slab)
            _look_up(x[part], codebook, code_norm, m, metric, indices[part], distance[part])
    return indices, distance


def lanes(m: int) -> int:
    """How many sets the codes are dealt into: enough that few codes are as near as the M-th lowest minimum."""
    return max(256, 2 << (m - 1).bit_length())


def _measure(vectors: torch.Tensor) -> torch.Tensor:  # [G, V, D] -> [G, V]
    from vqkernels._core.triton_canonical import canonical_norms

    g, v, d = vectors.shape
    norm = vectors.new_empty(g, v, dtype=torch.float64)
    canonical_norms[(-(-v // MEASURED), g)](vectors, norm, v, *vectors.stride(), d, MEASURED, **PLAIN)
    return norm


def _look_up(
    x: torch.Tensor,  # [N, G, D]
    codebook: torch.Tensor,  # [G, K, D]
    code_norm: torch.Tensor,  # [G, K]
    m: int,
    metric: str,
    indices: torch.Tensor,  # [N, G, M] written
    distance: torch.Tensor,  # [N, G, M] written
) -> None:
    from vqkernels.ops.top_codes import triton_select as kernels

    (n, g, d), k = x.shape, codebook.shape[1]
    tile = lanes(m)
    elements = INTERPRETED_ELEMENTS if launch_target(x) == "interpreter" else ELEMENTS
    rows, room = max(1, elements // tile), 2 * tile
    grid = (-(-n // rows), g)
    x_norm = _measure(x.transpose(0, 1))
    inputs, strides = (x, codebook, x_norm, code_norm), (*x.stride(), *codebook.stride())

    minima = x.new_empty(g, n, tile, dtype=torch.float64)
    kernels.lane_minima[grid](*inputs, minima, n, k, *strides, d, metric, rows, tile, **PLAIN)
    # M lanes have a code each with a key up to the M-th lowest minimum
    lowest, bound = minima.amin(dim=2), minima.kthvalue(m).values
    key = x.new_full((g, n, room), torch.inf, dtype=torch.float64)
    index = x.new_zeros(g, n, room, dtype=torch.int32)
    kernels.gather_candidates[grid](
        *inputs, lowest, bound, key, index, n, k, m, *strides, d, metric, rows, tile, room, **PLAIN
    )
    # equal keys stand by index already, and stay so; what room was left has an infinite key and comes last
    key, order = key.sort(dim=2, stable=True)
    key, index = key[..., :m], index.gather(2, order[..., :m])

    norm = x_norm[..., None]
    usable = norm.isfinite() if metric == "cosine" else ~norm.isnan()
    usable = usable & (key[..., :1] > -torch.inf)
    value = torch.where(norm > 0, 1.0 + key / norm, 1.0).clamp(min=0.0) if metric == "cosine" else key
    value = torch.where(usable & key.isfinite(), value, torch.nan)
    indices.copy_(torch.where(usable, index, 0).transpose(0, 1))
    distance.copy_(value.transpose(0, 1))
