"""Codebooks from their descriptions."""

from __future__ import annotations

from typing import Any

from vqkernels.nn.codebook import Codebook, EmaCodebook, FrozenCodebook, LearnedCodebook, OnlineCodebook
from vqkernels.nn.config import CodebookConfig, Ema, Frozen, Learned, OnlineClustering, SemanticClustering
from vqkernels.nn.semantic import SemanticCodebook

_KINDS: dict[type, type[Codebook]] = {
    Learned: LearnedCodebook,
    OnlineClustering: OnlineCodebook,
    SemanticClustering: SemanticCodebook,
    Ema: EmaCodebook,
    Frozen: FrozenCodebook,
}


def build_codebook(
    config: CodebookConfig, groups: int, num_codes: int, dim: int, metric: str, backend: str | None
) -> Codebook:
    """The codebook that a description stands for."""
    if type(config) not in _KINDS:
        names = ", ".join(kind.__name__ for kind in _KINDS)
        raise TypeError(f"codebook: expected one of {names}, got {type(config).__name__}")
    kind: Any = _KINDS[type(config)]
    codebook: Codebook = kind(config, groups, num_codes, dim, metric, backend)
    return codebook
