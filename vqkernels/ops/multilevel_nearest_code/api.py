"""The public lookup in levels: checks, canonical layout, one operator call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.checks import (
    check_data,
    check_flag,
    check_floating,
    check_same_device,
    check_tensor,
    is_number,
    is_within,
)
from vqkernels._core.shown import shape_of, shown
from vqkernels.ops.multilevel_nearest_code.op import multilevel_nearest_code_op
from vqkernels.ops.nearest_code import NearestCode

MAX_LEVELS = 8


def multilevel_nearest_code(
    xs: Sequence[torch.Tensor],  # L of [..., D_l]
    codebooks: Sequence[torch.Tensor],  # L of [K, D_l]
    weights: Sequence[float] | torch.Tensor,  # [L]
    *,
    squared: bool = False,
    backend: str | None = None,
) -> NearestCode:
    """Find the code that is nearest in all levels together: one index per vector, without an N x K matrix.

    Equivalent to ``sum(w * torch.cdist(x.double(), c.double()) for ...).argmin(-1)``, in O(N + K) memory. The first
    nearest code (lowest index) wins a tie. A sum of distances is not the distance of the concatenated levels: it
    weighs a level that is far off less.

    Args:
        xs: 1 to 8 levels of the vectors, ``[..., D_l]`` with the same leading dimensions. float32, float64, float16
            or bfloat16.
        codebooks: the same levels of the codes, ``[K, D_l]``.
        weights: a finite number >= 0 per level, at least one of them positive. A level of weight 0 adds nothing to
            the distance; its non-finite entries count all the same. Reading a tensor on a device synchronises.
        squared: add squared distances instead of distances.
        backend: a backend by name, or None for the best one (see :func:`vqkernels.explain`).

    Returns:
        ``NearestCode(indices, distance)``, both shaped ``[...]``; int64 and float32. ``distance`` is
        ``sum_l weights[l] * ||xs[l] - codebooks[l][indices]||``. Neither carries a gradient: to train, read the codes
        with :func:`vqkernels.gather_codes` level by level and compute the loss from them.

    Numerics:
        The choice is that of the float64 evaluation of the inputs as given: same indices and same distance bits
        on every backend and thread count. A vector with a non-finite entry in any level gets index 0 and distance
        NaN. A code with a non-finite entry in any level is never chosen unless there is no other.

    Raises:
        TypeError: if ``xs`` or ``codebooks`` is not a sequence of floating point tensors, or a weight not a number.
        ValueError: on numbers of levels, shapes or devices that do not match, an empty codebook, weights out of
            range, or an unknown backend.
        NotImplementedError: if the backend asked for cannot run this call.

    Example:
        >>> import torch, vqkernels
        >>> meaning, detail = torch.tensor([[1.0]]), torch.tensor([[0.0, 3.0]])
        >>> codebooks = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0, 3.0], [0.0, 1.0]])
        >>> vqkernels.multilevel_nearest_code((meaning, detail), codebooks, (3.0, 1.0))
        NearestCode(indices=tensor([1]), distance=tensor([2.]))
    """
    check_backend(backend)
    _check_levels(xs, codebooks)
    numbers = _check_weights(weights, len(xs))
    lead = xs[0].shape[:-1]
    indices, distance = multilevel_nearest_code_op(
        [x.reshape(-1, x.shape[-1]).detach() for x in xs],
        [codebook.detach() for codebook in codebooks],
        numbers,
        check_flag("squared", squared),
        backend,
    )
    return NearestCode(indices.reshape(lead), distance.reshape(lead))


def _check_levels(xs: Sequence[torch.Tensor], codebooks: Sequence[torch.Tensor]) -> None:
    for name, levels in (("xs", xs), ("codebooks", codebooks)):
        if not isinstance(levels, (list, tuple)):
            raise TypeError(f"{name}: expected a list or tuple of tensors, got {type(levels).__name__}")
    if not 1 <= len(xs) <= MAX_LEVELS:
        raise ValueError(f"xs: expected 1 to {MAX_LEVELS} levels, got {len(xs)}")
    if len(codebooks) != len(xs):
        raise ValueError(f"codebooks: expected {len(xs)} levels as in xs, got {len(codebooks)}")
    named = {f"xs[{level}]": x for level, x in enumerate(xs)}
    named |= {f"codebooks[{level}]": codebook for level, codebook in enumerate(codebooks)}
    for name, tensor in named.items():
        check_floating(name, tensor)
    for level, (x, codebook) in enumerate(zip(xs, codebooks, strict=True)):
        if codebook.dim() != 2 or min(codebook.shape) < 1 or codebook.shape[0] != codebooks[0].shape[0]:
            raise ValueError(
                f"codebooks[{level}]: expected [K, D] with K, D >= 1 and one K in every level, "
                f"got shape {shape_of(codebook)}"
            )
        expected = (*xs[0].shape[:-1], codebook.shape[1])
        if x.dim() == 0 or tuple(x.shape) != expected:
            raise ValueError(f"xs[{level}]: expected shape {shown(list(expected))}, got {shape_of(x)}")
    check_same_device(**named)


def _check_weights(weights: Sequence[float] | torch.Tensor, count: int) -> list[float]:
    if isinstance(weights, torch.Tensor):
        check_tensor("weights", weights)
        check_data("weights", weights)
    numbers = weights.tolist() if isinstance(weights, torch.Tensor) else weights
    if not isinstance(numbers, (list, tuple)) or len(numbers) != count:
        raise ValueError(f"weights: expected {count} numbers, one per level, got {shown(weights)}")
    for number in numbers:
        if not is_number(number):
            raise TypeError(f"weights: expected numbers, got one of {type(number).__name__}")
        if not is_within(number, 0, math.inf):
            raise ValueError(f"weights: expected finite numbers >= 0, got {shown(number)}")
    if not any(number > 0 for number in numbers):
        raise ValueError("weights: expected at least one positive number, got none")
    return [float(number) for number in numbers]
