"""``EMAVectorQuantizer``: codes that are running means of their vectors."""

from __future__ import annotations

import torch
from torch import nn

from vqkernels._core.arguments import NonNegative, Share, Size, checked
from vqkernels._core.checks import check_floating, check_index_values, check_same_device, check_shape, check_size
from vqkernels._core.recomputation import Past
from vqkernels.compat._embedding_quantizer import OfEmbedding, Remap, UnknownIndex
from vqkernels.compat._feature_maps import OneHot, match
from vqkernels.compat._inputs import check_indices_of, given_vectors
from vqkernels.distributed import stats_of_all
from vqkernels.nn.sharded import WrittenParameters
from vqkernels.ops.ema_update import ema_update_, no_step_if_empty
from vqkernels.ops.gather_codes import gather_codes


class EmbeddingEMA(WrittenParameters):
    """``EmbeddingEMA`` of taming-transformers: codes, and the running counts and sums that they are made of.

    Args:
        num_tokens: K.
        codebook_dim: D.
        decay, eps: as in :func:`vqkernels.ema_update_`.

    Example:
        >>> import torch
        >>> from vqkernels.compat.taming import EmbeddingEMA
        >>> list(EmbeddingEMA(16, 4)(torch.tensor([3, 5])).shape)
        [2, 4]
    """

    @checked
    def __init__(self, num_tokens: Size, codebook_dim: Size, decay: Share = 0.99, eps: NonNegative = 1e-5) -> None:
        check_size("num_tokens", num_tokens=num_tokens, codebook_dim=codebook_dim)
        super().__init__()
        self.decay, self.eps = decay, eps
        weight = torch.randn(num_tokens, codebook_dim)
        # parameters, as checkpoints and optimizers know them, though no gradient moves them
        self.weight = nn.Parameter(weight, requires_grad=False)  # [K, D]
        # a code of size 0 would be thrown 1 / eps away by the first step that leaves it unused
        self.cluster_size = nn.Parameter(torch.ones(num_tokens), requires_grad=False)  # [K]
        self.embed_avg = nn.Parameter(weight.clone(), requires_grad=False)  # [K, D]
        self.update = True

    def forward(self, embed_id: torch.Tensor) -> torch.Tensor:  # [...] -> [..., D]
        check_indices_of("embed_id", embed_id, self.weight)
        check_index_values("embed_id", embed_id, len(self.weight))
        return gather_codes(self.weight, embed_id)

    @torch.no_grad()
    def cluster_size_ema_update(self, new_cluster_size: torch.Tensor) -> None:  # [K]
        self._take_("new_cluster_size", self.cluster_size, new_cluster_size)

    @torch.no_grad()
    def embed_avg_ema_update(self, new_embed_avg: torch.Tensor) -> None:  # [K, D]
        self._take_("new_embed_avg", self.embed_avg, new_embed_avg)

    def _take_(self, name: str, running: torch.Tensor, new: torch.Tensor) -> None:
        check_floating(name, new)
        check_shape(name, new, tuple(running.shape), "as what it moves")
        check_same_device(**{name: new}, module=running)
        # a number that is not finite does not move what is
        moved = torch.add(running * self.decay, new, alpha=1 - self.decay).to(running.dtype)
        running.copy_(torch.where(moved.isfinite(), moved, running))

    @checked
    def weight_update(self, num_tokens: int) -> None:
        """Make the codes what the running statistics say; ``num_tokens`` is K."""
        if num_tokens != len(self.weight):
            raise ValueError(f"num_tokens: expected {len(self.weight)}, got {num_tokens}")
        self._move_(torch.zeros_like(self.cluster_size)[None], torch.zeros_like(self.embed_avg)[None], decay=1.0)

    @torch.no_grad()
    def take_in_(self, x: torch.Tensor, indices: torch.Tensor) -> None:  # [N, D], [N]
        """One training step with the vectors of all processes; -1 leaves a vector out."""
        self.about_to_write("weight", "cluster_size", "embed_avg")
        (count, total), _ = stats_of_all(x[:, None], indices[:, None], len(self.weight))
        self._move_(no_step_if_empty(count), total, self.decay)

    def _move_(self, count: torch.Tensor, total: torch.Tensor, decay: float) -> None:  # [1, K], [1, K, D]
        codes, size, sums = (tensor.detach()[None] for tensor in (self.weight, self.cluster_size, self.embed_avg))
        ema_update_(codes, size, sums, count, total, decay=decay, eps=self.eps)


class EMAVectorQuantizer(OfEmbedding):
    """``EMAVectorQuantizer`` of taming-transformers: same arguments, results and state dict; no N x K matrix.

    Equivalent to::

        indices = cdist(z, weight).argmin(-1)                       # z as rows
        z_q     = z + (weight[indices] - z).detach()
        loss    = beta * mse(z, weight[indices])

    and, in training, :func:`vqkernels.ema_update_` of the codes.

    Args:
        n_embed: K.
        embedding_dim: size D of a code, and channels of the input.
        beta: weight of the loss.
        decay, eps: as in :func:`vqkernels.ema_update_`.
        remap: path of an ``.npy`` file with the indices in use; others are renamed to positions in it.
        unknown_index: what an index not in use becomes: a number, ``"extra"`` or ``"random"``.

    Numerics:
        As :class:`VectorQuantizer2`. The value is of the codes from before this step's update. In training, counts
        and sums are those of all processes, one all-reduce per step, the same bits however vectors are spread.

    Raises:
        ValueError: on an input that does not fit, or a ``remap`` that does not list codes.

    Example:
        >>> import torch
        >>> from vqkernels.compat.taming import EMAVectorQuantizer
        >>> quantizer = EMAVectorQuantizer(n_embed=16, embedding_dim=4, beta=0.25)
        >>> z_q, loss, (perplexity, encodings, indices) = quantizer(torch.randn(2, 4, 3, 3))
        >>> list(z_q.shape), list(indices.shape)
        ([2, 4, 3, 3], [18])
    """

    @checked
    def __init__(
        self,
        n_embed: Size,
        embedding_dim: Size,
        beta: float,
        decay: Share = 0.99,
        eps: NonNegative = 1e-5,
        remap: Remap = None,
        unknown_index: UnknownIndex = "random",
    ) -> None:
        check_size("n_embed", n_embed=n_embed, embedding_dim=embedding_dim)
        super().__init__(n_embed, remap, unknown_index)
        self.num_tokens, self.codebook_dim, self.beta = n_embed, embedding_dim, beta
        self.embedding = EmbeddingEMA(n_embed, embedding_dim, decay, eps)
        self._past = Past()

    def forward(
        self,
        z: torch.Tensor,  # [B, D, H, W]
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, OneHot, torch.Tensor]]:
        """``(z_q, loss, (perplexity, encodings, indices [N]))``, the one-hots not written out."""
        given_vectors("z", z, self.codebook_dim, 1, self.embedding.weight)
        if not self.training or not self.embedding.update:
            return self._step(z, moves=False)
        return self._past.take(self._step, z, state=[self.embedding.weight])

    def _step(
        self, z: torch.Tensor, moves: bool
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, OneHot, torch.Tensor]]:
        found = match(z, self.embedding.weight)
        z_q, loss = found.quantized(), self.beta * found.encoder_loss
        if moves:
            self.embedding.take_in_(found.rows.detach(), found.labels)
        indices = found.indices
        if self.remap is not None:
            indices = self.remap_to_used(indices.reshape(found.shape)).reshape(-1)
        return z_q, loss, (found.perplexity(self.num_tokens), found.one_hot(self.num_tokens), indices)
