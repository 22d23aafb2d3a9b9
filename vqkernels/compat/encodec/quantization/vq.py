"""The residual quantizer of a codec: as many layers as a bandwidth allows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vqkernels._core.arguments import Positive, Share, Size, Threshold, Times, checked
from vqkernels.compat.encodec.quantization.core_vq import ResidualVectorQuantization


@dataclass
class QuantizedResult:
    """What a quantizer returns."""

    quantized: torch.Tensor  # [B, dimension, N]
    codes: torch.Tensor  # [Q, B, N] int64
    bandwidth: torch.Tensor  # [], in kb/s
    penalty: torch.Tensor | None = None  # [], the commitment loss
    metrics: dict[str, Any] = field(default_factory=dict)


class ResidualVectorQuantizer(nn.Module):
    """``ResidualVectorQuantizer`` of encodec: same arguments, results and state dict; no N x K matrix.

    A layer takes ``log2(bins)`` bits for each of the ``sample_rate`` frames of a second; the first
    ``floor(bandwidth / bits)`` layers run, at least one and at most ``n_q``.

    Args:
        dimension: channels of the input.
        n_q: number of layers.
        bins: K.
        decay, kmeans_init, kmeans_iters, threshold_ema_dead_code: of their codebooks.

    Example:
        >>> import torch
        >>> from vqkernels.compat.encodec.quantization import ResidualVectorQuantizer
        >>> quantizer = ResidualVectorQuantizer(dimension=8, n_q=4, bins=32)
        >>> result = quantizer(torch.randn(2, 8, 50), sample_rate=100, bandwidth=1.0)
        >>> list(result.codes.shape), float(result.bandwidth)
        ([2, 2, 50], 1.0)
    """

    @checked
    def __init__(
        self,
        dimension: Size = 256,
        n_q: Size = 8,
        bins: Size = 1024,
        decay: Share = 0.99,
        kmeans_init: bool = True,
        kmeans_iters: Times = 50,
        threshold_ema_dead_code: Threshold = 2,
    ) -> None:
        super().__init__()
        self.n_q, self.dimension, self.bins, self.decay = n_q, dimension, bins, decay
        self.kmeans_init, self.kmeans_iters = kmeans_init, kmeans_iters
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.vq = ResidualVectorQuantization(
            num_quantizers=n_q,
            dim=dimension,
            codebook_size=bins,
            decay=decay,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            threshold_ema_dead_code=threshold_ema_dead_code,
        )

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [B, dimension, N]
        sample_rate: Positive,
        bandwidth: float | None = None,
    ) -> QuantizedResult:
        """Quantize with as many layers as ``bandwidth``, in kb/s, allows; None or 0 means all."""
        n_q = self.get_num_quantizers_for_bandwidth(sample_rate, bandwidth)
        quantized, codes, losses = self.vq(x, n_q=n_q)
        used = torch.tensor(n_q * self.get_bandwidth_per_quantizer(sample_rate)).to(x)
        return QuantizedResult(quantized, codes, used, penalty=losses.mean())

    @checked
    def get_num_quantizers_for_bandwidth(self, sample_rate: Positive, bandwidth: float | None = None) -> int:
        """Number of layers that run."""
        of_each = self.get_bandwidth_per_quantizer(sample_rate)
        # a single code takes no bits
        if not bandwidth or bandwidth <= 0 or of_each == 0:
            return self.n_q
        return max(1, math.floor(min(bandwidth / of_each, self.n_q)))

    @checked
    def get_bandwidth_per_quantizer(self, sample_rate: Positive) -> float:
        """What a layer takes, in kb/s."""
        return math.log2(self.bins) * sample_rate / 1000

    @checked
    def encode(
        self,
        x: torch.Tensor,  # [B, dimension, N]
        sample_rate: Positive,
        bandwidth: float | None = None,
    ) -> torch.Tensor:  # [Q, B, N]
        """Indices of the layers that run."""
        return self.vq.encode(x, n_q=self.get_num_quantizers_for_bandwidth(sample_rate, bandwidth))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:  # [Q, B, N] -> [B, dimension, N]
        """What ``forward`` gave with these indices."""
        return self.vq.sum_of_codes("codes", codes)
