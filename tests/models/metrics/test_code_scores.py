"""Use of codes against scipy and counting."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from models.metrics.codes import CodeCounts, code_use


def test_code_use_is_the_mean_over_groups() -> None:
    counts = torch.tensor([[4, 4, 0, 0], [1, 2, 3, 4]])
    used = code_use(counts)
    assert used.utilization == (0.5 + 1.0) / 2
    wanted = np.mean([np.exp(scipy.stats.entropy(row)) for row in counts.numpy()])
    assert used.perplexity == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
def test_codes_are_counted_over_batches(groups: int) -> None:
    shape = (5, 4, 4) if groups == 1 else (5, 4, 4, groups)
    indices = torch.randint(16, shape, generator=torch.Generator().manual_seed(0))
    counts = CodeCounts(groups, 16)
    for part in indices.split(2):
        counts.update(part)
    columns = indices.reshape(-1, groups)
    for group in range(groups):
        assert counts.counts[group].tolist() == [int((columns[:, group] == code).sum()) for code in range(16)]
    scores = counts.compute()
    assert (scores["utilization"], scores["perplexity"]) == code_use(counts.counts)


def test_the_most_used_codes_and_their_share() -> None:
    counts = CodeCounts(1, 200)
    counts.update(torch.tensor([7] * 60 + [3] * 30 + list(range(100, 110))))
    code, count = counts.most_used(3)
    assert code.tolist() == [[7, 3, 100]]  # of several that are used as often, the first
    assert count.tolist() == [[60, 30, 1]]
    scores = counts.compute()
    assert (scores["top1_share"], scores["top10_share"], scores["top100_share"]) == (0.6, 0.98, 1.0)
    assert "top1000_share" not in scores
