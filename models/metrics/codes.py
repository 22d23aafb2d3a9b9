"""How codes are used, from counts of all of them. G groups, K codes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from models.metrics.accumulator import Sums

_TOP = (1, 10, 100, 1000)


class CodeUse(NamedTuple):
    """How much of a codebook is in use; means over groups."""

    utilization: float  # share of codes used at least once
    perplexity: float  # exp of the entropy of the code distribution


def code_use(counts: torch.Tensor) -> CodeUse:  # [G, K]
    """Utilization and perplexity of a histogram of codes."""
    share = counts.double() / counts.sum(1, keepdim=True)  # [G, K]
    entropy = -torch.special.xlogy(share, share).sum(1)  # [G]
    return CodeUse((counts > 0).double().mean().item(), entropy.exp().mean().item())


class CodeCounts(Sums):
    """Histogram of all codes of a set, one row per group."""

    def __init__(self, groups: int, num_codes: int) -> None:
        super().__init__(counts=torch.zeros(groups, num_codes, dtype=torch.int64))

    @property
    def counts(self) -> torch.Tensor:  # [G, K] int64
        return self.sums["counts"]

    def update(self, indices: torch.Tensor) -> None:  # [...] or, of more than one group, [..., G]
        groups, num_codes = self.counts.shape
        columns = indices.detach().reshape(-1, groups).cpu()  # [N, G]
        for count, column in zip(self.counts, columns.T, strict=True):
            count += torch.bincount(column, minlength=num_codes)

    def most_used(self, m: int) -> tuple[torch.Tensor, torch.Tensor]:  # [G, M], [G, M]
        """The M codes of every group that are used most, and how often."""
        count, code = self.counts.sort(dim=1, descending=True, stable=True)
        return code[:, :m], count[:, :m]

    def compute(self) -> dict[str, float]:
        """``utilization``, ``perplexity``, and the share of tokens that the most used codes stand for."""
        scores = dict(zip(CodeUse._fields, code_use(self.counts), strict=True))
        total = self.counts.sum(1)  # [G]
        for m in _TOP:
            if m < self.counts.shape[1]:
                share = self.most_used(m)[1].sum(1).double() / total
                scores[f"top{m}_share"] = share.mean().item()
        return scores
