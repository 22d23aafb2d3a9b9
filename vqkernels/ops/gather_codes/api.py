"""The public gather: checks, canonical layout, one operator call."""

from __future__ import annotations

import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.checks import check_codebook, check_floating, check_indices, check_same_device
from vqkernels._core.library import saveable
from vqkernels._core.shown import shape_of
from vqkernels.ops.gather_codes.op import gather_codes_op


def gather_codes(
    codebook: torch.Tensor,  # [K, D] or [G, K, D]
    indices: torch.Tensor,  # [...] or [..., G]
    *,
    backend: str | None = None,
) -> torch.Tensor:  # [..., D] or [..., G, D]
    """Read the codes of ``indices``; differentiable in the codebook.

    Equivalent to ``codebook[indices]``. The gradient is a segment sum over the rows of each code, added as
    :func:`vqkernels.code_stats` does: deterministic, and never a one-hot matrix.

    Args:
        codebook: ``[K, D]`` or ``[G, K, D]``, floating point.
        indices: int64 or int32 in ``[-1, K)``; shape ``[...]``, or ``[..., G]`` with a grouped codebook.
            -1 (a masked position) reads a zero vector.
        backend: a backend by name, or None.

    Returns:
        Codes of ``codebook``'s dtype, ``[..., D]`` or ``[..., G, D]``.

    Raises:
        IndexError: if an index is outside ``[-1, K)``.
        TypeError: if ``codebook`` is not floating point or ``indices`` not integer.
        ValueError: on shapes or devices that do not match.

    Example:
        >>> import torch, vqkernels
        >>> vqkernels.gather_codes(torch.tensor([[1.0], [2.0]]), torch.tensor([1, -1]))
        tensor([[2.],
                [0.]])
    """
    check_floating("codebook", codebook)
    check_indices("indices", indices)
    check_backend(backend)
    check_codebook(codebook)
    check_same_device(codebook=codebook, indices=indices)
    grouped = codebook if codebook.dim() == 3 else codebook[None]
    if codebook.dim() == 3 and (indices.dim() == 0 or indices.shape[-1] != codebook.shape[0]):
        raise ValueError(f"indices: expected [..., G={codebook.shape[0]}], got shape {shape_of(indices)}")
    index = saveable(indices).reshape(-1, grouped.shape[0]).long()
    codes: torch.Tensor = gather_codes_op(grouped, index, backend)
    return codes.reshape(*indices.shape, grouped.shape[2])
