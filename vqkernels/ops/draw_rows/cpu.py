"""Launcher of the C++ draw (csrc/cpu/draw_rows.cpp)."""

from __future__ import annotations

from functools import reduce

import torch

from vqkernels._core.env import isa_code
from vqkernels._core.extension import DTYPE_CODES, METRIC_CODES, cpu_unsupported_reasons, extension

_METRICS = {**METRIC_CODES, "levels": 3}


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(
    codes: list[torch.Tensor],  # L of [K, D_l]
    x: list[torch.Tensor],  # L of [N, D_l]
    weights: list[float],  # [L]
    metric: str,
    usable: torch.Tensor,  # [N] bool
    row_number: torch.Tensor,  # [N] int64
    code_number: torch.Tensor,  # [K] int64
) -> tuple[torch.Tensor, torch.Tensor]:
    # the kernel reads one dtype; widening is exact
    dtype = reduce(torch.promote_types, (t.dtype for t in (*codes, *x)), torch.float32)
    codes, x = ([t.to(dtype).contiguous() for t in levels] for levels in (codes, x))
    usable, row_number, code_number = usable.contiguous(), row_number.contiguous(), code_number.contiguous()
    n, k = x[0].shape[0], codes[0].shape[0]
    rows = torch.empty(k, dtype=torch.int64)
    key = torch.empty(k, dtype=torch.float64)
    extension().draw_rows(
        [level.data_ptr() for level in codes],
        [level.data_ptr() for level in x],
        DTYPE_CODES[dtype],
        [level.shape[1] for level in x],
        weights,
        usable.data_ptr(),
        row_number.data_ptr(),
        code_number.data_ptr(),
        n,
        k,
        _METRICS[metric],
        torch.get_num_threads(),
        isa_code(),
        rows.data_ptr(),
        key.data_ptr(),
    )
    return rows, key
