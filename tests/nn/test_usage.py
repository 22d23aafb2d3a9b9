"""Usage statistics. Oracle: every index of the run kept in a list and counted afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from nn_oracle import KINDS, make


@pytest.mark.parametrize("kind", KINDS)
def test_usage_counts_what_a_full_record_counts(kind: str) -> None:
    window = 3
    quantizer = make(kind, groups=2, usage_window=window)
    record = []
    frequency = torch.zeros(2, 32, dtype=torch.float64)
    for step in range(7):
        x, mask = torch.randn(12, 8), torch.rand(12) > 0.5
        mask &= step != 4  # a step without vectors does not count
        indices = quantizer(x, mask).indices[mask]
        if step != 4:
            record.append([set(group.tolist()) for group in indices.unbind(1)])
            share = torch.stack([group.bincount(minlength=32) / len(indices) for group in indices.unbind(1)])
            frequency += (share - frequency) / window
    recent = [set().union(*(step[group] for step in record[-window:])) for group in range(2)]
    alive = sum(map(len, recent))
    usage = quantizer.usage()
    assert math.isclose(usage.utilization, alive / 64, rel_tol=2**-23)
    assert int(usage.dead_codes) == 64 - alive
    p = frequency / frequency.sum(1, keepdim=True)
    perplexity = (-torch.special.xlogy(p, p).sum(1)).exp().mean()
    # 32 terms, each rounded a few times
    assert math.isclose(usage.perplexity, perplexity, rel_tol=64 * 2**-24)


def test_before_training_no_code_is_used() -> None:
    usage = make("learned").usage()
    assert (float(usage.utilization), float(usage.perplexity), int(usage.dead_codes)) == (0.0, 1.0, 32)


def test_usage_is_part_of_the_state() -> None:
    quantizer, loaded = make("learned"), make("learned")
    quantizer(torch.randn(50, 8))
    loaded.load_state_dict(quantizer.state_dict())
    assert loaded.usage() == quantizer.usage()
