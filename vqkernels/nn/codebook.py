"""The codebooks behind a quantizer: each owns its parameters and buffers, its codes and its update rule.

Nothing here is saved for a backward but indices and gathered rows, so codes may be written in place between
the forward and the backward of a step. Where something else needs all of them, the quantizer hands it a copy.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vqkernels._core.devices import widest
from vqkernels._core.library import NotScriptable
from vqkernels._core.random import random_uniform
from vqkernels._core.shown import shape_of
from vqkernels.distributed import everybody, stats_of_all, sum_of_all, world
from vqkernels.kmeans import kmeans
from vqkernels.nn.config import Ema, Frozen, Learned, OnlineClustering
from vqkernels.nn.sharded import WrittenParameters
from vqkernels.nn.unsent import Unsent
from vqkernels.ops.code_stats import CodeStats, code_stats
from vqkernels.ops.ema_update import ema_update_, no_step_if_empty
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.reanchor import Anchors, blend_, choose_anchors, random_vectors

_JITTER = 1e-3  # largest change of an entry of a revived code, relative to it; if it is zero, to the rms


def unit(x: torch.Tensor) -> torch.Tensor:  # [..., D]
    """Scale to unit length; a zero vector stays zero and passes no gradient."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    scaled: torch.Tensor = x / norm.masked_fill(norm == 0, torch.inf)
    return scaled


class Codebook(NotScriptable, nn.Module):
    """Codes ``[G, K, D]``, and what happens to them in a training step apart from gradients."""

    trained = False  # by gradient: there is a codebook loss

    def __init__(self, groups: int, num_codes: int, dim: int, metric: str, backend: str | None) -> None:
        super().__init__()
        self.groups, self.num_codes, self.dim = groups, num_codes, dim
        self.metric, self.backend = metric, backend

    def codes(self) -> torch.Tensor:  # [G, K, D]
        """The codes as they are looked up, with a gradient if they are trained."""
        raise NotImplementedError

    def assign_(self, codes: torch.Tensor) -> None:  # [G, K, D]
        """Start over from these codes."""
        raise NotImplementedError

    def labels(self, labels: torch.Tensor, shape: torch.Size) -> torch.Tensor:  # [...] -> [N] int64
        """The classes of the vectors of a step, for a codebook that has any."""
        raise ValueError("labels: expected None but for a codebook with SemanticClustering, got a tensor")

    def begin(self) -> None:
        """To be called before a training step looks at the codes."""

    def moving(self) -> list[torch.Tensor]:
        """What a training step writes in place and a lookup reads."""
        return []

    def fit(self, x: torch.Tensor, *, max_iter: int, seed: int) -> None:  # [N, G, D]
        """Start over from k-means centres of these vectors and those of the other processes."""
        options: dict[str, Any] = {"max_iter": max_iter, "seed": seed, "group": everybody(), "backend": self.backend}
        metric = "cosine" if self.metric == "cosine" else "l2"
        centres = [kmeans(rows, self.num_codes, metric=metric, **options).centroids for rows in x.unbind(1)]
        self.assign_(torch.stack(centres))

    def find(self, x: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:  # [N, G, D], [G, K, D] -> [N, G]
        """Indices of the nearest of these codes."""
        return nearest_code(x, codes, metric=self.metric, backend=self.backend).indices

    def update(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [N, G, D], [N, G] -> [G, K]
        """Take in one training step; -1 leaves a vector out. Returns how often all processes used each code."""
        # one column is enough to count
        counted = code_stats(x[..., :1], indices, self.num_codes, groups=self.groups, backend=self.backend).count
        (count,) = sum_of_all(counted.long())
        return count.float()

    def ready(self) -> bool:
        """Whether training may start."""
        return True

    def _stats_of_all(
        self, x: torch.Tensor, indices: torch.Tensor, anchors: Anchors | None = None
    ) -> tuple[CodeStats, Anchors]:
        return stats_of_all(x, indices, self.num_codes, anchors, backend=self.backend)

    def _uniform(self, scale: float) -> torch.Tensor:  # [G, K, D]
        codes = torch.empty(self.groups, self.num_codes, self.dim).uniform_(-scale, scale)
        return unit(codes) if self.metric == "cosine" else codes

    def extra_repr(self) -> str:
        return f"groups={self.groups}, num_codes={self.num_codes}, dim={self.dim}"


class LearnedCodebook(Codebook):
    """Codes as a parameter."""

    trained = True

    def __init__(self, config: Learned, *shape: Any) -> None:
        super().__init__(*shape)
        self.weight = nn.Parameter(self._uniform(config.init_scale or 1 / self.num_codes))

    def codes(self) -> torch.Tensor:
        return self.weight

    @torch.no_grad()
    def assign_(self, codes: torch.Tensor) -> None:
        self.weight.copy_(codes)


class OnlineCodebook(WrittenParameters, LearnedCodebook):
    """A parameter whose hardly used codes are moved to vectors of the batch."""

    usage: torch.Tensor  # [G, K] float32
    draws: torch.Tensor  # [] int64, the steps that drew

    def __init__(self, config: OnlineClustering, *shape: Any) -> None:
        super().__init__(config, *shape)
        self.decay, self.anchor = config.decay, config.anchor
        self.register_buffer("usage", torch.zeros(self.groups, self.num_codes))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def moving(self) -> list[torch.Tensor]:
        return [self.weight]

    @torch.no_grad()
    def assign_(self, codes: torch.Tensor) -> None:
        super().assign_(codes)
        self.usage.zero_()

    @torch.no_grad()
    def update(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        self.about_to_write("weight")
        anchors = choose_anchors(
            self.weight,
            self.usage,
            x,
            indices,
            decay=self.decay,
            anchor=self.anchor,
            metric=self.metric,
            seed=self.draws + 1,
            backend=self.backend,
        )
        stats, anchors = self._stats_of_all(x[..., :1], indices, anchors)
        advance_(self.draws, stats.count)
        blend_(self.weight, self.usage, stats.count, anchors, self.decay)
        return stats.count


class EmaCodebook(Codebook):
    """Codes as running means; ``embed_sum / cluster_size`` is the codebook from the first step on."""

    weight: torch.Tensor  # [G, K, D] float32
    cluster_size: torch.Tensor  # [G, K] float32
    embed_sum: torch.Tensor  # [G, K, D] float32
    idle: torch.Tensor  # [G, K] int64, steps since a code was used or revived
    forwards: torch.Tensor  # [] int64, since the last update
    pending_count: torch.Tensor  # [G, K] float32, what they counted
    pending_total: torch.Tensor  # [G, K, D] float32, what they summed
    draws: torch.Tensor  # [] int64, the steps that drew

    def __init__(self, config: Ema, *shape: Any) -> None:
        super().__init__(*shape)
        self.decay, self.eps, self.dead_after = config.decay, config.eps, config.dead_after
        self.accumulate = config.accumulate
        codes = self._uniform(1 / self.num_codes)
        self.register_buffer("weight", codes)
        self.register_buffer("cluster_size", torch.ones(codes.shape[:2]))
        self.register_buffer("embed_sum", codes.clone())
        if self.accumulate > 1:
            self.register_buffer("forwards", torch.zeros((), dtype=torch.int64))
            self.register_buffer("pending_count", torch.zeros(codes.shape[:2]))
            self.register_buffer("pending_total", torch.zeros(codes.shape))
        if self.dead_after is not None:
            self.register_buffer("idle", torch.zeros(codes.shape[:2], dtype=torch.int64))
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def codes(self) -> torch.Tensor:
        return self.weight

    def moving(self) -> list[torch.Tensor]:
        return [self.weight]

    @torch.no_grad()
    def assign_(self, codes: torch.Tensor) -> None:
        self.weight.copy_(codes)
        self.cluster_size.fill_(1)
        self.embed_sum.copy_(codes)
        if self.dead_after is not None:
            self.idle.zero_()
        if self.accumulate > 1:
            for buffer in (self.forwards, self.pending_count, self.pending_total):
                buffer.zero_()

    @torch.no_grad()
    def update(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        if self.dead_after is None:
            (count, total), _ = self._stats_of_all(x, indices)
            self._move(count, total)
            return count
        # a code due now is revived unless some process uses it in this very step
        due = self.idle >= self.dead_after - 1
        anchors = random_vectors(x, indices, due, self.draws + 1, self.backend)
        (count, total), anchors = self._stats_of_all(x, indices, anchors)
        advance_(self.draws, count)
        self._move(count, total)
        revived = due & (count == 0) & anchors.key.isfinite()
        self._revive(revived, anchors.vectors)
        step = count.sum(dim=1, keepdim=True) > 0
        self.idle.copy_(torch.where(revived | (count > 0), 0, self.idle + step))
        return count

    def _move(self, count: torch.Tensor, total: torch.Tensor) -> None:
        if self.accumulate > 1:
            count, total = self._accumulated(count, total)
        ema_update_(
            self.weight,
            self.cluster_size,
            self.embed_sum,
            no_step_if_empty(count),
            total,
            decay=self.decay,
            eps=self.eps,
            normalize=self.metric == "cosine",
            backend=self.backend,
        )

    def _accumulated(self, count: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The statistics of all forwards since the last update if one is due now, otherwise none."""
        count, total = self.pending_count + count, self.pending_total + total
        # 16 bits cannot hold every sum; a code then does without this forward
        fits = count.to(self.pending_count).isfinite() & total.to(self.pending_total).isfinite().all(dim=2)
        self.forwards.add_(1)
        self.pending_count.copy_(torch.where(fits, count, self.pending_count))
        self.pending_total.copy_(torch.where(fits[..., None], total, self.pending_total))
        due = self.forwards >= self.accumulate
        count, total = self.pending_count * due, self.pending_total.clone()
        for buffer in (self.forwards, self.pending_count, self.pending_total):
            buffer.mul_(~due)
        return count, total

    def _revive(self, revived: torch.Tensor, vectors: torch.Tensor) -> None:  # [G, K], [G, K, D]
        # two codes on one vector would never part, since ties go to the first; the seed is no other draw's
        noise = 2 * random_uniform(-self.draws, tuple(vectors.shape), vectors.device) - 1
        vectors = torch.where(revived[..., None], vectors, 0)
        entries = (revived.sum(dim=1) * self.dim).clamp(min=1)
        rms = (vectors.to(widest(vectors.device)).square().sum(dim=(1, 2)) / entries).sqrt().to(vectors.dtype)
        size = torch.where(vectors == 0, rms[:, None, None], vectors)
        vectors = vectors + _JITTER * noise * size
        if self.metric == "cosine":
            vectors = unit(vectors)
        self.weight.copy_(torch.where(revived[..., None], vectors, self.weight))
        self.embed_sum.copy_(torch.where(revived[..., None], vectors, self.embed_sum))
        self.cluster_size.masked_fill_(revived, 1)


class FrozenCodebook(Unsent, Codebook):
    """Features seen through a map; the whole codebook is mapped in every forward.

    One map serves lookup, values and losses, so they agree to the last bit. Its gradient passes through a
    ``[K, D]`` tensor, small beside the features.
    """

    features: torch.Tensor  # [K, F] or [G, K, F] float32
    calibrated: torch.Tensor  # [] bool, only with projector_init="matched"

    def __init__(self, config: Frozen, *shape: Any) -> None:
        super().__init__(*shape)
        features = config.features.detach().float().clone()
        *groups, num_codes, width = features.shape
        if num_codes != self.num_codes or groups not in ([], [self.groups]):
            expected = f"[K={self.num_codes}, F] or [G={self.groups}, K={self.num_codes}, F]"
            raise ValueError(f"codebook.features: expected {expected}, got shape {shape_of(features)}")
        projector = config.kind_of_projector
        if projector == "none" and width != self.dim:
            raise ValueError(f"codebook.features: expected F = D = {self.dim} without a projector, got {width}")
        if config.tuned:
            self.features = nn.Parameter(features)
        else:
            self.set_unsent("features", features)
        self.hidden = nn.Linear(width, config.hidden) if projector == "mlp" else None
        inputs = config.hidden if projector == "mlp" else width
        self.projector = nn.Linear(inputs, self.groups * self.dim) if projector != "none" else None
        self.trained = config.tuned or projector != "none"
        self.matched = config.projector_init == "matched"
        self._calibrated = False
        if self.projector is not None:
            nn.init.normal_(self.projector.weight, std=self.dim**-0.5)
        if self.matched:
            self.register_buffer("calibrated", torch.zeros((), dtype=torch.bool))
            self.register_load_state_dict_post_hook(_recall_calibration)  # type: ignore[no-untyped-call]

    def codes(self) -> torch.Tensor:
        if self.projector is None:
            return self.features.expand(self.groups, self.num_codes, self.dim)
        weight, bias = self.projector.weight, self.projector.bias
        # in float32 under any autocast: codes apart by less than a bfloat16 step must stay apart
        with torch.autocast(self.features.device.type, enabled=False):
            inputs = self.features if self.hidden is None else F.relu(self.hidden(self.features))
            if inputs.dim() == 2:
                codes = F.linear(inputs, weight, bias)
                return codes.view(self.num_codes, self.groups, self.dim).transpose(0, 1)
            per_group = weight.view(self.groups, self.dim, -1).transpose(1, 2)  # [G, F, D]
            return torch.baddbmm(bias.view(self.groups, 1, self.dim), inputs, per_group)

    def begin(self) -> None:
        self.send_once()

    @torch.no_grad()
    def fit(self, x: torch.Tensor, *, max_iter: int, seed: int) -> None:
        """Scale and shift the map so that the codes have the mean and standard deviation of these vectors."""
        if self.projector is None or not self.matched:
            raise ValueError("codebook: expected projector_init='matched' for fit_codebook, got another Frozen")
        self.begin()
        codes, rows = (t.to(widest(x.device)) for t in (self.codes(), x))
        spread = codes.std(dim=1, correction=0)
        mean = self._mean_of_all(rows)
        variance = self._mean_of_all((rows - mean).square())
        scale = torch.where(spread > 0, variance.sqrt() / spread, 1)  # [G, D]
        shift = mean - scale * codes.mean(dim=1)
        self.projector.weight.mul_(scale.reshape(-1, 1))
        self.projector.bias.mul_(scale.reshape(-1)).add_(shift.reshape(-1))
        self.calibrated.fill_(True)
        self._calibrated = True

    def _mean_of_all(self, x: torch.Tensor) -> torch.Tensor:  # [N, G, D] float64 -> [G, D]
        """Over the vectors of all processes, the same bits however they are spread."""
        # one code that all of them have
        nowhere = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
        (count, total), _ = stats_of_all(x, nowhere, 1, backend=self.backend)
        return (total / count[..., None])[:, 0].to(x.dtype)

    def ready(self) -> bool:
        return self._calibrated or not self.matched


def _recall_calibration(codebook: nn.Module, _: Any) -> None:
    # known outside the graph, so that asking does not synchronise
    assert isinstance(codebook, FrozenCodebook)
    codebook._calibrated = bool(codebook.calibrated)


def next_seed(draws: torch.Tensor) -> torch.Tensor:
    """A seed that no other step and no other process has."""
    rank, processes = world()
    return (draws + 1) * processes + rank


def advance_(draws: torch.Tensor, count: torch.Tensor) -> None:
    """Count a step in which any vector took part; ``count`` is that of all processes."""
    draws.add_((count > 0).any())
