"""Launcher of the C++ draw (csrc/cpu/draw_rows.cpp)."""

from __future__ import annotations

import torch

from vqkernels._core.env import isa_code
from vqkernels._core.extension import DTYPE_CODES, METRIC_CODES, cpu_unsupported_reasons, extension
from vqkernels.ops.draw_rows.op import Problem

_METRICS = {**METRIC_CODES, "levels": 3}


def unsupported_reasons(*args: object) -> list[str]:
    return cpu_unsupported_reasons(*args)


def run(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = problem.dtype
    codes, x = ([level.to(dtype).contiguous() for level in levels] for levels in (problem.codes, problem.x))
    usable, row_number, code_number = (
        numbers.contiguous() for numbers in (problem.usable, problem.row_number, problem.code_number)
    )
    rows = torch.empty_like(code_number)
    key = torch.empty_like(rows, dtype=torch.float64)
    extension().draw_rows(
        [level.data_ptr() for level in codes],
        [level.data_ptr() for level in x],
        DTYPE_CODES[dtype],
        problem.dims,
        problem.weights,
        usable.data_ptr(),
        row_number.data_ptr(),
        code_number.data_ptr(),
        len(row_number),
        len(code_number),
        _METRICS[problem.metric],
        torch.get_num_threads(),
        isa_code(),
        rows.data_ptr(),
        key.data_ptr(),
    )
    return rows, key
