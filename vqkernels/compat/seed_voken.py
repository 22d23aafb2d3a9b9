"""The quantizers of SEED-Voken, Open-MAGVIT2's LFQ and IBQ: same names, signatures, results and state dicts.

``from vqkernels.compat.seed_voken import LFQ`` replaces
``from src.Open_MAGVIT2.modules.vqvae.lookup_free_quantize import LFQ``, and ``IndexPropagationQuantize`` the one of
``src.IBQ.modules.vqvae.quantize``. Differences are intended and listed in ``vqkernels/compat/README.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from vqkernels._core.arguments import Positive, Size, checked
from vqkernels._core.checks import check_index_values, check_integer, check_size, check_state, check_tensor
from vqkernels._core.shown import shape_of, shown
from vqkernels._core.usable import usable_rows
from vqkernels.compat._embedding_quantizer import OfEmbedding, Remap, UnknownIndex
from vqkernels.compat._feature_maps import Match, as_map, match
from vqkernels.compat._inputs import check_indices_of, given_mask, given_vectors
from vqkernels.compat.vector_quantize_pytorch._sign_codes import word_log_probs
from vqkernels.compat.vector_quantize_pytorch._tensors import (
    Constants,
    every_index,
    full_precision,
    straight_through,
    without_lost,
)
from vqkernels.compat.vector_quantize_pytorch.lookup_free_quantization import SignCodes
from vqkernels.nn.rows import masked_mean_square
from vqkernels.nn.scores import soft_values
from vqkernels.ops.soft_assignment_entropy import soft_assignment_entropy

__all__ = ["LFQ", "IndexPropagationQuantize", "LossBreakdown"]

# twice the product with a code, at temperature 0.01: what the log odds of a bit are to its entry
_SLOPE = 400.0
_EPS = 1e-5
_CERTAIN = 1e4  # beyond these log odds a bit is certain

QuantLoss = torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class IndexPropagationQuantize(OfEmbedding):
    """``IndexPropagationQuantize`` of IBQ (Shi et al. 2024): same arguments, results and state dict; no N x K matrix.

    Equivalent, with z as rows, to::

        logits  = z @ weight.T
        soft    = softmax(logits)
        hard    = one_hot(logits.argmax(-1))
        z_q     = (hard + soft - soft.detach()) @ weight        # all codes get a gradient
        loss    = mse(z_q, z) + mse(code.detach(), z) + beta * mse(code, z.detach())     # code = hard @ weight

    Scores are made for some vectors at a time, and only in the backward.

    Args:
        n_e: K.
        e_dim: size D of a code, and channels of the input.
        beta: weight of the loss of the code alone.
        use_entropy_loss: return entropies of ``softmax(logits / entropy_temperature)`` too.
        remap: path of an ``.npy`` file with the indices in use: only these are taken, as positions in it.
        unknown_index: what an index not in use becomes: a number, ``"extra"`` or ``"random"``.
        cosine_similarity: not used, as in the original.
        entropy_temperature: of the entropies.
        sample_minimization_weight: of the mean entropy in the loss of entropies.
        batch_maximization_weight: of the entropy of the mean assignment, which is maximised.

    Numerics:
        The code is that of the largest product, exact, the first on ties, and the value is the code to the bit;
        losses are at least float32. A vector with a non-finite entry gets the first code and takes no part in losses
        and gradients.

    Raises:
        ValueError: on an input that does not fit, or a ``remap`` that does not list codes.

    Example:
        >>> import torch
        >>> from vqkernels.compat.seed_voken import IndexPropagationQuantize
        >>> quantizer = IndexPropagationQuantize(16, 4)
        >>> z_q, loss, (_, _, indices) = quantizer(torch.randn(2, 4, 3, 3))
        >>> torch.equal(quantizer.get_codebook_entry(indices, (2, 3, 3, 4)), z_q)
        True
    """

    @checked
    def __init__(
        self,
        n_e: Size,
        e_dim: Size,
        beta: float = 0.25,
        use_entropy_loss: bool = False,
        remap: Remap = None,
        unknown_index: UnknownIndex = "random",
        cosine_similarity: bool = False,
        entropy_temperature: Positive = 0.01,
        sample_minimization_weight: float = 1.0,
        batch_maximization_weight: float = 1.0,
    ) -> None:
        check_size("n_e", n_e=n_e, e_dim=e_dim)
        super().__init__(n_e, remap, unknown_index)
        self.e_dim, self.beta, self.use_entropy_loss = e_dim, beta, use_entropy_loss
        self.cosine_similarity, self.entropy_temperature = cosine_similarity, entropy_temperature
        self.sample_minimization_weight = sample_minimization_weight
        self.batch_maximization_weight = batch_maximization_weight
        self.embedding = nn.Embedding(n_e, e_dim)

    @checked
    def forward(
        self,
        z: torch.Tensor,  # [B, D, H, W]
        temp: float | None = None,
        return_logits: bool = False,
    ) -> tuple[torch.Tensor, QuantLoss, tuple[None, None, torch.Tensor]]:
        """``(z_q, loss, (None, None, indices [N]))``; indices are ``[N, 1]`` with ``remap``.

        With ``use_entropy_loss`` the second is ``(loss, sample_entropy, avg_entropy, entropy_loss)``. ``temp`` and
        ``return_logits`` change nothing, as in the original.
        """
        check_state(self.embedding.weight)
        table = self.embedding.weight if self.remap is None else self.embedding.weight[self.used]
        found = match(z, table, metric="dot")
        codebook = table.to(found.rows.dtype)
        value = soft_values(found.rows[:, None], codebook[None], "dot", 1.0, instead=found.codes[:, None])[:, 0]
        value = torch.where(found.usable[:, None], value, found.codes.detach())
        loss = masked_mean_square(value[:, None], found.rows[:, None], found.usable)
        loss = loss + found.encoder_loss + self.beta * found.codebook_loss
        indices = found.indices
        if self.remap is not None:
            indices = self.remap_to_used(self.used[indices].long().reshape(found.shape)).reshape(-1, 1)
        result = loss if not self.use_entropy_loss else (loss, *self._entropies(found, codebook))
        return as_map(value.to(found.dtype), found.shape), result, (None, None, indices)

    def _entropies(
        self,
        found: Match,
        codebook: torch.Tensor,  # [K, D]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        sample, average, _ = soft_assignment_entropy(
            found.rows,
            codebook,
            metric="dot",
            temperature=self.entropy_temperature,
            weight=found.usable,
            smoothing="add",
            eps=_EPS,
        )
        return sample, average, self.sample_minimization_weight * sample - self.batch_maximization_weight * average


class LossBreakdown(NamedTuple):
    """Unweighted terms of the loss of :class:`LFQ`."""

    per_sample_entropy: torch.Tensor  # []
    codebook_entropy: torch.Tensor  # []
    commitment: torch.Tensor  # []
    avg_probs: torch.Tensor  # [], 0 as in the original


class LFQ(Constants):
    """``LFQ`` of Open-MAGVIT2: each entry becomes its sign; the index reads the signs as bits, first one lowest.

    Equivalent, for one codebook, to::

        code  = torch.where(x > 0, 1.0, -1.0)                 # straight-through
        index = ((x > 0) * 2 ** torch.arange(D)).sum(-1)
        p     = softmax(2 * x @ codebook.T / 0.01)            # [N, K]
        loss  = sample_minimization_weight * H(p).mean() - batch_maximization_weight * H(p.mean(0))

    without an N x K matrix or a codebook.

    Args:
        dim: channels of the input, ``D * num_codebooks``, which None means.
        codebook_size: K = 2^D; None means ``2 ** dim``.
        num_codebooks: parts of a vector that are quantized, and indexed, each by itself.
        sample_minimization_weight: of the mean entropy.
        batch_maximization_weight: of the entropy of the mean assignment.
        token_factorization: indices as pairs, of the first and of the last bits.
        factorized_bits: their numbers.

    Numerics:
        Values are the codes to the bit; a vector with a non-finite entry gets that of index 0. Entropies are those of
        all K codes, in O(N sqrt(K) + K) memory, of the batch of this process as in the original. A vector that is not
        finite, or longer than 2^62, takes no part in the losses.

    Raises:
        ValueError: on sizes that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.seed_voken import LFQ
        >>> quantizer = LFQ(dim=18, codebook_size=2**18)
        >>> quantized, entropy_loss, indices = quantizer(torch.randn(2, 18, 4, 4))
        >>> torch.equal(quantizer.get_codebook_entry(indices.view(2, 16), (2, 4, 4, 18), None), quantized)
        True
    """

    zero: torch.Tensor

    @checked
    def __init__(
        self,
        *,
        dim: Size | None = None,
        codebook_size: SignCodes | None = None,
        num_codebooks: Size = 1,
        sample_minimization_weight: float = 1.0,
        batch_maximization_weight: float = 1.0,
        token_factorization: bool = False,
        factorized_bits: Sequence[Size] = (9, 9),
    ) -> None:
        super().__init__()
        if dim is None and codebook_size is None:
            raise ValueError("dim: expected a number where codebook_size is None, got None")
        if codebook_size is not None and codebook_size & (codebook_size - 1):
            raise ValueError(f"codebook_size: expected a power of 2, got {codebook_size}")
        bits = dim if codebook_size is None else codebook_size.bit_length() - 1
        assert bits is not None
        check_integer("dim", bits, 1, 63)
        if dim not in (None, bits * num_codebooks):
            raise ValueError(f"dim: expected the {bits * num_codebooks} bits of {num_codebooks} codebooks, got {dim}")
        if token_factorization and (len(factorized_bits) != 2 or sum(factorized_bits) != bits):
            raise ValueError(
                f"factorized_bits: expected two numbers that add up to {bits}, got {shown(factorized_bits)}"
            )
        self.dim, self.codebook_dim, self.num_codebooks = bits * num_codebooks, bits, num_codebooks
        check_size("dim", dim=self.dim)
        self.codebook_size, self.has_projections = 1 << bits, False
        self.sample_minimization_weight = sample_minimization_weight
        self.batch_maximization_weight = batch_maximization_weight
        self.token_factorization, self.factorized_bits = token_factorization, list(factorized_bits)
        self._set_constant("zero", 0.0)

    @property
    def dtype(self) -> torch.dtype:
        return self.zero.dtype

    @property
    def codebook(self) -> torch.Tensor:  # [K, D]
        """All codes by index; built when asked for."""
        codes = every_index("codebook_size", self.zero, codebook_size=self.codebook_size, dim=self.codebook_dim)
        return self._signs(codes, self.codebook_dim)

    def indices_to_bits(self, x: torch.Tensor) -> torch.Tensor:  # [...] -> [..., D] bool
        """The bits of indices, the lowest first."""
        self._check_indices(x, self.codebook_dim)
        return (x[..., None] & _places(self.codebook_dim, x.device)) != 0

    def bits_to_indices(self, bits: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...]
        """The inverse of :meth:`indices_to_bits`."""
        check_tensor("bits", bits)
        if not bits.dim() or bits.shape[-1] != self.codebook_dim or bits.is_floating_point() or bits.is_complex():
            expected = f"[..., {self.codebook_dim}] of bool or integers"
            raise ValueError(f"bits: expected {expected}, got {bits.dtype} of shape {shape_of(bits)}")
        return _number(bits)

    def decode(self, x: torch.Tensor) -> torch.Tensor:  # [..., C] -> [..., C D]
        """Codes of indices that end in a dimension of codebooks."""
        self._check_indices(x, self.codebook_dim, least=1)
        return self._signs(x, self.codebook_dim).flatten(-2)

    @checked
    def get_codebook_entry(
        self,
        x: torch.Tensor,  # [B, H W]
        bhwc: Sequence[Size],
        order: str | None,
    ) -> torch.Tensor:  # [B, C, H, W]
        """Codes of one codebook as a map of the shape ``bhwc``, channels first.

        Args:
            x: indices; with ``token_factorization`` those of the first bits (``order="pre"``) or of the last.
            bhwc: ``(B, H, W, C)``.
            order: ``"pre"``, or anything else.
        """
        bits = self.factorized_bits[order != "pre"] if self.token_factorization else self.codebook_dim
        self._check_indices(x, bits)
        if len(bhwc) != 4 or tuple(x.shape) != (bhwc[0], bhwc[1] * bhwc[2]) or bhwc[3] != bits:
            expected = f"that of {shape_of(x)} indices of {bits} bits as (B, H, W, {bits})"
            raise ValueError(f"bhwc: expected {expected}, got {shown(tuple(bhwc))}")
        return self._signs(x, bits).reshape(tuple(bhwc)).movedim(-1, 1)

    @checked
    def forward(
        self,
        x: torch.Tensor,  # [B, dim, ...]
        inv_temperature: float = 100.0,
        return_loss_breakdown: bool = False,
        mask: torch.Tensor | None = None,  # [B, N] bool
        return_loss: bool = True,
    ) -> tuple[object, ...]:
        """``(quantized, entropy_loss, indices [N C])``, and a :class:`LossBreakdown` around it if asked for.

        Args:
            x: vectors along dimension 1.
            inv_temperature: not used, as in the original.
            return_loss_breakdown: return ``((quantized, entropy_loss, indices), LossBreakdown)``.
            mask: False leaves a vector out of the commitment, as in the original out of nothing else.
            return_loss: False computes no entropies.

        Returns:
            Losses are 0 in evaluation. Indices are a pair with ``token_factorization``.

        Raises:
            ValueError: if the input or the mask does not fit.
        """
        vectors = given_vectors("x", x, self.dim, 1, self.zero, least=2).movedim(1, -1)
        batch = vectors.shape[0], vectors.shape[1:-1].numel()
        mask = given_mask("mask", mask, vectors.new_empty(batch, dtype=torch.bool))
        vectors, finite = without_lost(vectors)
        part = (finite & usable_rows(vectors)).reshape(batch)
        with full_precision(vectors):
            wide = vectors.to(torch.promote_types(x.dtype, torch.float32))
            rows = wide.where(finite[..., None], -1.0).unflatten(-1, (self.num_codebooks, self.codebook_dim))
            codes = torch.where(rows > 0, 1.0, -1.0).to(rows.dtype)
            sample = usage = commitment = entropy_loss = self.zero
            if self.training and return_loss:
                sample, usage = _entropies(rows.flatten(0, -2), part.flatten().repeat_interleave(self.num_codebooks))
                entropy_loss = self.sample_minimization_weight * sample - self.batch_maximization_weight * usage
            if self.training:
                kept = part if mask is None else part & mask
                commitment = masked_mean_square(rows.flatten(0, -3), codes.flatten(0, -3), kept.flatten())
            out = straight_through(codes, rows).flatten(-2).to(x.dtype).movedim(-1, 1)
        result = out, entropy_loss, self._numbers(rows > 0)
        return (result, LossBreakdown(sample, usage, commitment, self.zero)) if return_loss_breakdown else result

    def _numbers(self, bits: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:  # [..., C, D] bool
        if not self.token_factorization:
            return _number(bits).flatten()
        first = self.factorized_bits[0]
        return _number(bits[..., :first]).flatten(), _number(bits[..., first:]).flatten()

    def _check_indices(self, x: torch.Tensor, bits: int, least: int = 0) -> None:
        check_indices_of("x", x, self.zero, least=least)
        check_index_values("x", x, 1 << bits)

    def _signs(self, x: torch.Tensor, bits: int) -> torch.Tensor:  # [...] -> [..., bits] of -1 and 1
        return ((x[..., None] & _places(bits, x.device)) != 0).to(self.dtype) * 2 - 1


def _places(bits: int, device: torch.device) -> torch.Tensor:  # [bits] int64
    return 1 << torch.arange(bits, device=device)


def _number(bits: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...] int64
    return (bits * _places(bits.shape[-1], bits.device)).sum(dim=-1)


def _entropies(
    rows: torch.Tensor,  # [N, D]
    part: torch.Tensor,  # [N] bool
) -> tuple[torch.Tensor, torch.Tensor]:  # [], []
    """The mean entropy of the assignments and the entropy of their mean, of those that take part; 0 without any."""
    weight = part.to(rows.dtype) / part.sum().clamp(min=1)
    odds = (torch.where(part[:, None], rows, 0) * _SLOPE).clamp(-_CERTAIN, _CERTAIN)
    # bits are independent given the vector, so that their entropies add up
    bits = -(odds.sigmoid() * F.logsigmoid(odds) + (-odds).sigmoid() * F.logsigmoid(-odds))
    check_size("codebook_size", codebook_size=1 << odds.shape[1])
    half = odds.shape[1] // 2
    first, second = (word_log_probs(some).exp() for some in (odds[:, :half], odds[:, half:]))
    mean = (weight[:, None] * first).t() @ second
    return weight @ bits.sum(dim=1), -(mean * (mean + _EPS).log()).sum()
