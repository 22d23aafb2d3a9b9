"""Random numbers as a pure function of a seed: no generator state to save, no host synchronisation.

The seed may be a counter that lives on the device and in a ``state_dict``.
"""

from __future__ import annotations

import torch

_MASK = 0xFFFFFFFF
_ROWS = 1 << 14  # vectors hashed at a time


def _mix(value: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit integers (held in int64) that scatters neighbours."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        value = value ^ (value >> shift)
        value = (value * factor) & _MASK
    return value ^ (value >> 15)


def random_integers(seed: torch.Tensor | int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Integers in ``[0, 2**32)`` as int64, independent of each other and between seeds."""
    count = 1
    for size in shape:
        count = count * size
    position = torch.arange(count, device=device).reshape(shape)
    key = _mix(torch.as_tensor(seed, dtype=torch.int64, device=device) & _MASK)
    return _mix((_mix(position & _MASK) + key) & _MASK)


def random_uniform(seed: torch.Tensor | int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """float32 numbers strictly between 0 and 1."""
    # 23 bits and a half: neither end is reached after rounding
    return ((random_integers(seed, shape, device) >> 9).float() + 0.5) * 2.0**-23


def uniform_at(seed: int, position: torch.Tensor) -> torch.Tensor:  # [...] int64 -> [...] float64
    """Numbers in ``[0, 1)``, each a function of the seed and its position alone."""
    low, high = position & _MASK, position >> 32
    key = _mix(torch.as_tensor(seed, dtype=torch.int64, device=position.device) & _MASK)
    first = _mix((_mix(low) + key) & _MASK)
    second = _mix((_mix((first + high) & _MASK) ^ key) & _MASK)
    return (first << 21 | second >> 11).double() * 2.0**-53


def row_numbers(seed: torch.Tensor | int, x: torch.Tensor) -> torch.Tensor:  # [N, D] -> [N] int64 in [0, 2**32)
    """Integers like those of :func:`random_integers`, each a function of the seed and the bits of its vector."""
    # of a single column, or row, any stride is contiguous, and only 1 can be seen as words
    words = x.contiguous().as_strided(x.shape, (x.shape[1], 1)).view(torch.int16)
    factors, start = random_integers(seed, (words.shape[1] + 1,), x.device).split([words.shape[1], 1])
    # products of 16 and 32 bits: a sum is exact, and equal for two different vectors with a probability of 2**-32
    sums = [((part.long() & 0xFFFF) * factors).sum(dim=1) for part in words.split(_ROWS)]
    total = torch.cat(sums) + start
    return _mix(_mix(total & _MASK) ^ (total >> 32))


def scattered_sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # [...] int64
    """A number in ``[0, 2**32)`` for every pair of such numbers."""
    return _mix((a + b) & _MASK)
