"""What is defined on the scores of all codes: soft values, samples, cross entropies.

Scores are computed for a few vectors at a time and, where a gradient is asked for, once more in the backward; there
are never more than ``_PAIRS`` of them. Logits are float32 under any autocast. Where an index has to be exact, it
comes from :func:`vqkernels.nearest_code` and not from here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from vqkernels._core.library import is_exporting, is_traced
from vqkernels._core.random import random_uniform

_PAIRS = 1 << 20  # scores held at a time
METRICS = ("l2", "euclidean", "cosine", "dot")


def scores(x: torch.Tensor, codes: torch.Tensor, metric: str) -> torch.Tensor:  # [n, D], [K, D] -> [n, K]
    """Similarities: ``-|x - c|^2``, ``-|x - c|``, the cosine or ``x.c``."""
    with torch.autocast(x.device.type, enabled=False):
        if metric == "dot":
            return x @ codes.t()
        if metric == "cosine":
            return torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(codes, dim=-1).t()
        # distances are the same from any origin, and cancel least near the codes
        centre = codes.detach().mean(dim=0)
        x, codes = x - centre, codes - centre
        square = torch.addmm(codes.square().sum(dim=1), x, codes.t(), alpha=-2) + x.square().sum(dim=1, keepdim=True)
        return -square if metric == "l2" else -square.clamp(min=1e-8).sqrt()


def chunks(n: int, per_row: int) -> Iterator[slice]:
    """Some of N vectors at a time, as many as may have their scores held at once."""
    if is_traced() or is_exporting():
        # a trace is for batches of any size, and would keep the number of chunks of this one
        return iter([slice(0, None)])
    size = max(1, _PAIRS // max(1, per_row))
    return (slice(start, start + size) for start in range(0, n, size))


class _Recomputation(torch.autograd.Function):
    """A function of tensors that keeps its arguments alone, and is evaluated once more in the backward.

    With ``instead`` it has that value, and both gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., torch.Tensor], instead: torch.Tensor | None, *args: torch.Tensor
    ) -> torch.Tensor:
        ctx.function = function
        ctx.save_for_backward(*args)
        return function(*args) if instead is None else instead.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad[2:]
        of_instead = grad if ctx.needs_input_grad[1] else None
        if not any(needed):
            return None, of_instead, *(None for _ in needed)
        args = [t.detach().requires_grad_(n) for t, n in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            value = ctx.function(*args)
        wanted = [t for t in args if t.requires_grad]
        found = iter(torch.autograd.grad(value, wanted, grad))
        return None, of_instead, *(next(found) if n else None for n in needed)


def _recomputed(
    function: Callable[..., torch.Tensor], *args: torch.Tensor, instead: torch.Tensor | None = None
) -> torch.Tensor:
    if is_exporting():
        return function(*args) if instead is None else instead
    if torch.compiler.is_compiling() or is_traced():
        # a graph knows what a checkpoint is, but no gradient taken inside a function of Python
        value = function(*args) if is_traced() else checkpoint(function, *args, use_reentrant=False)
        return value if instead is None else instead + (value - value.detach())
    result: torch.Tensor = _Recomputation.apply(function, instead, *args)  # type: ignore[no-untyped-call]
    return result


def _over_groups(x: torch.Tensor, codes: torch.Tensor, rows: Callable[..., torch.Tensor]) -> torch.Tensor:
    """``rows(x [n, D], codes [K, D], chunk, g)`` for every chunk of each group, put together along N and G."""
    groups = []
    for g, book in enumerate(codes):
        parts = [rows(x[chunk, g], book, chunk, g) for chunk in chunks(x.shape[0], book.shape[0])]
        groups.append(torch.cat(parts) if parts else rows(x[:, g], book, slice(0, 0), g))
    return torch.stack(groups, dim=1)


def soft_values(
    x: torch.Tensor,  # [N, G, D]
    codes: torch.Tensor,  # [G, K, D]
    metric: str,
    temperature: float,
    *,
    values: torch.Tensor | None = None,  # [G, K, V]
    seed: torch.Tensor | int | None = None,
    instead: torch.Tensor | None = None,  # [N, G, D] or [N, G, V]
) -> torch.Tensor:  # [N, G, D] or [N, G, V]
    """The mean code of ``softmax(scores / temperature)``; codes pass gradient through the weights alone.

    With ``values`` it is the mean of these, and with gradient to them. With ``seed`` the scores carry the noise of
    :func:`sample_codes`: the largest of them is that of the code drawn at temperature 1 (Gumbel softmax). With
    ``instead`` the result has this value, its gradient, and that of the mean, which is computed in the backward only.
    """
    values = codes.detach() if values is None else values

    def rows(x: torch.Tensor, book: torch.Tensor, chunk: slice, g: int) -> torch.Tensor:
        def mean(x: torch.Tensor, book: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
            logits = scores(x, book, metric)
            if seed is not None:
                logits = logits + _gumbel(seed, chunk.start * len(codes) + g, logits)
            weights = (logits / temperature).softmax(dim=1)
            with torch.autocast(x.device.type, enabled=False):
                return weights @ values

        return _recomputed(mean, x, book, values[g], instead=None if instead is None else instead[chunk, g])

    return _over_groups(x, codes, rows)


def _gumbel(seed: torch.Tensor | int, place: int, like: torch.Tensor) -> torch.Tensor:  # [n, K]
    """Gumbel noise, another stream of numbers for every place."""
    key = torch.as_tensor(seed, device=like.device) * 0x9E3779B1 + place
    return -(-random_uniform(key, tuple(like.shape), like.device).log()).log()


@torch.no_grad()
def sample_codes(
    x: torch.Tensor,  # [N, G, D]
    codes: torch.Tensor,  # [G, K, D]
    metric: str,
    temperature: float,
    seed: torch.Tensor | int,
    m: int = 1,
) -> torch.Tensor:  # [N, G, M] int64
    """M codes drawn without replacement with probabilities ``softmax(scores / temperature)``, by Gumbel noise.

    The draw is a function of the seed, of the position of the vector and of the number of vectors.
    """

    # in one piece: small tensors kept between large ones that are freed would splinter the heap
    drawn = torch.zeros(*x.shape[:2], m, dtype=torch.int64, device=x.device)
    for g, book in enumerate(codes):
        for chunk in chunks(len(x), len(book)):
            logits = scores(x[chunk, g], book, metric) / temperature
            noisy = logits + _gumbel(seed, chunk.start * len(codes) + g, logits)
            drawn[chunk, g] = noisy.topk(m, dim=1).indices
    return drawn


def cross_entropy(
    x: torch.Tensor,  # [N, G, D]
    codes: torch.Tensor,  # [G, K, D]
    indices: torch.Tensor,  # [N, G]
    metric: str,
) -> torch.Tensor:  # []
    """Mean cross entropy of ``softmax(scores)`` to these indices; -1 leaves one out; 0 if all are."""

    def rows(x: torch.Tensor, book: torch.Tensor, chunk: slice, g: int) -> torch.Tensor:
        def entropy(x: torch.Tensor, book: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(
                scores(x, book, metric), target, ignore_index=-1, reduction="none"
            )

        return _recomputed(entropy, x, book, indices[chunk, g])

    return _over_groups(x, codes, rows).sum() / (indices >= 0).sum().clamp(min=1)


def position_entropy(
    x: torch.Tensor,  # [B, P, H, D]
    codes: torch.Tensor,  # [1, K, D] or [H, K, D]
    metric: str,
    temperature: float,
    eps: float,
) -> torch.Tensor:  # []
    """Entropy of the assignment ``softmax(scores / temperature)`` averaged over B and H, mean over positions P.

    ``-sum p log max(p, eps)``.
    """
    _, positions, heads, _ = x.shape
    books = codes.expand(heads, -1, -1)
    k = codes.shape[1]

    def assigned(x: torch.Tensor, book: torch.Tensor) -> torch.Tensor:  # [b, p, D], [K, D] -> [p, K]
        logits = scores(x.flatten(0, 1), book, metric) / temperature
        return logits.softmax(dim=1).view(*x.shape[:2], -1).sum(dim=0)

    def entropies(x: torch.Tensor, books: torch.Tensor) -> torch.Tensor:  # [B, p, H, D], [H, K, D] -> []
        parts = [
            _recomputed(assigned, x[chunk, :, h], book)
            for h, book in enumerate(books)
            for chunk in chunks(len(x), x.shape[1] * k)
        ]
        mean = functools.reduce(torch.add, parts) / (len(x) * heads)
        return -(mean * mean.clamp(min=eps).log()).sum()

    if not x.shape[:2].numel():
        return x.new_zeros(())
    return (
        torch.stack([_recomputed(entropies, x[:, chunk], books) for chunk in chunks(positions, k)]).sum() / positions
    )
