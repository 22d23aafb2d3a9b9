"""What users hand to an estimator, and handing back the same kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from vqkernels._core.checks import check_data, check_floating, check_shape, check_tensor
from vqkernels._core.shown import shown
from vqkernels.kmeans.data import check_weight
from vqkernels.kmeans.source import HeldRows, MappedRows, tensor_of


def as_source(x: Any, *, least: int) -> HeldRows | MappedRows:  # [N, D]
    """Rows of anything that can be read as numbers, of a ``numpy.memmap`` where they lie; integers become float64."""
    rows: Any = x if isinstance(x, (torch.Tensor, np.memmap)) else tensor_of("X", x)
    if isinstance(rows, torch.Tensor):
        check_tensor("X", rows)
        check_data("X", rows)
    kind = str(rows.dtype)
    if "complex" in kind:
        raise ValueError(f"X: expected real numbers, got {kind}. Complex data not supported")
    if rows.ndim != 2:
        raise ValueError(f"X: expected a 2D array [N, D], got {rows.ndim}D. Reshape your data")
    if rows.shape[1] < 1:
        shape = shown(tuple(rows.shape))
        raise ValueError(
            f"X: expected rows of numbers, got 0 feature(s) (shape={shape}) while a minimum of 1 is required."
        )
    if len(rows) < least:
        raise ValueError(f"X: expected at least {least} rows, got n_samples={len(rows)}")
    if isinstance(rows, np.memmap):
        if rows.dtype.kind not in "fiub":
            raise ValueError(f"X: expected numbers, got {rows.dtype}")
        return MappedRows(rows)
    rows = rows if rows.is_floating_point() else rows.double()
    check_floating("X", rows)
    return HeldRows(rows)


def as_weight(weight: Any, source: HeldRows | MappedRows) -> torch.Tensor | None:  # [N]
    if weight is None:
        return None
    tensor = weight if isinstance(weight, torch.Tensor) else tensor_of("sample_weight", weight)
    check_tensor("sample_weight", tensor)
    whole = not tensor.is_floating_point() and not tensor.is_complex()
    mass = check_weight("sample_weight", tensor.float() if whole else tensor)
    check_shape("sample_weight", mass, tuple(source.rows.shape[:1]), "[N]")
    if len(mass) and not bool(mass.any()):
        raise ValueError("sample_weight: expected a weight above 0, got zero for every row")
    return mass.to(source.device)


def each_chunk(source: HeldRows | MappedRows, f: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:  # [N, ...]
    """``f`` of one chunk of rows after the other, in one tensor from the start: joined parts would need twice the
    memory, and leave holes between them."""
    whole, start = torch.empty(0), 0
    for rows in source.chunks():
        part = f(rows)
        if not start:
            whole = part.new_empty(len(source.rows), *part.shape[1:])
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def in_kind_of(like: Any, tensor: torch.Tensor) -> Any:
    """The tensor for those who gave one, else a NumPy array."""
    return tensor if isinstance(like, torch.Tensor) else tensor.cpu().numpy()
