"""What a layout of published files is: where its weights are, and how a module is made for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from models.networks.code_shape import CodeShape
from models.priors.autoregressive import AutoregressiveConfig, AutoregressivePrior
from models.priors.diffusion import DiffusionConfig, DiffusionPrior
from models.tokenizers import Tokenizer
from models.tokenizers.config import Network, QuantizerConfig

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Untold:
    """What no shape of a prior's file tells; None takes what was published."""

    heads: int | None = None  # attention heads
    grid: tuple[int, int] | None = None  # rows and columns of codes


class PublishedTokenizer(NamedTuple):
    """A tokenizer and its configs."""

    network: Network
    quantizer: QuantizerConfig
    module: Tokenizer


class PublishedPrior(NamedTuple):
    """A prior, its config, and the codes or latents that it knows."""

    prior: AutoregressiveConfig | DiffusionConfig
    codes: CodeShape
    module: AutoregressivePrior | DiffusionPrior


Published = PublishedTokenizer | PublishedPrior


class Layout(NamedTuple):
    """How the weights of a file become those of a module."""

    wrapped: tuple[str, ...]  # keys of the weights in a file of training, the first that is there
    ignored: tuple[str, ...]  # beginnings of names that are no part of the model
    # A module of the sizes of the weights, and the name of each of its weights -> that in the file. Tensors of
    # another shape are replaced by reshaped ones. Raises KeyError or ValueError at what is not of this layout.
    read: Callable[[Weights, Untold], tuple[Published, dict[str, str]]]


def count(weights: Weights, name: Callable[[int], str]) -> int:
    """How many of the names ``name(0)``, ``name(1)``, ... there are; KeyError if there is none."""
    number = 0
    while name(number) in weights:
        number += 1
    if not number:
        raise KeyError(name(0))
    return number


def heads_of(width: int, published: Mapping[int, int], untold: Untold) -> int:
    """Attention heads: those asked for, or those of the published model of this width."""
    heads = published.get(width) if untold.heads is None else untold.heads
    if heads is None:
        raise ValueError(f"heads: expected a number, as nothing published has a width of {width}, got none")
    return heads


def with_kinds(names: dict[str, str], kinds: tuple[str, ...] = ("weight", "bias")) -> dict[str, str]:
    """Names of layers -> names of their weights."""
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in names.items() for kind in kinds}
