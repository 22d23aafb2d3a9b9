"""What users hand to an estimator, and handing back the same kind."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def as_rows(x: Any, *, least: int) -> torch.Tensor:  # [N, D] floating point
    """A tensor of anything that can be read as rows of numbers; integers become float64."""
    rows = x if isinstance(x, torch.Tensor) else _tensor(x)
    if rows.is_complex():
        raise ValueError(f"X: expected real numbers, got {rows.dtype}. Complex data not supported")
    if rows.dim() != 2:
        raise ValueError(f"X: expected a 2D array [N, D], got {rows.dim()}D. Reshape your data")
    if rows.shape[1] < 1:
        shape = tuple(rows.shape)
        raise ValueError(
            f"X: expected rows of numbers, got 0 feature(s) (shape={shape}) while a minimum of 1 is required."
        )
    if len(rows) < least:
        raise ValueError(f"X: expected at least {least} rows, got n_samples={len(rows)}")
    return rows if rows.is_floating_point() else rows.double()


def as_weight(weight: Any, x: torch.Tensor) -> torch.Tensor | None:  # [N]
    if weight is None:
        return None
    tensor = torch.as_tensor(np.asarray(weight)) if not isinstance(weight, torch.Tensor) else weight
    if tensor.shape != x.shape[:1]:
        raise ValueError(f"sample_weight: expected shape [N] = [{len(x)}], got {list(tensor.shape)}")
    if len(tensor) and not bool(tensor.any()):
        raise ValueError("sample_weight: expected a weight above 0, got zero for every row")
    return tensor.to(device=x.device, dtype=torch.float32)


def in_kind_of(like: Any, tensor: torch.Tensor) -> Any:
    """The tensor for those who gave one, else a NumPy array."""
    return tensor if isinstance(like, torch.Tensor) else tensor.cpu().numpy()


def _tensor(x: Any) -> torch.Tensor:
    if hasattr(x, "toarray"):
        raise TypeError(f"X: expected a dense array, got sparse data ({type(x).__name__}), which is not supported")
    array = np.asarray(x)
    if array.dtype == object:
        array = array.astype(np.float64)
    if array.dtype.kind not in "fiubc":
        raise ValueError(f"X: expected numbers, got {array.dtype}")
    native = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())
