"""Sampling of autoregressive priors, flat and grouped, with a key-value cache.

B samples, N rows of the network (B, or 2B with guidance: those with the class, then those without), S known
positions, L positions of a sample, G groups, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from models.networks.code_shape import CodeShape
from models.networks.gpt import KVCache
from models.priors.autoregressive import AutoregressivePrior
from models.priors.grouped import GroupedPrior
from models.priors.guidance import Guidance, check_guidance
from models.priors.sample_random import SampleRandom


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How indices are drawn from logits: guidance, temperature, top-k, top-p, in this order."""

    guidance: float = 1.0  # u + s(c - u) on the logits, c with the class, u without; 1 is the class alone
    temperature: float = 1.0  # divides the logits; 0 takes the largest
    top_k: int | None = None  # keep the k most probable codes
    top_p: float = 1.0  # keep the most probable codes up to and with the one at which their sum passes p

    def __post_init__(self) -> None:
        check_guidance(self.guidance)
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature: expected at least 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected at least 1, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected a share in (0, 1], got {self.top_p}")


class Picker:
    """Logits to indices, with the next random number of each sample. ``draws``: how many picks there will be."""

    def __init__(
        self,
        config: SamplingConfig,
        random: SampleRandom,
        draws: int,
        codes: CodeShape,
        labels: torch.Tensor | None,  # [B]
    ) -> None:
        self.config = config
        self.guidance = Guidance(config.guidance, labels, len(random), codes.num_classes)
        # greedy sampling draws nothing
        self._uniform = random.uniform(draws if config.temperature > 0 else 0)  # [B, draws]
        self._drawn = 0

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:  # [N, K] -> [B]
        logits = self.guidance(logits)
        if self.config.temperature == 0:
            return logits.argmax(1)
        uniform = self._uniform[:, self._drawn]
        self._drawn += 1
        return draw(filter_logits(logits, self.config), uniform)


def filter_logits(logits: torch.Tensor, config: SamplingConfig) -> torch.Tensor:  # [..., K] -> [..., K] float64
    """Logits over the temperature, -inf where top-k or top-p leaves a code out; of equal ones lower codes stay."""
    logits = logits.to(torch.float64) / config.temperature
    count = logits.shape[-1]
    keep_all = config.top_k is None or config.top_k >= count
    if keep_all and config.top_p == 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(count, device=logits.device)
    if not keep_all:
        assert config.top_k is not None
        ordered = ordered.masked_fill(rank >= config.top_k, -torch.inf)
    if config.top_p < 1:
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability  # of the more probable codes
        # the first code stays whatever rounding does to its "before"
        ordered = ordered.masked_fill((before > config.top_p) & (rank > 0), -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)


def draw(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:  # [..., K] float64, [...] -> [...]
    """The index at which the cumulative probability passes ``uniform``."""
    cumulative = logits.softmax(-1).cumsum(-1)  # [..., K]
    # the sum may miss 1 by rounding; a code of probability zero is never passed at
    threshold = uniform.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)


def extend(
    prior: AutoregressivePrior | GroupedPrior,
    codes: torch.Tensor,  # [B, S] or [B, S, G], known
    count: int,
    pick: Picker,
    cache: KVCache | None,
) -> torch.Tensor:  # [B, S + count] or [B, S + count, G]
    """``codes`` and ``count`` more. A cache holds the prefix and the first of ``codes``, or nothing yet."""
    for _ in range(count):
        unseen = codes if cache is None else codes[:, max(cache.length - 1, 0) :]
        hidden = prior.gpt(pick.guidance.rows(unseen), pick.guidance.labels, cache)[:, -1]  # [N, W]
        codes = torch.cat([codes, prior.choose(hidden, pick).unsqueeze(1)], dim=1)
    return codes


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode of before comes back."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def sample_codes(
    prior: AutoregressivePrior | GroupedPrior,
    config: SamplingConfig,
    random: SampleRandom,
    labels: torch.Tensor | None = None,  # [B]
    *,
    start: torch.Tensor | None = None,  # [B, S] or [B, S, G]
    cache: bool = True,
) -> torch.Tensor:  # [B, h, w] or [B, h, w, G]
    """Codes of the samples that ``random`` names, in raster order from the prefix, or from the codes of ``start``.

    ``cache=False`` computes every position again for every code: the same codes, slowly.
    """
    shape = prior.codes
    groups = (shape.groups,) if shape.groups > 1 else ()
    if start is None:
        start = torch.empty(len(random), 0, *groups, dtype=torch.int64, device=random.device)
    if start.shape[:1] + start.shape[2:] != (len(random), *groups) or not start.shape[1] < shape.length:
        sides = ", ".join(map(str, (len(random), f"fewer than {shape.length}", *groups)))
        raise ValueError(f"start: expected [{sides}], got {tuple(start.shape)}")
    count = shape.length - start.shape[1]
    pick = Picker(config, random, count * shape.groups, shape, labels)
    with evaluating(prior):
        codes = extend(prior, start, count, pick, prior.gpt.new_cache() if cache else None)
    return codes.unflatten(1, shape.shape[: len(shape.shape) - len(groups)])
