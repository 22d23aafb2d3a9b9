"""SGC-VQGAN's aggregators. Oracle: the formulas written out; levels of two channels, one of four high."""

from __future__ import annotations

import pytest
import torch
from network_checks import assert_bf16_is_near, assert_learns, disturb, millions

from models.networks.aggregator import Aggregator, AggregatorConfig

WEIGHTS = (1 / 2, 1 / 3, 1 / 6, 0.0)  # Eq. 10 of the paper, linear


def aggregator(mode: str, sigma: float = 0.5) -> Aggregator:
    return Aggregator(AggregatorConfig(mode=mode, attention_width=3), 8, WEIGHTS, sigma)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "width", "weights"),
    [
        ("concat", 8, 0),
        ("add", 2, 0),
        ("lowest", 6, 0),
        ("highest", 2, 0),
        ("cross_attention", 6, 7 * 3 + 2 * 9 + 24),
    ],
)
def test_widths_and_weights(mode: str, width: int, weights: int) -> None:
    part = aggregator(mode)
    x = torch.randn(2, 8, 3, 5)
    assert part.width == width
    assert part(x).shape == (2, width, 3, 5)
    assert round(millions(part) * 1e6) == weights


def test_what_the_decoder_sees() -> None:
    x = torch.randn(2, 8, 3, 5)
    assert torch.equal(aggregator("concat")(x), x)
    assert torch.equal(aggregator("highest")(x), x[:, :2])
    assert torch.equal(aggregator("lowest")(x), x[:, 2:])
    total = x[:, :2] / 2 + x[:, 2:4] / 3 + x[:, 4:6] / 6
    torch.testing.assert_close(aggregator("add")(x), total)


@pytest.mark.parametrize(("sigma", "high"), [(0.5, 2), (0.3, 4), (0.1, 6)])
def test_sigma_chooses_the_high_levels(sigma: float, high: int) -> None:
    x = torch.randn(2, 8, 3, 5)
    assert torch.equal(aggregator("highest", sigma)(x), x[:, :high])
    assert torch.equal(aggregator("lowest", sigma)(x), x[:, high:])
    assert aggregator("cross_attention", sigma)(x).shape == (2, 8 - high, 3, 5)


def test_cross_attention_lets_low_levels_look_at_high_ones() -> None:
    part = aggregator("cross_attention").double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    high, low = x[:, :2], x[:, 2:]
    q, k, v = (layer(y).flatten(2) for layer, y in ((part.query, low), (part.key, high), (part.value, high)))
    h = (q.mT @ k / 3**0.5).softmax(-1) @ v.mT  # [B, N, A]
    torch.testing.assert_close(part(x), low + part.output(h.mT.reshape(2, 3, 3, 5)))


def test_cross_attention_learns() -> None:
    part, x = aggregator("cross_attention"), torch.randn(2, 8, 3, 5)
    disturb(part)
    assert_bf16_is_near(part, x)
    part.zero_grad()
    # a bias of the keys moves all scores of a query alike: the softmax gives it no gradient
    learns = torch.nn.ModuleList([part.query, part.value, part.output])
    assert_learns(lambda: part(x), learns)
    assert part.key.weight.grad.abs().max() > 0


def test_levels_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match="weights: expected one for each of the levels that divide 10 channels, got 4"
    ):
        Aggregator(AggregatorConfig(), 10, WEIGHTS, 0.5)
    with pytest.raises(ValueError, match="weights: expected them falling from level to level"):
        Aggregator(AggregatorConfig(), 8, WEIGHTS[::-1], 0.5)
    with pytest.raises(ValueError, match=r"sigma: expected at most 0.5, so that a level is high, got 0.6"):
        aggregator("highest", 0.6)
    with pytest.raises(ValueError, match=r"sigma: expected more than 0.0, so that a level is low, got -1"):
        aggregator("cross_attention", -1)
    with pytest.raises(ValueError, match="attention_width: expected at least 1, got 0"):
        AggregatorConfig(attention_width=0)
