"""The public entropies: checks, canonical layout, one operator call, and what follows in O(N + K)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from vqkernels._core.backend import check_backend, requested_backend
from vqkernels._core.checks import (
    check_choice,
    check_codebook,
    check_data,
    check_floating,
    check_number,
    check_returned,
    check_same_device,
    check_shape,
    check_vectors,
    check_weight,
)
from vqkernels._core.devices import through_the_cpu, unserved_device
from vqkernels._core.library import saveable
from vqkernels.ops.soft_assignment_entropy.op import soft_assignment_entropy_op

METRICS = ("l2", "euclidean", "cosine", "dot")
SMOOTHINGS = ("none", "add", "clamp")
# below it, and beyond its inverse, quotients leave float64
_COLDEST = 2.0**-256
# of a vector's magnitudes, an entry of a code and a weight: more counts as not finite, because its squares and
# quotients would soon not be; no float32 vector has more
_LARGEST = 2.0**256


class SoftEntropy(NamedTuple):
    """Result of :func:`soft_assignment_entropy`; one value per group for a grouped codebook."""

    sample: torch.Tensor  # [] or [G], mean entropy of the assignments
    usage: torch.Tensor  # [] or [G], entropy of the mean assignment
    mean_assignment: torch.Tensor  # [K] or [G, K], detached


def soft_assignment_entropy(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    codebook: torch.Tensor,  # [K, D] or [G, K, D]
    *,
    metric: str = "l2",
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    smoothing: str = "none",
    eps: float = 1e-5,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    backend: str | None = None,
) -> SoftEntropy:
    """Measure how sharp soft assignments are and how evenly they use the codes, without the N x K matrix.

    Equivalent, differentiably in ``x``, ``codebook`` and ``temperature``, to::

        p = softmax(-distance / temperature)       # [N, K]
        sample = -(p * p.log()).sum(1).mean()
        mean_assignment = p.mean(0)
        usage = -(mean_assignment * mean_assignment.log()).sum()

    Args:
        x: vectors ``[..., D]``, or ``[..., G, D]`` with a grouped codebook; floating point.
        codebook: codes ``[K, D]``, or ``[G, K, D]`` for G independent codebooks; floating point.
        metric: the distance: ``"l2"`` (squared), ``"euclidean"`` (its root), ``"cosine"`` (1 - cos) or ``"dot"``
            (the negated product: p is the softmax of ``x.c / temperature``).
        temperature: a number in [2^-256, 2^256], or a tensor ``[]`` to train it.
        weight: weight of each vector, at least 0, shaped like ``x`` without its last dimension; bool for a mask.
            Means are weighted with it.
        smoothing: how published code keeps ``log 0`` away. ``"none"``: not at all, ``0 log 0`` is 0. ``"add"``:
            ``log(p + eps)`` in ``usage`` (MaskGIT, MAGVIT-v2, LlamaGen, IBQ). ``"clamp"``: ``log(max(p, eps))``
            in both (the LFQ of vector-quantize-pytorch).
        eps: of ``smoothing``, between 0 and 1.
        reduce: sums a tensor over processes, differentiably, so that means are over all of them: usually
            ``vqkernels.distributed.sum_with_gradient``. Called once. Its gradients are right where they are
            averaged over processes, as DistributedDataParallel does.
        backend: a backend by name, or None.

    Returns:
        ``SoftEntropy(sample, usage, mean_assignment)``: ``[], [], [K]``, or ``[G], [G], [G, K]`` for a grouped
        codebook; float32, float64 for float64 ``x``. Natural logarithms: divide by ``math.log(2)`` for bits.

    Numerics:
        Logits are exact to 2^-9, in practice far better, or in float64 throughout where float32 cannot
        guarantee that: small temperatures, far outliers, float64 inputs. An offset of the data changes nothing.
        Sums run in a fixed order, so the bits do not depend on the number of threads. A vector with a non-finite
        entry or weight is left out like one of weight 0; a non-finite code has probability 0. Magnitudes beyond
        2^256, which only float64 has, count as not finite. Without any vector all three are 0. The gradient of a
        distance at 0 is taken as 0, and of a cosine with a zero vector. Second derivatives are not supported.

    Raises:
        TypeError: if a tensor is not floating point.
        ValueError: on shapes or devices that do not match, an empty codebook, a temperature or eps out of range, an
            unknown metric, smoothing or backend.
        NotImplementedError: if the backend asked for cannot run this call, or in a second derivative.

    Example:
        >>> import torch, vqkernels
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> sample, usage, _ = vqkernels.soft_assignment_entropy(x, x.clone(), temperature=1e-2)
        >>> sample.item() < 1e-6, round(usage.item(), 6)  # sharp, and both codes in use: log 2
        (True, 0.693147)
    """
    options: dict[str, Any] = {"metric": metric, "temperature": temperature, "weight": weight, "backend": backend}
    found = unrounded_entropies(x, codebook, **options, smoothing=smoothing, eps=eps, reduce=reduce)
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return SoftEntropy(*(t.to(dtype) for t in found))


def unrounded_entropies(
    x: torch.Tensor,  # [..., D] or [..., G, D]
    codebook: torch.Tensor,  # [K, D] or [G, K, D]
    *,
    metric: str = "l2",
    temperature: float | torch.Tensor = 1.0,
    weight: torch.Tensor | None = None,
    smoothing: str = "none",
    eps: float = 1e-5,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
    backend: str | None = None,
) -> SoftEntropy:
    """:func:`soft_assignment_entropy` in float64, where the device has it: for small differences of entropies."""
    check_floating("x", x)
    check_floating("codebook", codebook)
    temperature = _check_options(metric, temperature, smoothing, eps)
    if weight is not None:
        check_weight("weight", weight)
    if reduce is not None and not callable(reduce):
        raise TypeError(f"reduce: expected None or a callable, got {type(reduce).__name__}")
    check_backend(backend)
    check_codebook(codebook)
    check_vectors(x, codebook)
    check_same_device(x=x, codebook=codebook, weight=weight)
    if (device := unserved_device((x,))) is not None and requested_backend(backend) is None:
        # as a whole: what the operator takes and returns is float64, which the device may lack

        def measured(x: torch.Tensor, codebook: torch.Tensor, temperature: Any, weight: Any) -> SoftEntropy:
            options: dict[str, Any] = {"smoothing": smoothing, "eps": eps, "reduce": reduce}
            return unrounded_entropies(x, codebook, metric=metric, temperature=temperature, weight=weight, **options)

        whole: SoftEntropy = through_the_cpu(measured, (x, codebook, temperature, weight), device)
        return whole
    book = saveable(codebook)
    grouped = book if book.dim() == 3 else book[None]
    if grouped.dtype == torch.float64:
        grouped = torch.where(grouped.detach().abs() <= _LARGEST, grouped, torch.inf)
    rows = saveable(x).reshape(-1, grouped.shape[0], grouped.shape[2])
    weights = _weights(x, weight, codebook.dim() == 3)
    if isinstance(temperature, torch.Tensor):
        if not x.is_meta:
            check_data("temperature", temperature)
        tau = temperature.to(x.device, torch.float64)
    else:
        tau = torch.full((), temperature, dtype=torch.float64, device=x.device)
    floor = math.log(eps) if smoothing == "clamp" else -math.inf
    # is a backward to come?
    remember = torch.is_grad_enabled() and any(t.requires_grad for t in (rows, grouped, tau))
    _, _, entropy, assigned = soft_assignment_entropy_op(
        rows, grouped, weights, tau, metric, floor, remember, backend
    )

    sums = torch.cat([assigned, (weights * entropy).sum(0)[:, None], weights.sum(0)[:, None]], dim=1)  # [G, K + 2]
    if reduce is not None:
        reduced = reduce(sums)
        check_returned("reduce", reduced, sums, "[G, K + 2]")
        sums = reduced
    total = sums[:, -1:].detach()
    means = sums[:, :-1] / torch.where(total > 0, total, 1.0)
    mean_assignment, sample = means[:, :-1], means[:, -1]
    usage = (mean_assignment * -_log(mean_assignment, smoothing, eps)).sum(1)
    result = SoftEntropy(sample, usage, mean_assignment.detach())
    return result if codebook.dim() == 3 else SoftEntropy(*(t[0] for t in result))


def _log(p: torch.Tensor, smoothing: str, eps: float) -> torch.Tensor:
    if smoothing == "add":
        return (p + eps).log()
    # the smallest normal number: its logarithm times 0 is 0, and its gradient is finite
    least = eps if smoothing == "clamp" else torch.finfo(p.dtype).tiny
    return p.clamp(min=least).log()


def _weights(x: torch.Tensor, weight: torch.Tensor | None, grouped: bool) -> torch.Tensor:  # [N, G] float64
    given = torch.ones_like(x[..., 0], dtype=torch.float64) if weight is None else weight.detach().double()
    check_shape("weight", given, tuple(x.shape[:-1]), "x.shape[:-1]")
    # A sum needs no mask of the size of x (the largest would do, but a NaN is not the largest number of an ONNX
    # file). That of float64 is one of magnitudes; of narrower numbers a small share is taken, for it to stay finite.
    numbers = x.detach()
    sums = (numbers.abs() if x.dtype == torch.float64 else numbers * 2.0**-64).sum(-1)
    counts = (sums.double().abs() <= _LARGEST) & (given > 0) & (given <= _LARGEST)
    weights = torch.where(counts, given, 0.0)
    return weights.reshape(-1, x.shape[-2] if grouped else 1)


def _check_options(metric: str, temperature: float | torch.Tensor, smoothing: str, eps: float) -> Any:
    """Check them; the temperature as it is computed with."""
    check_choice("metric", metric, METRICS)
    check_choice("smoothing", smoothing, SMOOTHINGS)
    check_number("eps", eps, 0, 1, without=(0, 1))
    if isinstance(temperature, torch.Tensor):
        check_floating("temperature", temperature)
        check_shape("temperature", temperature, (), "[]")
        return temperature
    temperature = check_number("temperature", temperature, 0, without=(0,))
    if not _COLDEST <= temperature <= 1 / _COLDEST:
        raise ValueError(f"temperature: expected a number in [2^-256, 2^256], got {temperature}")
    return temperature
