"""Soft assignments to the 2^D sign codes: products of independent bits, and cheap for it.

A word of D bits is split in two halves, ``p(i, j) = a(i) b(j)`` with 2^(D/2) entries each. The mean assignment of N
vectors to K = 2^D codes is then one matrix product of N x sqrt(K) factors, and the entropy of one vector follows from
its sorted factors. Neither an N x K nor a K x D matrix exists.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

from vqkernels._core.checks import check_size
from vqkernels.distributed import sum_with_gradient

# beyond this log odds a bit is certain, in float64 too; keeps infinities out of sums and products
_CERTAIN = 1e4


class SignCodeEntropy(NamedTuple):
    """Result of :func:`sign_code_entropy`."""

    sample: torch.Tensor  # [], mean entropy of the assignments
    usage: torch.Tensor  # [], entropy of the mean assignment, over all processes


def sign_code_entropy(
    logits: torch.Tensor,  # [N, C, D]
    weight: torch.Tensor,  # [N]
    *,
    eps: float,
) -> SignCodeEntropy:
    """Entropies of soft assignments to sign codes in O(N K) time and O(N sqrt(K) + K) memory.

    Equivalent, for one codebook and unit weights, to::

        p = softmax(logits @ bits.T)                     # [N, K], bits [K, D] of 0 and 1
        sample = -(p * p.clamp(min=eps).log()).sum(-1).mean()
        mean = p.mean(0)
        usage = -(mean * mean.clamp(min=eps).log()).sum()

    Args:
        logits: log odds of each bit being 1, finite: N vectors, C codebooks, D bits.
        weight: weight of each vector in the means, at least 0.
        eps: probabilities below it count as ``eps`` inside the logarithm.

    Returns:
        ``SignCodeEntropy(sample, usage)``, averaged over codebooks; natural logarithms; 0 without any weight.
    """
    check_size("codebook_size", codebook_size=1 << logits.shape[-1], num_codebooks=logits.shape[1])
    half = logits.shape[-1] // 2
    logits = logits.clamp(-_CERTAIN, _CERTAIN)
    first, second = word_log_probs(logits[..., :half]), word_log_probs(logits[..., half:])
    entropy = _entropy_of_product(first, second, math.log(eps)).mean(-1)
    sample = weight @ entropy / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)

    assigned = torch.einsum("nca,ncb->cab", weight[:, None, None] * first.exp(), second.exp())
    sums = sum_with_gradient(torch.cat([assigned.flatten(), weight.sum()[None]]))
    mean = sums[:-1] / sums[-1].clamp(min=torch.finfo(sums.dtype).tiny)
    usage = -(mean * mean.clamp(min=eps).log()).sum() / logits.shape[1]
    return SignCodeEntropy(sample, usage)


def word_log_probs(logits: torch.Tensor) -> torch.Tensor:  # [..., D] -> [..., 2^D]
    """Log probabilities of all words of independent bits; the first bit is the most significant.

    Args:
        logits: log odds of each bit being 1.
    """
    words = logits.new_zeros(*logits.shape[:-1], 1)
    for bit in logits.unbind(-1):
        either = torch.stack([F.logsigmoid(-bit), F.logsigmoid(bit)], dim=-1)
        words = (words[..., :, None] + either[..., None, :]).flatten(-2)
    return words


def _entropy_of_product(
    first: torch.Tensor,  # [..., A] log probabilities
    second: torch.Tensor,  # [..., B] log probabilities
    floor: float,
) -> torch.Tensor:  # [...]
    """``-sum_ij p_ij max(log p_ij, floor)`` of ``log p_ij = first_i + second_j``, in O(A log B)."""
    second = second.sort(dim=-1).values
    # for each i, the j with log p_ij below the floor are the first so many
    below = torch.searchsorted(second.detach(), floor - first.detach())
    mass, surprise = (F.pad(t.cumsum(-1), (1, 0)) for t in (second.exp(), second.exp() * second))
    low_mass, low_surprise = mass.gather(-1, below), surprise.gather(-1, below)
    high_mass, high_surprise = mass[..., -1:] - low_mass, surprise[..., -1:] - low_surprise
    return -(first.exp() * (first * high_mass + high_surprise + floor * low_mass)).sum(-1)
