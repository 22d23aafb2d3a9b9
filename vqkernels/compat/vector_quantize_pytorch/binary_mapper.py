"""Binary mapper: independent bits are drawn from their logits and handed on as one-hot (Fleuret 2025)."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch.nn import functional as F

from vqkernels._core.arguments import Positive, Within, checked
from vqkernels._core.checks import check_flag, check_numbers, check_same_device, check_shape
from vqkernels.compat._inputs import check_indices_of, given_vectors
from vqkernels.compat.vector_quantize_pytorch._sign_codes import word_log_probs
from vqkernels.compat.vector_quantize_pytorch._tensors import Constants, straight_through
from vqkernels.nn.rows import mean_or_zero

_MOST_BITS = 30  # of a word whose one-hot can be written
NAT = math.log(2)
_CERTAIN = 1e4  # log odds


def binary_entropy(logits: torch.Tensor) -> torch.Tensor:  # [..., D] -> [...]
    """Entropy of independent bits, in nats."""
    p = logits.sigmoid()
    return -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits)).sum(dim=-1)


class BinaryMapper(Constants):
    """Draw a word of ``bits`` independent bits, first bit lowest, and return it as one-hot of size ``2 ** bits``.

    Equivalent to::

        word = bernoulli(sigmoid(logits / temperature))
        index = (word * 2 ** torch.arange(bits)).sum(-1)
        out = one_hot(index) + p - p.detach()                 # p [..., K], the probabilities of all words
        loss = relu(bits * log(2) - H(logits) - kl_loss_threshold).mean()

    Args:
        bits: bits of a word; a bit whose logit is NaN is fair.
        kl_loss_threshold: divergence from fair bits, in nats, that costs nothing.
        deterministic_on_eval: take the likelier bit in evaluation mode instead of drawing.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import BinaryMapper
        >>> mapper = BinaryMapper(bits=8).eval()
        >>> one_hot, aux_loss = mapper(torch.randn(3, 4, 8), deterministic=True)
        >>> one_hot.shape
        torch.Size([3, 4, 256])
    """

    power_two: torch.Tensor
    zero: torch.Tensor

    @checked
    def __init__(
        self,
        bits: Annotated[int, Within(1, _MOST_BITS)] = 1,
        kl_loss_threshold: float = NAT,
        deterministic_on_eval: bool = False,
    ) -> None:
        super().__init__()
        self.bits = bits
        self.num_codes = 2**bits
        self.kl_loss_threshold = kl_loss_threshold
        self.deterministic_on_eval = deterministic_on_eval
        self._set_constant("power_two", [2**bit for bit in range(bits)])
        self._set_constant("zero", 0.0)

    @property
    def codes(self) -> torch.Tensor:  # [K, bits] bool
        """All words by index; built when asked for."""
        return self._bits(torch.arange(self.num_codes, device=self.power_two.device))

    def binary_entropy(self, logits: torch.Tensor) -> torch.Tensor:  # [..., bits] -> [...]
        logits = given_vectors("logits", logits, self.bits, -1, self.power_two)
        return binary_entropy(logits)

    def calc_aux_loss(
        self,
        logits: torch.Tensor,  # [..., bits]
        reduce_aux_kl_loss: bool = True,
    ) -> torch.Tensor:  # [] or [...]
        """By how much the divergence from fair bits exceeds the threshold."""
        check_flag("reduce_aux_kl_loss", reduce_aux_kl_loss)
        divergence = self.bits * NAT - self.binary_entropy(logits)
        excess = F.relu(divergence - self.kl_loss_threshold)
        return mean_or_zero(excess) if reduce_aux_kl_loss else excess

    def log_prob(
        self,
        logits: torch.Tensor,  # [..., bits]
        *,
        indices: torch.Tensor | None = None,  # [...]
        one_hot: torch.Tensor | None = None,  # [..., K]
        sum_bits: bool = True,
    ) -> torch.Tensor:  # [...] or [..., bits]
        """Log probability of words, given as indices or as one-hot.

        Raises:
            ValueError: unless exactly one of ``indices`` and ``one_hot`` is given.
        """
        if (indices is None) == (one_hot is None):
            raise ValueError(
                "indices, one_hot: expected exactly one of them, got " + ("none" if indices is None else "both")
            )
        check_flag("sum_bits", sum_bits)
        logits = given_vectors("logits", logits, self.bits, -1, self.power_two)
        if one_hot is not None:
            check_numbers("one_hot", one_hot)
            check_shape("one_hot", one_hot, (*logits.shape[:-1], self.num_codes), "[..., K]")
            check_same_device(one_hot=one_hot, logits=logits)
        if indices is not None:
            check_indices_of("indices", indices, self.power_two)
            check_shape("indices", indices, tuple(logits.shape[:-1]), "logits.shape[:-1]")
        if indices is None and one_hot is not None:
            indices = one_hot.argmax(dim=-1)
        assert indices is not None
        log_probs = F.logsigmoid(torch.where(self._bits(indices), logits, -logits))
        return log_probs.sum(dim=-1) if sum_bits else log_probs

    @checked
    def forward(
        self,
        logits: torch.Tensor,  # [..., bits]
        temperature: Positive = 1.0,
        straight_through: bool | None = None,
        calc_aux_loss: bool | None = None,
        deterministic: bool | None = None,
        return_indices: bool = False,
        reduce_aux_kl_loss: bool = True,
    ) -> tuple[torch.Tensor, ...]:
        """Draw words.

        Args:
            logits: log odds of each bit being 1.
            temperature: divides the logits that are drawn from.
            straight_through: whether the output has the gradient of the words' probabilities; None means in training.
            calc_aux_loss: whether the loss is more than 0; None means in training.
            deterministic: take the likelier bit; None means as ``deterministic_on_eval`` says.
            return_indices: return the words as numbers too.
            reduce_aux_kl_loss: average the loss.

        Returns:
            ``(one_hot, loss)`` or ``(one_hot, indices, loss)``: ``[..., 2 ** bits]``, ``[...]``, ``[]`` or ``[...]``.

        Raises:
            ValueError: if the logits do not end in ``bits``.
        """
        logits = given_vectors("logits", logits, self.bits, -1, self.power_two)
        if deterministic is None:
            deterministic = self.deterministic_on_eval and not self.training
        # a fair bit where it is lost, and numbers in a backward where it is certain
        logits = logits.nan_to_num(nan=0.0, posinf=_CERTAIN, neginf=-_CERTAIN)
        p = (logits / temperature).sigmoid()
        word = p > 0.5 if deterministic else p.detach().bernoulli().bool()
        indices = (word * self.power_two).sum(dim=-1)
        one_hot = F.one_hot(indices, self.num_codes).float()
        if self.training if straight_through is None else straight_through:
            one_hot = _with_gradient_of_words(one_hot, logits)
        loss = self.zero
        if self.training if calc_aux_loss is None else calc_aux_loss:
            loss = self.calc_aux_loss(logits, reduce_aux_kl_loss=reduce_aux_kl_loss)
        return (one_hot, indices, loss) if return_indices else (one_hot, loss)

    def _bits(self, indices: torch.Tensor) -> torch.Tensor:  # [...] -> [..., bits] bool
        return (indices[..., None] & self.power_two) != 0


def _with_gradient_of_words(one_hot: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    # the highest bit first
    return straight_through(one_hot, word_log_probs(logits.flip(-1)).exp())
