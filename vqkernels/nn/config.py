"""The kinds of codebook a quantizer can have: small frozen descriptions, checked when they are written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch

from vqkernels._core.arguments import NonNegative, OneOf, Positive, Share, Size, Within, check_fields
from vqkernels._core.checks import check_floating
from vqkernels._core.shown import shape_of, shown
from vqkernels.ops.reanchor import ANCHORS

PROJECTOR_INITS = ("published", "matched")
PROJECTORS = ("linear", "mlp", "none")
SEMANTIC_ANCHORS = ("closest", "probabilistic")
SEMANTIC_LABELS = ("anchor", "histogram")


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Codes trained by gradient through the codebook loss (van den Oord et al. 2017; VQGAN).

    Args:
        init_scale: codes start uniform in ``[-init_scale, init_scale]``; None means 1 / K, as in VQGAN. With
            ``metric="cosine"`` they are then scaled to unit length.
    """

    init_scale: Positive | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class OnlineClustering(Learned):
    """Learned codes; those hardly used move to vectors of the batch every training step (CVQ-VAE).

    Args:
        init_scale: as in :class:`Learned`.
        decay: of the running usage, in [0, 1).
        anchor: ``"closest"``, ``"random"`` or ``"probabilistic"``, as in :func:`vqkernels.reanchor_`.
    """

    decay: Annotated[float, Within(0, 1, without=(1,))] = 0.99
    anchor: Annotated[str, OneOf(ANCHORS)] = "closest"


@dataclass(frozen=True, kw_only=True)
class SemanticClustering(OnlineClustering):
    """Online clustering with levels of meaning and of detail, which uses classes of the vectors (SGC-VQGAN).

    A code is split into equal levels, the most semantic first, weighted falling (Eq. 10). The levels whose weight
    reaches ``sigma`` are high, the others low; the lookup takes the least ``||low|| + high_weight * ||high||``
    (Eq. 6, norms, not squares). Codes hardly used move to vectors, their high part also towards the embedding of a
    class (Eqs. 7 and 8). The embeddings, ``table.classes`` ``[C, D]``, are a parameter that a loss over codes and
    classes trains. One group, ``metric="l2"``. Labels are given to :meth:`vqkernels.VectorQuantizer.forward`.

    Args:
        init_scale: as in :class:`Learned`.
        decay: of the running usage and of the histogram, in [0, 1).
        anchor: ``"probabilistic"`` or ``"closest"``, by the distance of the lookup.
        num_classes: C.
        levels: number of levels.
        level_weights: one per level, falling, at least 0; None is the linear family ``2 (L - l) / (L (L - 1))``,
            l = 1..L.
        sigma: weight from which on a level is high. The paper's shares of 25, 50, 75 and 100 % of 4 levels are
            0.5, 0.3, 0.1 and 0.
        high_weight: of the high levels in the distance, at least 0.
        label: what a code is drawn to: ``"anchor"``, the class of the vector it moves to; ``"histogram"``, the mean
            of all classes by how often they were coded with it, kept as a running ``[K, C]`` histogram.
    """

    anchor: Annotated[str, OneOf(SEMANTIC_ANCHORS)] = "probabilistic"
    num_classes: Size
    levels: Size = 4
    level_weights: Sequence[NonNegative] | None = None
    sigma: float = 0.5
    high_weight: NonNegative = 1.0
    label: Annotated[str, OneOf(SEMANTIC_LABELS)] = "anchor"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.weights
        if len(given) != self.levels or list(given) != sorted(given, reverse=True):
            raise ValueError(f"level_weights: expected {self.levels} numbers >= 0, falling, got {shown(given)}")
        if self.high_weight == 0 and self.high_levels == self.levels:
            raise ValueError("high_weight: expected more than 0 where all levels are high, got 0.0")

    @property
    def weights(self) -> tuple[float, ...]:
        """Weight of each level, the most semantic first."""
        if self.level_weights is not None:
            return tuple(self.level_weights)
        last = self.levels
        return tuple(2 * (last - level) / (last * (last - 1)) for level in range(1, last + 1)) if last > 1 else (1.0,)

    @property
    def high_levels(self) -> int:
        """How many levels are high."""
        # weights as written and as computed may differ in their last bit
        return sum(weight >= self.sigma - 1e-12 for weight in self.weights)


@dataclass(frozen=True, kw_only=True)
class Ema:
    """Codes that are running means of the vectors they stand for; no gradient, no codebook loss.

    Args:
        decay: of the running sums, in [0, 1].
        eps: Laplace smoothing of the running counts, at least 0, as in :func:`vqkernels.ema_update_`.
        dead_after: a code not used for this many training steps is put on a random vector of the batch (each
            entry changed by up to 0.1 %, so that codes put on one vector in different steps can part) and its running
            sums start again. No vector serves two codes: while vectors are few, some codes wait. None leaves unused
            codes alone.
        accumulate: so many forwards in training make one update, as if their batches had come at once: the number
            of forwards per optimizer step under gradient accumulation. ``dead_after`` still counts forwards.
    """

    decay: Share = 0.99
    eps: NonNegative = 1e-5
    dead_after: Size | None = None
    accumulate: Size = 1

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frozen:
    """Codes computed from fixed features by a trained map (VQGAN-LC, Zhu et al. 2024).

    Only the codebook loss trains the map; all codes move together, so none is left behind. With random
    features this is SimVQ.

    Args:
        features: ``[K, F]``, shared by all groups, or ``[G, K, F]``; copied as float32.
        projector: ``"linear"`` (or True): one linear map; ``"mlp"``: hidden ReLU units before it; ``"none"``
            (or False): the features themselves are the codes, and F must be the code dimension.
        hidden: width of the hidden layer of ``"mlp"``.
        tuned: the codebook loss moves the features too (the paper's ablation); they are then a parameter.
        projector_init: ``"published"``: weights normal with standard deviation D ** -0.5. ``"matched"``: the
            same, then scaled and shifted per dimension so that the codes have the mean and standard deviation
            of the encoder's vectors; :meth:`vqkernels.VectorQuantizer.fit_codebook` does that and must be
            called before training.
    """

    features: torch.Tensor  # [K, F] or [G, K, F]
    projector: bool | Annotated[str, OneOf(PROJECTORS)] = True
    projector_init: Annotated[str, OneOf(PROJECTOR_INITS)] = "published"
    hidden: Size = 256
    tuned: bool = False

    def __post_init__(self) -> None:
        check_floating("features", self.features)
        check_fields(self)
        if self.features.dim() not in (2, 3) or not self.features.numel():
            raise ValueError(f"features: expected [K, F] or [G, K, F], got shape {shape_of(self.features)}")
        if self.kind_of_projector == "none" and self.projector_init != "published":
            raise ValueError("projector_init: expected 'published' without a projector, got 'matched'")

    @property
    def kind_of_projector(self) -> str:
        """``projector`` by its name."""
        return self.projector if isinstance(self.projector, str) else "linear" if self.projector else "none"


CodebookConfig = Learned | OnlineClustering | SemanticClustering | Ema | Frozen


@dataclass(frozen=True, kw_only=True)
class FullCodebook:
    """A gradient through ``softmax(similarity / temperature)``, which reaches all codes (IBQ, Shi et al. 2024).

    The value is the code all the same. The input gets its gradient through the softmax too, and no other. Similarity
    is the negated distance of the quantizer's metric; IBQ takes ``metric="dot"``. N x K scores are computed a few
    vectors at a time, and once more in the backward.

    Args:
        temperature: a positive number.
    """

    temperature: Positive = 1.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Sinkhorn:
    """In training, vectors spread evenly over the codes (SwAV; the RQ-VAEs of LC-Rec and of OptVQ).

    A vector goes to the code with the largest entry in its row of the plan Q that entropic optimal transport makes
    of the batch: rows that add up to 1, columns that add up to N / K, least ``sum Q (cost + epsilon log Q)``. The
    cost is the distance, shifted and scaled to [-1, 1] over the batch as in LC-Rec. Q comes of so many of Sinkhorn's
    iterations, rows and then columns, in float64. Evaluation and ``encode`` take the nearest code.

    Time is that of ``iterations`` passes over the N x K costs of each group. Up to 2^24 of them are held in memory,
    128 MB; of more, a million at a time, computed again in every pass. A vector that is masked or not finite is no
    row. Each process spreads its own batch and sends nothing.

    Args:
        epsilon: at least 1e-6; small ones keep to the distance and take more iterations. LC-Rec takes 0.003.
        iterations: at least 1. LC-Rec takes 50.
    """

    epsilon: Annotated[float, Within(1e-6)] = 0.003
    iterations: Size = 50

    def __post_init__(self) -> None:
        check_fields(self)


class RegularizingLoss(Protocol):
    """What :class:`Regularizer` weights, for example :class:`vqkernels.nn.EntropyLoss`."""

    def __call__(
        self,
        x: torch.Tensor,  # [N, G, D]
        codebook: torch.Tensor,  # [G, K, D]
        *,
        weight: torch.Tensor,  # [N, G] bool, the vectors that take part
        backend: str | None,
    ) -> torch.Tensor: ...  # []


@dataclass(frozen=True, kw_only=True)
class Regularizer:
    """A further loss of a quantizer.

    Args:
        name: under which the unweighted loss is told.
        loss: of vectors and codes as they are compared, both with gradient.
        weight: in the sum of losses; 0 does not compute it.
    """

    name: str
    loss: RegularizingLoss
    weight: float

    def __post_init__(self) -> None:
        check_fields(self)
        if self.name in ("commitment", "codebook"):
            raise ValueError(f"name: expected one that is not taken, got {shown(self.name)}")


def check_keep_probs(probs: Sequence[float], groups: int) -> tuple[float, ...]:
    if len(probs) != groups or abs(sum(probs) - 1) > 1e-6:
        raise ValueError(f"nested_keep_probs: expected {groups} probabilities that add up to 1, got {shown(probs)}")
    return tuple(probs)
