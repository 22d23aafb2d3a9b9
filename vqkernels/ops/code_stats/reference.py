"""The definition of ``code_stats``: float64 sums in row order, rounded once."""

from __future__ import annotations

import torch

from vqkernels.ops.code_stats.op import total_dtype


def unsupported_reasons(*args: object) -> list[str]:
    return []


def run(
    x: torch.Tensor,  # [N, G, D]
    indices: torch.Tensor,  # [N, G]
    num_codes: int,
    weight: torch.Tensor | None,  # [N, G]
    deterministic: bool,
    skip_nonfinite: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    _, g, d = x.shape
    if indices.device.type == "cpu" and indices.numel():  # elsewhere the check would be a synchronisation
        low, high = int(indices.min()), int(indices.max())
        if low < -1 or high >= num_codes:
            raise IndexError(f"indices: expected values in [-1, {num_codes}), got {low if low < -1 else high}")
    rows = x.double()
    factor = torch.ones_like(rows[..., 0]) if weight is None else weight.double()
    keep = indices >= 0
    if skip_nonfinite:
        keep = keep & x.isfinite().all(dim=2) & factor.isfinite()
    # every left-out row goes to one spare bin behind the codes of its group
    bins = torch.where(keep, indices, num_codes) + torch.arange(g, device=x.device) * (num_codes + 1)
    bins = bins.reshape(-1)
    count = torch.zeros(g * (num_codes + 1), dtype=torch.float64, device=x.device)
    total = torch.zeros(g * (num_codes + 1), d, dtype=torch.float64, device=x.device)
    count.index_add_(0, bins, factor.reshape(-1))
    total.index_add_(0, bins, (rows * factor[..., None]).reshape(-1, d))
    count = count.reshape(g, num_codes + 1)[:, :num_codes].float()
    total = total.reshape(g, num_codes + 1, d)[:, :num_codes].to(total_dtype(x))
    return count.contiguous(), total.contiguous()
