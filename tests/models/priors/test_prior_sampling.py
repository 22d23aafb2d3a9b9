"""Sampling of codes: filters and draws, guidance, streams of samples, and that the cache changes no code."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from models.networks.code_shape import CodeShape
from models.networks.depth_head import DepthHeadConfig
from models.networks.gpt import GPTConfig
from models.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from models.priors.grouped import GroupedConfig, GroupedPrior
from models.priors.sample_random import SampleRandom
from models.priors.sampling import SamplingConfig, draw, filter_logits, sample_codes
from models.priors.video import VideoConfig, VideoPrior
from models.priors.video_sampling import sample_video
from models.priors.window_sampling import sample_large, window_start

TINY = GPTConfig(layers=2, heads=2, width=16, dropout=0.1)
CODES = CodeShape(num_codes=11, grid=(3, 4), num_classes=5)
GROUPS = dataclasses.replace(CODES, groups=4, code_dim=8)
Awake = Callable[[nn.Module], nn.Module]

CONFIGS = {
    "greedy": SamplingConfig(temperature=0.0),
    "sampled": SamplingConfig(temperature=0.7, top_k=7, top_p=0.9),
    "guided": SamplingConfig(guidance=2.5, top_k=7),
    "guided greedy": SamplingConfig(guidance=2.5, temperature=0.0),
}
NETWORKS = {
    "llamagen": TINY,
    "released": dataclasses.replace(TINY, prefix_rotation="zero"),
    "mingpt": dataclasses.replace(TINY, style="mingpt", positions="learned"),
}


def flat(name: str, awake: Awake, codes: CodeShape = CODES) -> AutoregressivePrior:
    return awake(AutoregressivePrior(AutoregressiveConfig(network=NETWORKS[name]), codes))


def grouped(structure: str, inputs: str, awake: Awake, codes: CodeShape = GROUPS) -> GroupedPrior:
    network = dataclasses.replace(TINY, inputs=inputs)
    prior = GroupedPrior(GroupedConfig(network=network, head=DepthHeadConfig(structure=structure)), codes)
    if inputs == "vectors":
        prior.gpt.embed.set_codes(torch.randn(4, 11, 2))
    return awake(prior)


def random(samples: int = 3) -> SampleRandom:
    return SampleRandom(7, range(10, 10 + samples))


LABELS = torch.tensor([0, 3, 5])


# filters and draws


def test_filters_by_hand() -> None:
    logits = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64).log()
    for config, kept in [
        (SamplingConfig(), 5),
        (SamplingConfig(top_k=2), 2),
        (SamplingConfig(top_k=9), 5),
        (SamplingConfig(top_p=0.5), 2),  # the sum passes 0.5 at the second code only
        (SamplingConfig(top_p=0.49), 1),
        (SamplingConfig(top_p=0.8), 3),
        (SamplingConfig(top_k=2, top_p=0.75), 2),  # of the two, 0.71 and 0.29: p comes after k
        (SamplingConfig(top_k=2, top_p=0.7), 1),
        (SamplingConfig(temperature=0.5, top_p=0.8), 2),  # 0.77, 0.12, ...: p comes after the temperature
    ]:
        order = torch.randperm(5)
        found = filter_logits(logits[order], config)
        finite = found.isfinite()
        assert finite.tolist() == (order < kept).tolist(), config
        torch.testing.assert_close(found[finite], (logits[order] / config.temperature)[finite])


def test_of_equal_logits_top_k_keeps_the_first() -> None:
    assert filter_logits(torch.zeros(5), SamplingConfig(top_k=2)).isfinite().tolist() == [True, True, *[False] * 3]


def test_draws_follow_the_probabilities() -> None:
    probability = torch.tensor([0.5, 0.0, 0.25, 0.125, 0.125], dtype=torch.float64)
    logits = probability.log().expand(8, 5)
    uniform = (torch.arange(8, dtype=torch.float64) + 0.5) / 8
    assert draw(logits, uniform).tolist() == [0, 0, 0, 0, 2, 2, 3, 4]
    edges = torch.tensor([2.0**-33, 1 - 2.0**-33], dtype=torch.float64)
    nearly = torch.tensor([-torch.inf, 0.1, 0.3, -torch.inf], dtype=torch.float64).expand(2, 4)
    assert draw(nearly, edges).tolist() == [1, 2], "a code of probability zero is never drawn"


def test_sampled_codes_follow_the_prior(awake: Awake) -> None:
    """The first code of many samples, against the probabilities the network gives."""
    prior = flat("llamagen", awake, dataclasses.replace(CODES, grid=(1, 1), num_classes=0))
    count = 4000
    codes = sample_codes(prior, SamplingConfig(temperature=2.0), SampleRandom(0, range(count))).flatten()
    hidden = prior.gpt(torch.empty(1, 0, dtype=torch.int64))[0]
    expected = (prior.gpt.head(hidden)[0] / 2).softmax(0)
    found = torch.bincount(codes, minlength=11) / count
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / count).sqrt()).all()


# streams


def test_streams_are_those_of_seed_and_sample() -> None:
    a, b = SampleRandom(1, [5, 6, 7]), SampleRandom(1, [7])
    assert torch.equal(a.uniform(4)[2:], b.uniform(4))
    assert torch.equal(a.normal(2, 3)[2:], b.normal(2, 3)), "a stream goes on"
    first = SampleRandom(1, [5]).uniform(100)
    for other in (SampleRandom(2, [5]), SampleRandom(1, [6]), SampleRandom(5, [1])):
        assert not (other.uniform(100) == first).any()


def test_streams_have_the_right_moments() -> None:
    drawn = SampleRandom(3, range(200))
    uniform, normal = drawn.uniform(100).flatten(), drawn.normal(100).flatten()
    count = len(uniform)
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * math.sqrt(1 / 12 / count)
    assert abs(normal.mean()) < 5 / math.sqrt(count)
    assert abs(normal.var() - 1) < 5 * math.sqrt(2 / count)


# the cache


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_cache_changes_no_code(name: str, config: str, awake: Awake) -> None:
    prior = flat(name, awake)
    cached, whole = (sample_codes(prior, CONFIGS[config], random(), LABELS, cache=on) for on in (True, False))
    assert cached.shape == (3, 3, 4)
    assert torch.equal(cached, whole)
    assert len(cached.unique()) > 3, "a constant would prove little"


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("structure", ["groups", "residual", "parallel"])
@pytest.mark.parametrize("inputs", ["indices", "vectors"])
def test_the_cache_changes_no_grouped_code(structure: str, inputs: str, config: str, awake: Awake) -> None:
    prior = grouped(structure, inputs, awake)
    cached, whole = (sample_codes(prior, CONFIGS[config], random(), LABELS, cache=on) for on in (True, False))
    assert cached.shape == (3, 3, 4, 4)
    assert torch.equal(cached, whole)
    assert len(cached.unique()) > 3


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_cache_changes_no_frame(name: str, config: str, awake: Awake) -> None:
    """From one frame: the window of three grows, fills, and slides twice."""
    shape = dataclasses.replace(CODES, grid=(2, 3), frames=3)
    prior = awake(VideoPrior(VideoConfig(network=NETWORKS[name], scored="all"), shape))
    context = torch.randint(11, (3, 1, 2, 3))
    cached, whole = (
        sample_video(prior, CONFIGS[config], random(), context, 4, LABELS, cache=on) for on in (True, False)
    )
    assert cached.shape == (3, 5, 2, 3)
    assert torch.equal(cached, whole)
    assert torch.equal(cached[:, :1], context)
    assert len(cached[:, 1:].unique()) > 3


@pytest.mark.parametrize("config", CONFIGS)
def test_the_cache_changes_no_code_of_a_large_grid(config: str, awake: Awake) -> None:
    for prior in (flat("mingpt", awake), grouped("groups", "vectors", awake)):
        cached, whole = (
            sample_large(prior, CONFIGS[config], random(), (5, 7), LABELS, cache=on) for on in (True, False)
        )
        assert torch.equal(cached, whole)
        assert cached.shape[1:3] == (5, 7)


def test_greedy_codes_are_the_most_likely_ones(awake: Awake) -> None:
    """One teacher-forced pass over the result gives it back."""
    prior = flat("mingpt", awake)
    codes = sample_codes(prior, CONFIGS["greedy"], random(), LABELS).flatten(1)
    logits = prior.gpt.head(prior.gpt(codes[:, :-1], LABELS))
    assert torch.equal(logits.argmax(2), codes)


def test_guidance_is_that_of_the_logits(awake: Awake) -> None:
    prior = flat("mingpt", awake)
    codes = sample_codes(prior, CONFIGS["guided greedy"], random(), LABELS).flatten(1)
    none = torch.full_like(LABELS, 5)
    with_class, without = (prior.gpt.head(prior.gpt(codes[:, :-1], labels)) for labels in (LABELS, none))
    assert torch.equal((without + 2.5 * (with_class - without)).argmax(2), codes)


def test_both_branches_of_a_group_see_the_picked_index(awake: Awake) -> None:
    prior = grouped("groups", "indices", awake)
    codes = sample_codes(prior, CONFIGS["guided greedy"], random(), LABELS).flatten(1, 2)
    none = torch.full_like(LABELS, 5)
    hidden = [prior.gpt(codes[:, :-1], labels).flatten(0, 1) for labels in (LABELS, none)]
    index = codes.flatten(0, 1)
    for group in range(4):
        with_class, without = (prior.head.next_logits(rows, index[:, :group]) for rows in hidden)
        assert torch.equal((without + 2.5 * (with_class - without)).argmax(1), index[:, group])


def test_video_starts_from_what_the_window_holds(awake: Awake) -> None:
    """A new frame is that of the window's last frames alone, at their places in the window."""
    shape = dataclasses.replace(CODES, grid=(2, 3), frames=3)
    prior = awake(VideoPrior(VideoConfig(network=TINY), shape))
    context = torch.randint(11, (3, 4, 2, 3))
    video = sample_video(prior, CONFIGS["greedy"], random(), context, 1, LABELS)
    window = sample_codes(prior, CONFIGS["greedy"], random(), LABELS, start=context[:, 2:].flatten(1))
    assert torch.equal(video[:, 2:], window)


def test_windows_are_centred_where_borders_allow() -> None:
    assert [window_start(position, 9, 4) for position in range(9)] == [0, 0, 0, 1, 2, 3, 4, 5, 5]
    assert [window_start(position, 4, 4) for position in range(4)] == [0, 0, 0, 0]


def test_a_large_grid_is_drawn_from_the_windows_around_it(awake: Awake) -> None:
    prior = flat("mingpt", awake)
    large = sample_large(prior, CONFIGS["greedy"], random(), (5, 7), LABELS)
    for row in range(5):
        for column in range(7):
            top, left = window_start(row, 5, 3), window_start(column, 7, 4)
            window = large[:, top : top + 3, left : left + 4].flatten(1)
            place = (row - top) * 4 + column - left
            logits = prior.gpt.head(prior.gpt(window[:, :place], LABELS)[:, -1])
            assert torch.equal(logits.argmax(1), large[:, row, column])
    assert torch.equal(
        sample_large(prior, CONFIGS["sampled"], random(), (3, 4), LABELS),
        sample_codes(prior, CONFIGS["sampled"], random(), LABELS),
    ), "the prior's own grid is the usual sampling"


@pytest.mark.slow
def test_a_frame_of_1024_x_576_from_one_start_token(awake: Awake) -> None:
    """36 x 64 codes through a window of 18 x 32 (SGC-VQGAN)."""
    network = GPTConfig(style="mingpt", positions="learned", layers=1, heads=1, width=8)
    shape = CodeShape(num_codes=32, grid=(18, 32))
    prior = awake(AutoregressivePrior(AutoregressiveConfig(network=network), shape)).float()
    codes = sample_large(prior, SamplingConfig(), SampleRandom(0, [0]), (36, 64))
    assert codes.shape == (1, 36, 64)
    assert len(codes.unique()) > 16


# batches


@pytest.mark.parametrize("config", ["sampled", "guided"])
def test_a_sample_does_not_depend_on_its_batch(config: str, awake: Awake) -> None:
    shape = dataclasses.replace(CODES, grid=(2, 3), frames=3)
    video = awake(VideoPrior(VideoConfig(network=TINY, scored="all"), shape))
    context = torch.randint(11, (3, 1, 2, 3))
    priors = flat("mingpt", awake), grouped("groups", "indices", awake)
    ways = [
        lambda r, s: sample_codes(priors[0], CONFIGS[config], r, LABELS[s]),
        lambda r, s: sample_codes(priors[1], CONFIGS[config], r, LABELS[s]),
        lambda r, s: sample_large(priors[0], CONFIGS[config], r, (4, 5), LABELS[s]),
        lambda r, s: sample_video(video, CONFIGS[config], r, context[s], 2, LABELS[s]),
    ]
    for way in ways:
        together = way(random(), slice(None))
        alone = [way(SampleRandom(7, [10 + index]), slice(index, index + 1)) for index in range(3)]
        assert torch.equal(together, torch.cat(alone))


def test_sampling_leaves_the_mode_as_it_was(awake: Awake) -> None:
    prior = flat("mingpt", awake).train()
    first = sample_codes(prior, CONFIGS["sampled"], random(), LABELS)
    assert prior.training
    assert torch.equal(first, sample_codes(prior.eval(), CONFIGS["sampled"], random(), LABELS)), "no dropout"
    assert not prior.training


def test_errors_name_the_argument(awake: Awake) -> None:
    prior = flat("mingpt", awake)
    plain = flat("mingpt", awake, dataclasses.replace(CODES, num_classes=0))
    for labels, message in [
        (None, r"^labels: expected one class for each of 3 samples, got none$"),
        (torch.tensor([0]), r"^labels: expected \[3\], one per sample, got \(1,\)$"),
        (torch.tensor([0, 6, 1]), r"^labels: expected classes from 0 to 4, or 5 for none, got 6$"),
        (torch.tensor([0, -1, 1]), r"^labels: expected classes from 0 to 4, or 5 for none, got -1$"),
    ]:
        with pytest.raises(ValueError, match=message):
            sample_codes(prior, SamplingConfig(), random(), labels)
    with pytest.raises(ValueError, match=r"^labels: expected none for an unconditional prior, got \(3,\)$"):
        sample_codes(plain, SamplingConfig(), random(), LABELS)
    with pytest.raises(ValueError, match=r"^guidance: expected 1 from an unconditional prior, got 2.5$"):
        sample_codes(plain, CONFIGS["guided"], random())
    with pytest.raises(ValueError, match=r"^start: expected \[3, fewer than 12\], got \(3, 12\)$"):
        sample_codes(prior, SamplingConfig(), random(), LABELS, start=torch.zeros(3, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^grid: expected at least the prior's \(3, 4\), got \(2, 9\)$"):
        sample_large(prior, SamplingConfig(), random(), (2, 9), LABELS)
    shape = dataclasses.replace(CODES, frames=3)
    video = awake(VideoPrior(VideoConfig(network=TINY), shape))
    with pytest.raises(ValueError, match=r"^context: expected at least 2 frames, got 1$"):
        sample_video(video, SamplingConfig(), random(), torch.zeros(3, 1, 3, 4, dtype=torch.int64), 1, LABELS)
    with pytest.raises(ValueError, match=r"^context: expected \[3, F, 3, 4\], got \(3, 2, 4, 3\)$"):
        sample_video(video, SamplingConfig(), random(), torch.zeros(3, 2, 4, 3, dtype=torch.int64), 1, LABELS)
    with pytest.raises(ValueError, match=r"^frames: expected 1, got 3$"):
        sample_large(video, SamplingConfig(), random(), (4, 5), LABELS)
    with pytest.raises(ValueError, match=r"^samples: expected at least one, got none$"):
        SampleRandom(0, [])
    with pytest.raises(ValueError, match=r"^seed: expected 0 to 2\^64 - 1, got -1$"):
        SampleRandom(-1, [0])
    for arguments, message in [
        ({"temperature": -1.0}, r"^temperature: expected at least 0, got -1.0$"),
        ({"top_k": 0}, r"^top_k: expected at least 1, got 0$"),
        ({"top_p": 0.0}, r"^top_p: expected a share in \(0, 1\], got 0.0$"),
        ({"guidance": -0.5}, r"^guidance: expected at least 0, got -0.5$"),
    ]:
        with pytest.raises(ValueError, match=message):
            SamplingConfig(**arguments)
