"""MaskGIT sampling: schedules, what is kept, guidance, streams, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from models.networks.code_shape import CodeShape
from models.networks.gpt import GPTConfig
from models.priors.masked import MaskedConfig, MaskedPrior
from models.priors.maskgit_sampling import MaskGITSamplingConfig, hidden_counts, sample_masked
from models.priors.sample_random import SampleRandom

NETWORK = GPTConfig(style="mingpt", positions="learned", layers=2, heads=2, width=16, causal=False)
CODES = CodeShape(num_codes=11, grid=(4, 5), num_classes=5)
LABELS = torch.tensor([0, 3, 5])


@pytest.fixture
def prior(awake: Callable[[nn.Module], nn.Module]) -> MaskedPrior:
    return awake(MaskedPrior(MaskedConfig(network=NETWORK), CODES))


def test_twelve_steps_over_256_codes() -> None:
    """floor(256 cos(pi t / 24)), the published schedule."""
    expected = [253, 247, 236, 221, 203, 181, 155, 128, 97, 66, 33, 0]
    # cos(pi / 3) is a half but for rounding
    assert [math.floor(256 * math.cos(math.pi * t / 24) + 1e-9) for t in range(1, 12)] == expected[:-1]
    assert hidden_counts(256, 12, "cosine") == expected


@pytest.mark.parametrize("schedule", ["cosine", "arccos"])
@pytest.mark.parametrize(("length", "steps"), [(256, 12), (256, 1), (16, 8), (4, 12), (1, 3)])
def test_schedules_fall_to_nothing(schedule: str, length: int, steps: int) -> None:
    counts = hidden_counts(length, steps, schedule)  # type: ignore[arg-type]
    assert len(counts) == steps
    assert counts[-1] == 0
    before = [length, *counts[:-1]]
    assert all(1 <= count < was or count == was == 1 for count, was in zip(counts[:-1], before, strict=False))


def test_arccos_reveals_faster_at_first() -> None:
    cosine, arccos = (hidden_counts(256, 12, name) for name in ("cosine", "arccos"))
    assert arccos[0] < cosine[0]
    assert arccos[5] == math.floor(256 * math.acos(0.5) * 2 / math.pi) == 170


def test_one_step_draws_each_code_from_its_own_logits(prior: MaskedPrior) -> None:
    random = SampleRandom(1, range(3))
    codes = sample_masked(prior, MaskGITSamplingConfig(steps=1), random, LABELS).flatten(1)
    logits = prior.gpt.head(prior.gpt(torch.full((3, 20), 11), LABELS)[:, 1:])
    cumulative = logits.softmax(2).cumsum(2)
    uniform = SampleRandom(1, range(3)).uniform(20)
    assert torch.equal((cumulative < uniform.unsqueeze(2)).sum(2), codes)


@pytest.mark.parametrize("growth", ["constant", "linear"])
def test_the_most_confident_codes_stay(prior: MaskedPrior, growth: str) -> None:
    """Two guided steps without choice noise, by hand; growing guidance starts at none."""
    config = MaskGITSamplingConfig(
        steps=2, choice_temperature=0.0, logit_temperature=0.5, guidance=3.0, guidance_growth=growth
    )
    found = sample_masked(prior, config, SampleRandom(1, range(3)), LABELS).flatten(1)
    random, codes = SampleRandom(1, range(3)), torch.full((3, 20), 11)
    for left, scale in ((14, 1.0 if growth == "linear" else 3.0), (0, 3.0)):
        with_class, without = (
            prior.gpt.head(prior.gpt(codes, labels)[:, 1:]) for labels in (LABELS, torch.full((3,), 5))
        )
        probability = ((without + scale * (with_class - without)) / 0.5).softmax(2)
        uniform, _ = random.uniform(20), random.uniform(20)
        drawn = (probability.cumsum(2) < uniform.unsqueeze(2)).sum(2)
        confidence = probability.gather(2, drawn.unsqueeze(2)).squeeze(2)
        confidence[codes < 11] = 2.0
        codes = torch.where(codes < 11, codes, drawn)
        codes.scatter_(1, confidence.argsort(1)[:, :left], 11)
    assert torch.equal(found, codes)


def test_every_setting_changes_what_comes_out(prior: MaskedPrior) -> None:
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "calm": {"choice_temperature": 0.45},
        "sharp": {"logit_temperature": 0.5},
        "guided": {"guidance": 3.0},
        "growing": {"guidance": 3.0, "guidance_growth": "linear"},
        "arccos": {"schedule": "arccos"},
        "fewer": {"steps": 6},
    }
    samples = {
        name: sample_masked(prior, MaskGITSamplingConfig(**change), SampleRandom(1, range(3)), LABELS)
        for name, change in changes.items()
    }
    assert all(not torch.equal(samples[a], samples[b]) for a in samples for b in samples if a < b)
    assert all(codes.min() >= 0 and codes.max() < 11 for codes in samples.values())


def test_known_codes_stay(prior: MaskedPrior) -> None:
    known = torch.randint(11, (3, 4, 5))
    known[:, 2:] = -1
    known[1] = -1
    known[2, 3, 4], known[2, :3] = 7, 1
    codes = sample_masked(prior, MaskGITSamplingConfig(), SampleRandom(1, range(3)), LABELS, known=known)
    assert torch.equal(codes[known >= 0], known[known >= 0])
    assert codes.min() >= 0
    assert codes.max() < 11
    alone = sample_masked(prior, MaskGITSamplingConfig(), SampleRandom(1, [2]), LABELS[2:], known=known[2:])
    assert torch.equal(codes[2:], alone)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_sample_does_not_depend_on_its_batch(prior: MaskedPrior, guidance: float) -> None:
    config = MaskGITSamplingConfig(guidance=guidance)
    together = sample_masked(prior, config, SampleRandom(1, range(3)), LABELS)
    alone = [sample_masked(prior, config, SampleRandom(1, [i]), LABELS[i : i + 1]) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))


def test_logits_come_in_pieces(prior: MaskedPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MaskGITSamplingConfig(guidance=2.0)
    whole = sample_masked(prior, config, SampleRandom(1, range(3)), LABELS)
    monkeypatch.setattr("models.priors.maskgit_sampling.LOGITS_AT_ONCE", 7 * 11)
    assert torch.equal(whole, sample_masked(prior, config, SampleRandom(1, range(3)), LABELS))


def test_errors_name_the_argument(prior: MaskedPrior) -> None:
    known = torch.zeros(3, 20, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^known: expected \(3, 4, 5\), got \(3, 20\)$"):
        sample_masked(prior, MaskGITSamplingConfig(), SampleRandom(1, range(3)), LABELS, known=known)
    for arguments, message in [
        ({"steps": 0}, r"^steps: expected at least 1, got 0$"),
        ({"choice_temperature": -1.0}, r"^choice_temperature: expected at least 0, got -1.0$"),
        ({"logit_temperature": 0.0}, r"^logit_temperature: expected more than 0, got 0.0$"),
        ({"guidance": -1.0}, r"^guidance: expected at least 0, got -1.0$"),
    ]:
        with pytest.raises(ValueError, match=message):
            MaskGITSamplingConfig(**arguments)
