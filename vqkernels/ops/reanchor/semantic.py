"""The public in-place re-anchoring step that draws the semantic part of a code to its class."""

from __future__ import annotations

from typing import NamedTuple

import torch

from vqkernels._core.backend import check_backend
from vqkernels._core.canonical import without_last_bits
from vqkernels._core.checks import (
    check_choice,
    check_codebook,
    check_floating,
    check_index_values,
    check_indices,
    check_number,
    check_same_device,
    check_seed,
    check_shape,
    check_vectors,
    check_writable,
)
from vqkernels._core.devices import widest
from vqkernels._core.shown import shape_of
from vqkernels._core.usable import usable_rows
from vqkernels.ops.code_stats import code_stats
from vqkernels.ops.draw_rows import draw_rows
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.multilevel_nearest_code import multilevel_nearest_code
from vqkernels.ops.reanchor.api import advance_usage_, check_policy, move_

ANCHORS = ("closest", "probabilistic")


@torch.no_grad()
def semantic_reanchor_(
    codebook: torch.Tensor,  # [K, D], in place
    usage: torch.Tensor,  # [K], in place
    x: torch.Tensor,  # [..., D]
    indices: torch.Tensor,  # [...]
    distance: torch.Tensor,  # [...]
    labels: torch.Tensor,  # [...]
    class_embedding: torch.Tensor,  # [C, H], H < D
    *,
    decay: float = 0.99,
    high_weight: float = 1.0,
    anchor: str = "probabilistic",
    seed: int | torch.Tensor = 0,
    backend: str | None = None,
) -> None:
    """Move hardly used codes to vectors of the batch, their semantic part also to its class, in place (SGC-VQGAN).

    The first H entries of a code are its high level. With N vectors that take part, z the anchor of code k and
    y the label of that anchor::

        usage = decay * usage + (1 - decay) * count / N
        a     = exp(-usage * K * 10 / (1 - decay) - 1e-3)
        high  = (1 - a) * high + a * (a * z_high + (1 - a) * class_embedding[y])
        low   = (1 - a) * low  + a * z_low

    Args:
        codebook: codes, floating point, written in place.
        usage: running share of the vectors each code receives, float32, written in place; starts at zero.
        x: the vectors that were looked up.
        indices, distance: as returned by :func:`vqkernels.multilevel_nearest_code`. A vector with index -1 or
            distance NaN takes no part, nor does one that is not finite or longer than 2^62.
        labels: class of each vector, int64 or int32 in ``[-1, C)``; -1 is no class: the anchor then stands for it.
        class_embedding: one row per class; its width H says where the high level ends.
        decay: of the running usage, in [0, 1).
        high_weight: of the high level in ``||low|| + high_weight * ||high||``, the distance by which anchors are
            chosen; at least 0.
        anchor: ``"closest"`` (the vector nearest to the code) or ``"probabilistic"`` (vector n with a probability
            proportional to exp(-distance)).
        seed: a draw is a function of it: an int, or an integer tensor on the same device.
        backend: a backend by name, or None.

    Numerics:
        O(N + K) memory; the costs are those of :func:`vqkernels.reanchor_`. ``"closest"`` is exact, the first of
        equally near vectors wins. Without any vector that takes part nothing is written.

    Raises:
        IndexError: if a label is outside ``[-1, C)``.
        TypeError: on a dtype that does not fit.
        ValueError: on shapes or devices that do not match, or an argument out of range.

    Example:
        >>> import torch, vqkernels
        >>> codebook, usage, classes = torch.zeros(2, 2), torch.zeros(2), torch.tensor([[5.0]])
        >>> x, zero = torch.tensor([[1.0, 3.0]]), torch.tensor([0])
        >>> vqkernels.semantic_reanchor_(codebook, usage, x, zero, zero.float(), zero, classes, anchor="closest")
        >>> [[round(value, 2) for value in code] for code in codebook.tolist()]
        [[0.0, 0.0], [1.0, 3.0]]
    """
    tensors = {"x": x, "distance": distance, "class_embedding": class_embedding}
    for name, tensor in {"codebook": codebook, "usage": usage, **tensors}.items():
        check_floating(name, tensor)
    check_indices("indices", indices)
    check_indices("labels", labels)
    check_policy(decay, anchor)
    check_backend(backend)
    check_codebook(codebook)
    check_vectors(x, codebook)
    check_same_device(codebook=codebook, usage=usage, indices=indices, labels=labels, **tensors)
    check_choice("anchor", anchor, ANCHORS)
    check_seed("seed", seed, x)
    check_writable("codebook", codebook)
    check_writable("usage", usage)
    if codebook.dim() != 2:
        raise ValueError(f"codebook: expected [K, D], got shape {shape_of(codebook)}")
    (k, d), lead = codebook.shape, tuple(x.shape[:-1])
    if class_embedding.dim() != 2 or not 0 < class_embedding.shape[1] < d or not class_embedding.shape[0]:
        got = shape_of(class_embedding)
        raise ValueError(f"class_embedding: expected [C, H] with 0 < H < {d}, got shape {got}")
    check_shape("usage", usage, (k,), "[K]")
    check_index_values("labels", labels, class_embedding.shape[0])
    for name, tensor in {"indices": indices, "distance": distance, "labels": labels}.items():
        check_shape(name, tensor, lead, "x.shape[:-1]")
    high_weight = check_number("high_weight", high_weight, 0)

    high = class_embedding.shape[1]
    rows, given = x.reshape(-1, d), labels.reshape(-1)
    used = torch.where(distance.isnan().reshape(-1) | ~usable_rows(rows), -1, indices.reshape(-1))
    anchors = choose_semantic_anchors(
        codebook, rows, used, given, high=high, high_weight=high_weight, anchor=anchor, seed=seed, backend=backend
    )
    meaning = gather_codes(class_embedding.detach(), anchors.label, backend=backend)
    count = code_stats(rows[:, :1], used, k, backend=backend).count
    blend_semantic_(codebook, usage, count, anchors, meaning, anchors.label >= 0, decay)


class SemanticAnchors(NamedTuple):
    """One vector per code with its class, and the number by which anchors of several processes compete."""

    vectors: torch.Tensor  # [K, D] float32
    label: torch.Tensor  # [K] int64, -1 = no class
    key: torch.Tensor  # [K] float64, the least wins; inf = there is no vector to move to


def choose_semantic_anchors(
    codebook: torch.Tensor,  # [K, D]
    x: torch.Tensor,  # [N, D]
    indices: torch.Tensor,  # [N], -1 = not a candidate
    labels: torch.Tensor,  # [N], -1 = no class
    *,
    high: int,
    high_weight: float,
    anchor: str,
    seed: int | torch.Tensor,
    backend: str | None,
) -> SemanticAnchors:
    """First half of :func:`semantic_reanchor_`: which vector each code would move to, and of which class it is."""
    # one row of NaN more, so that an empty batch needs no branch
    usable = torch.cat([indices >= 0, indices.new_zeros(1, dtype=torch.bool)])
    rows = torch.cat([torch.where((indices >= 0)[:, None], x, torch.nan), x.new_full((1, x.shape[1]), torch.nan)])
    codes, points = levels_of(codebook, high), levels_of(rows, high)
    weights = level_weights_of(codebook.shape[1], high, high_weight)
    if anchor == "closest":
        chosen = multilevel_nearest_code(codes, points, weights, backend=backend).indices
        vectors, dtype = gather_codes(rows, chosen, backend=backend), widest(rows.device)
        apart = [torch.linalg.vector_norm(level, dim=1) for level in levels_of(codebook.to(dtype) - vectors, high)]
        distance = sum(weight * norm for weight, norm in zip(weights, apart, strict=True))
        # more digits than a lookup reports, for those who compare anchors of several processes
        key = without_last_bits(torch.as_tensor(distance))
        key = torch.where(key.isfinite(), key, torch.inf)
    else:
        usable = usable & rows.isfinite().all(dim=1)
        chosen, key = draw_rows(codes, points, usable, seed=seed, metric="levels", weights=weights, backend=backend)
        vectors = gather_codes(rows, chosen, backend=backend)
    label = torch.cat([labels, labels.new_full((1,), -1)]).long()[chosen]
    return SemanticAnchors(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), label, key)


def blend_semantic_(
    codebook: torch.Tensor,  # [K, D], in place
    usage: torch.Tensor,  # [K], in place
    count: torch.Tensor,  # [K]
    anchors: SemanticAnchors,
    meaning: torch.Tensor,  # [K, H]
    has_meaning: torch.Tensor,  # [K] bool
    decay: float,
) -> None:
    """Second half of :func:`semantic_reanchor_`: the usage, and the move it calls for, towards a class too."""
    high, vectors = meaning.shape[1], anchors.vectors.to(codebook.dtype)
    towards = torch.where(has_meaning[:, None], meaning.to(codebook.dtype), vectors[:, :high])
    pull = torch.where(anchors.key.isfinite(), advance_usage_(usage[None], count[None], decay)[0], 0)
    semantic = torch.lerp(towards, vectors[:, :high], pull[:, None].to(codebook.dtype))
    move_(codebook[None], torch.cat([semantic, vectors[:, high:]], dim=1)[None], pull[None])


def levels_of(x: torch.Tensor, high: int) -> list[torch.Tensor]:  # [..., D] -> [..., H], [..., D - H]
    """The high and the low level of vectors or codes; one alone where the other is empty."""
    return [level for level in (x[..., :high], x[..., high:]) if level.shape[-1]]


def level_weights_of(dim: int, high: int, high_weight: float) -> list[float]:
    """Their weights in the distance."""
    return [weight for weight, width in ((high_weight, high), (1.0, dim - high)) if width]
