"""A codebook of running means, the quantizer around it, and a stack of such quantizers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

from vqkernels._core.arguments import NonNegative, Share, Size, Threshold, Times, checked
from vqkernels._core.checks import (
    check_data,
    check_floating,
    check_index_values,
    check_indices,
    check_same_device,
    check_size,
)
from vqkernels._core.shown import shape_of
from vqkernels._core.usable import usable_rows
from vqkernels.compat._inputs import check_dtype_of, check_indices_of, given_vectors
from vqkernels.compat._running_means import RunningMeans, State
from vqkernels.nn.rows import masked_mean_square, without_unusable
from vqkernels.ops.ema_update import no_step_if_empty
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.quantize import estimate_gradient


class EuclideanCodebook(RunningMeans):
    """``EuclideanCodebook`` of encodec: same arguments, results and state dict; no N x K matrix.

    Equivalent, in training, to::

        indices      = cdist(x, embed).argmin(-1)
        cluster_size = decay * cluster_size + (1 - decay) * one_hot(indices).sum(0)
        embed_avg    = decay * embed_avg    + (1 - decay) * one_hot(indices).T @ x
        embed        = embed_avg / smoothed(cluster_size)        # after the lookup

    and codes with ``cluster_size < threshold_ema_dead_code`` move to vectors of the batch.

    Args:
        dim: D.
        codebook_size: K.
        kmeans_init, kmeans_iters: start from so many rounds of Lloyd's algorithm on the first training batch.
        decay, epsilon: of the running means, as in :func:`vqkernels.ema_update_`.
        threshold_ema_dead_code: running size below which a code is replaced; 0 never.

    Numerics:
        The lookup is exact. Statistics are sums over all processes, the same bits however vectors are spread over
        them. A vector with a non-finite entry gets code 0 and takes no part in them; a batch of nothing else is no
        step.

    Example:
        >>> import torch
        >>> from vqkernels.compat.encodec.quantization.core_vq import EuclideanCodebook
        >>> codebook = EuclideanCodebook(dim=8, codebook_size=32)
        >>> quantize, embed_ind = codebook(torch.randn(2, 50, 8))
        >>> list(quantize.shape), list(embed_ind.shape)
        ([2, 50, 8], [2, 50])
    """

    flag = "inited"
    inited: torch.Tensor  # [1] float32
    cluster_size: torch.Tensor  # [K]
    embed: torch.Tensor  # [K, D]
    embed_avg: torch.Tensor  # [K, D]

    @checked
    def __init__(
        self,
        dim: Size,
        codebook_size: Size,
        kmeans_init: bool = False,
        kmeans_iters: Times = 10,
        decay: Share = 0.99,
        epsilon: NonNegative = 1e-5,
        threshold_ema_dead_code: Threshold = 2,
    ) -> None:
        check_size("codebook_size", codebook_size=codebook_size, dim=dim)
        super().__init__(
            codebook_size,
            1,
            decay=decay,
            eps=epsilon,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            threshold_ema_dead_code=threshold_ema_dead_code,
        )
        embed = torch.zeros(codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
        self.register_buffer("inited", torch.tensor([float(not kmeans_init)]))
        # of size 1, as embed_avg says; of size 0 a code not used at once would be divided by epsilon
        self.register_buffer("cluster_size", torch.ones(codebook_size))
        self.register_buffer("embed", embed)
        self.register_buffer("embed_avg", embed.clone())

    @property
    def epsilon(self) -> float:
        return self.eps

    def state(self) -> State:
        return State(self.embed[None], self.cluster_size[None], self.embed_avg[None])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [..., D] -> [..., D], [...]
        """The codes from before this step's update, and their indices."""
        self.check_input("x", x)
        return self.look_up(x, usable_rows(x))

    def check_input(self, name: str, x: torch.Tensor) -> None:  # [..., D]
        """Raise unless these are vectors as codes are."""
        given_vectors(name, x, self.embed.shape[1], -1, self.embed)

    def look_up(
        self,
        x: torch.Tensor,  # [..., D]
        usable: torch.Tensor,  # [...] bool
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [..., D], [...]
        """The same, of the vectors that are usable; code 0 for the others."""
        rows = x.detach().reshape(-1, 1, x.shape[-1])
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        part = torch.where(usable.reshape(-1, 1), 0, -1)
        if not self.training:
            return self._look_up(rows, part, x.shape[:-1], moves=False)
        self.start_(rows, part)
        return self.past.take(self._look_up, rows, part, x.shape[:-1], state=[self.embed])

    def _look_up(
        self, rows: torch.Tensor, part: torch.Tensor, shape: torch.Size, moves: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        indices = nearest_code(rows, self.embed[None]).indices
        index = torch.where(part < 0, 0, indices).reshape(shape)
        codes = self.decode(index)
        if moves:
            self._step(rows, torch.where(part < 0, -1, indices))
        return codes, index

    def encode(self, x: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...]
        self.check_input("x", x)
        return nearest_code(x, self.embed).indices

    def decode(self, embed_ind: torch.Tensor) -> torch.Tensor:  # [...] -> [..., D]
        check_indices_of("embed_ind", embed_ind, self.embed)
        check_index_values("embed_ind", embed_ind, len(self.embed))
        return gather_codes(self.embed, embed_ind)

    quantize, dequantize = encode, decode

    def init_embed_(self, data: torch.Tensor) -> None:  # [..., D]
        """Start from k-means, if that is wanted and has not been done."""
        self.check_input("data", data)
        check_data("data", data)
        self.start_(*_candidates(data))

    @torch.no_grad()
    def expire_codes_(self, batch_samples: torch.Tensor) -> None:  # [..., D]
        """Put codes that are dead on vectors of the batch."""
        self.check_input("batch_samples", batch_samples)
        self._expire_(*_candidates(batch_samples))

    @torch.no_grad()
    def _step(self, rows: torch.Tensor, indices: torch.Tensor) -> None:  # [N, 1, D], [N, 1]
        anchors = self._candidates(rows, indices) if self.expires() else None
        (count, total), anchors = self._stats_of_all(rows, indices, anchors=anchors)
        self._ema_(no_step_if_empty(count), total, self.decay)
        self._replace_(anchors)


class VectorQuantization(nn.Module):
    """``VectorQuantization`` of encodec: a codebook between two projections, straight-through.

    Args:
        dim: channels of the input.
        codebook_size: K.
        codebook_dim: size D of a code; None means ``dim``. Linear layers lead from and to other sizes.
        decay, epsilon, kmeans_init, kmeans_iters, threshold_ema_dead_code: as in :class:`EuclideanCodebook`.
        commitment_weight: of the mean squared difference between vectors and their codes.

    Raises:
        ValueError: on an input that does not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.encodec.quantization.core_vq import VectorQuantization
        >>> quantizer = VectorQuantization(dim=8, codebook_size=32)
        >>> quantize, embed_ind, loss = quantizer(torch.randn(2, 8, 50))
        >>> list(quantize.shape), list(embed_ind.shape), list(loss.shape)
        ([2, 8, 50], [2, 50], [1])
    """

    @checked
    def __init__(
        self,
        dim: Size,
        codebook_size: Size,
        codebook_dim: Size | None = None,
        decay: Share = 0.99,
        epsilon: NonNegative = 1e-5,
        kmeans_init: bool = True,
        kmeans_iters: Times = 50,
        threshold_ema_dead_code: Threshold = 2,
        commitment_weight: float = 1.0,
    ) -> None:
        check_size("codebook_dim", dim=dim, codebook_dim=dim if codebook_dim is None else codebook_dim)
        super().__init__()
        width = dim if codebook_dim is None else codebook_dim
        self.project_in: nn.Module = nn.Identity() if width == dim else nn.Linear(dim, width)
        self.project_out: nn.Module = nn.Identity() if width == dim else nn.Linear(width, dim)
        self.epsilon, self.commitment_weight, self.codebook_size = epsilon, commitment_weight, codebook_size
        self._codebook = EuclideanCodebook(
            dim=width,
            codebook_size=codebook_size,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            decay=decay,
            epsilon=epsilon,
            threshold_ema_dead_code=threshold_ema_dead_code,
        )

    @property
    def codebook(self) -> torch.Tensor:  # [K, D]
        return self._codebook.embed

    def _channels_last(self, x: torch.Tensor) -> torch.Tensor:  # [B, dim, N] -> [B, N, dim]
        check_floating("x", x)
        if x.dim() != 3:
            raise ValueError(f"x: expected [B, dim, N], got shape {shape_of(x)}")
        dim = getattr(self.project_in, "in_features", self.codebook.shape[1])
        check_dtype_of("x", x, self.project_in)
        return given_vectors("x", x, dim, 1, self.codebook).transpose(1, 2)

    def encode(self, x: torch.Tensor) -> torch.Tensor:  # [B, dim, N] -> [B, N]
        return self._codebook.encode(self.project_in(self._channels_last(x)))

    def decode(self, embed_ind: torch.Tensor) -> torch.Tensor:  # [B, N] -> [B, dim, N]
        check_indices_of("embed_ind", embed_ind, self.codebook, least=2)
        decoded: torch.Tensor = self.project_out(self._codebook.decode(embed_ind))
        return decoded.transpose(1, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [B, dim, N]
        """``(quantize [B, dim, N], embed_ind [B, N], loss [1])``; the loss is 0 in evaluation."""
        x, usable = without_unusable(self._channels_last(x))
        x = self.project_in(x)
        codes, index = self._codebook.look_up(x, usable)
        # to call backward on, whatever else it consists of; a graph cannot make such a leaf
        leaf = self.training and not torch.compiler.is_compiling()
        loss = torch.zeros(1, device=x.device, requires_grad=leaf)
        if self.training:
            x = x.to(torch.promote_types(x.dtype, codes.dtype))
            if self.commitment_weight > 0:
                wide = torch.promote_types(x.dtype, torch.float32)
                a, b = (rows.reshape(-1, 1, rows.shape[-1]).to(wide) for rows in (codes, x))
                loss = loss + masked_mean_square(a, b, usable.reshape(-1)) * self.commitment_weight
            codes = estimate_gradient(x, codes)
        quantize: torch.Tensor = self.project_out(codes)
        return quantize.transpose(1, 2), index, loss


class ResidualVectorQuantization(nn.Module):
    """``ResidualVectorQuantization`` of encodec: each layer quantizes what the ones before left.

    Args:
        num_quantizers: number of layers.
        **kwargs: of :class:`VectorQuantization`.

    Example:
        >>> import torch
        >>> from vqkernels.compat.encodec.quantization.core_vq import ResidualVectorQuantization
        >>> stack = ResidualVectorQuantization(num_quantizers=4, dim=8, codebook_size=32).eval()
        >>> x = torch.randn(2, 8, 50)
        >>> torch.equal(stack.decode(stack.encode(x, n_q=2)), stack(x, n_q=2)[0])
        True
    """

    @checked
    def __init__(self, *, num_quantizers: Times, **kwargs: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VectorQuantization(**kwargs) for _ in range(num_quantizers))

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [B, dim, N]
        n_q: Times | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``(quantized [B, dim, N], indices [Q, B, N], losses [Q, 1])`` of the first ``n_q`` layers."""
        self._check_layers("x", x)
        quantized, residual = torch.zeros_like(x), x
        columns, losses = [], []
        for layer in self._first(n_q):
            value, index, loss = layer(residual)
            residual = residual - value
            quantized = quantized + value
            columns.append(index)
            losses.append(loss)
        return quantized, torch.stack(columns), torch.stack(losses)

    @checked
    def encode(self, x: torch.Tensor, n_q: Times | None = None) -> torch.Tensor:  # [B, dim, N] -> [Q, B, N]
        """Indices of the first ``n_q`` layers."""
        self._check_layers("x", x)
        residual, columns = x, []
        for layer in self._first(n_q):
            columns.append(layer.encode(residual))
            residual = residual - layer.decode(columns[-1])
        return torch.stack(columns)

    def decode(self, q_indices: torch.Tensor) -> torch.Tensor:  # [Q, B, N] -> [B, dim, N]
        """The sum of the codes of as many layers as there are indices."""
        return self.sum_of_codes("q_indices", q_indices)

    def sum_of_codes(self, name: str, q_indices: torch.Tensor) -> torch.Tensor:  # [Q, B, N] -> [B, dim, N]
        check_indices(name, q_indices)
        if q_indices.dim() != 3 or len(q_indices) > len(self.layers):
            most = f"those of at most {len(self.layers)} layers"
            raise ValueError(f"{name}: expected {most}, [Q, B, N], got shape {shape_of(q_indices)}")
        for layer in self._first(1):
            check_same_device(**{name: q_indices}, module=layer.codebook)
            check_index_values(name, q_indices, len(layer.codebook))
        quantized = torch.tensor(0.0, device=q_indices.device)
        for layer, index in zip(self._first(None), q_indices, strict=False):
            quantized = quantized + layer.decode(index)
        return quantized

    def _check_layers(self, name: str, x: torch.Tensor) -> None:
        check_floating(name, x)
        if not len(self.layers):
            raise ValueError("num_quantizers: expected at least one layer, got 0")

    def _first(self, n_q: int | None) -> Iterator[VectorQuantization]:
        for layer in islice(self.layers, n_q or None):
            assert isinstance(layer, VectorQuantization)
            yield layer


def _candidates(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # [..., D] -> [N, 1, D], [N, 1]
    rows = x.detach().reshape(-1, 1, x.shape[-1])
    return rows, torch.where(usable_rows(rows), 0, -1)
