"""The codes behind :class:`VectorQuantize`, and what a training step does to them apart from gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vqkernels._core.random import row_numbers
from vqkernels.distributed import elect, stats_of_all, sum_of_all, world
from vqkernels.nn.codebook import unit
from vqkernels.ops.code_stats import CodeStats
from vqkernels.ops.ema_update import ema_update_
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.reanchor import Anchors, random_vectors

UpdateWeight = torch.Tensor | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Codebook(nn.Module):
    """H codebooks of K codes with their running statistics, under the names that checkpoints know.

    Between its methods vectors travel as ``[N, H, D]`` and indices as ``[N, H]``, -1 for a vector left out.
    """

    initted: torch.Tensor  # [] bool
    cluster_size: torch.Tensor  # [H, K]
    embed_avg: torch.Tensor  # [H, K, D]
    embed: torch.Tensor  # [H, K, D]

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_codebooks: int = 1,
        kmeans_init: bool = False,
        kmeans_iters: int = 10,
        sync_kmeans: bool = True,
        decay: float = 0.8,
        eps: float = 1e-5,
        threshold_ema_dead_code: float = 2,
        reset_cluster_size: float | None = None,
        use_ddp: bool | None = None,
        learnable_codebook: bool = False,
        sample_codebook_temp: float = 1.0,
        ema_update: bool = True,
        manual_ema_update: bool = False,
        use_cosine_sim: bool = False,
        vq_bridge: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.kmeans_iters, self.sync_kmeans = kmeans_iters, sync_kmeans
        self.decay, self.eps = decay, eps
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.has_dead_code_replacement = threshold_ema_dead_code > 0
        self.reset_cluster_size = threshold_ema_dead_code if reset_cluster_size is None else reset_cluster_size
        self.use_ddp = use_ddp
        self.learnable_codebook = learnable_codebook
        self.sample_codebook_temp = sample_codebook_temp
        self.ema_update, self.manual_ema_update = ema_update, manual_ema_update
        self.use_cosine_sim = use_cosine_sim
        self.vq_bridge = vq_bridge

        embed = torch.zeros(num_codebooks, codebook_size, dim)
        if not kmeans_init:
            nn.init.kaiming_uniform_(embed)
            embed = self.transform_input(embed)
        self.register_buffer("initted", torch.tensor(not kmeans_init))
        self.register_buffer("cluster_size", torch.ones(num_codebooks, codebook_size))
        self.register_buffer("embed_avg", embed.clone())
        if learnable_codebook:
            self.embed = nn.Parameter(embed)
        else:
            self.register_buffer("embed", embed)
        # known outside the graph, so that asking does not synchronise
        self._initted = not kmeans_init
        self.register_load_state_dict_post_hook(_recall_initted)  # type: ignore[no-untyped-call]

    def transform_input(self, x: torch.Tensor) -> torch.Tensor:  # [..., D]
        """Vectors as they are compared with codes."""
        return unit(x) if self.use_cosine_sim else x

    @property
    def metric(self) -> str:
        # of unit vectors; codes count as they are stored
        return "dot" if self.use_cosine_sim else "l2"

    def codes(self) -> torch.Tensor:  # [H, K, D] float32
        """The codes as they are looked up, with a gradient if they are trained by one."""
        embed = (self.embed if self.learnable_codebook else self.embed.detach()).float()
        return embed if self.vq_bridge is None else self.vq_bridge(embed)

    def stored(self, x: torch.Tensor) -> torch.Tensor:  # [N, H, D]
        """Vectors in the space of ``embed``, which :meth:`codes` may lie outside of."""
        return x

    def prepare(self, x: torch.Tensor, indices: torch.Tensor) -> None:  # [N, H, D], [N, H]
        """What a training step does before the lookup."""
        self.init_embed_(x, indices)

    @torch.no_grad()
    def init_embed_(self, x: torch.Tensor, indices: torch.Tensor) -> None:  # [N, H, D], [N, H]
        """Start from Lloyd's algorithm on the first batch that holds any vector."""
        if self._initted:
            return
        means, key = self._winners(_spread(x, indices, self.codebook_size), sync=self.sync_kmeans)
        if not bool(key.isfinite().all()):
            return
        count = torch.zeros_like(self.cluster_size)
        for _ in range(self.kmeans_iters):
            nearest = nearest_code(x, means, metric=self.metric).indices
            (count, total), _ = self._stats_of_all(x, nearest.where(indices >= 0, -1), sync=self.sync_kmeans)
            centres = self.transform_input(total / count.clamp(min=1)[..., None])
            means = torch.where(count[..., None] > 0, centres, means)
        # a mean without vectors starts like any other code does; of size 0 it would become a zero code
        size = torch.where(count > 0, count, 1)
        self.cluster_size.copy_(size)
        self.embed_avg.copy_(means * size[..., None])
        self.update_ema()
        self.initted.fill_(True)
        self._initted = True

    @torch.no_grad()
    def update_codebook(
        self,
        x: torch.Tensor,  # [N, H, D]
        indices: torch.Tensor,  # [N, H]
        *,
        ema_update: bool | None = None,
        ema_update_weight: UpdateWeight | None = None,
        accum_ema_update: bool = False,
    ) -> None:
        """Take one batch into the running statistics, the codes and, where dead ones are replaced, their place."""
        ema_update = self.ema_update if ema_update is None else ema_update
        if not ema_update and not self.has_dead_code_replacement:
            return
        anchors = self._candidates(x, indices, exact=ema_update_weight is None) if self._replaces() else None
        (count, total), anchors = self._stats_of_all(self.stored(x), indices, anchors=anchors)
        if callable(ema_update_weight):
            ema_update_weight = ema_update_weight(total, count)
        for buffer, new in ((self.cluster_size, count), (self.embed_avg, total)):
            # what batches before this one left to be taken in with it
            if buffer.grad is not None:
                new += buffer.grad
            buffer.grad = new.to(buffer.dtype) if accum_ema_update else None
        if accum_ema_update:
            return
        rebuild = ema_update and not self.manual_ema_update
        # a batch without any vector is no step: a count that is no number leaves the state as it is
        count = torch.where(count.sum(dim=1, keepdim=True) > 0, count, torch.nan)
        if rebuild and ema_update_weight is None:
            self._ema_(count, total, self.decay)
        else:
            self._lerp_(count, total, ema_update_weight)
            if rebuild:
                self.update_ema()
        self._replace_(anchors)

    def update_ema(self) -> None:
        """Make the codes what the running statistics say."""
        self._ema_(torch.zeros_like(self.cluster_size), torch.zeros_like(self.embed_avg), decay=1.0)

    @torch.no_grad()
    def expire_codes_(self, batch_samples: torch.Tensor, seq_mask: torch.Tensor | None = None) -> None:
        """Replace dead codes by vectors ``[H, ..., D]``, of which ``seq_mask [H, ...]`` tells the valid ones."""
        x = batch_samples.flatten(1, -2).transpose(0, 1)
        valid = x[..., 0].isfinite() if seq_mask is None else seq_mask.flatten(1).transpose(0, 1)
        if self._replaces():
            self._replace_(self._winners(self._candidates(x, torch.where(valid, 0, -1), exact=True)))

    def _replaces(self) -> bool:
        return self.has_dead_code_replacement and self.training

    def _candidates(self, x: torch.Tensor, indices: torch.Tensor, *, exact: bool) -> Anchors:  # [N, H, D], [N, H]
        """A vector for each code that may be dead after this step."""
        # a step with weights of its own can shrink any code
        least = self.cluster_size * (self.decay if exact else 0.0)
        # the state tells the seed, so all processes draw alike
        seed = row_numbers(0, self.cluster_size.reshape(1, -1))[0]
        return random_vectors(x, indices, least < self.threshold_ema_dead_code, seed)

    def _replace_(self, anchors: Anchors) -> None:
        """Put dead codes on their anchors; one without waits for the next batch."""
        if not anchors.key.numel():
            return
        replaced = (self.cluster_size < self.threshold_ema_dead_code) & anchors.key.isfinite()
        vectors, size = anchors.vectors, self.reset_cluster_size
        for state, value in ((self.embed, vectors), (self.embed_avg, vectors * size)):
            state.copy_(torch.where(replaced[..., None], value, state))
        self.cluster_size.masked_fill_(replaced, size)

    def _winners(self, anchors: Anchors, *, sync: bool = True) -> Anchors:
        """The anchors that win among those of all processes."""
        if not (sync and self._synchronised()):
            return anchors
        nothing = torch.zeros(self.num_codebooks, 4, dtype=torch.int64, device=anchors.key.device)
        anchors, _ = elect(anchors, nothing)
        (vectors,) = sum_of_all(anchors.vectors)
        return Anchors(vectors, anchors.key)

    def _ema_(self, count: torch.Tensor, total: torch.Tensor, decay: float) -> None:
        state = (self.embed.detach(), self.cluster_size, self.embed_avg)
        # a module cast to half precision moves in float32 all the same
        codes, size, sums = (tensor.float() for tensor in state)
        ema_update_(codes, size, sums, count, total, decay=decay, eps=self.eps, normalize=self.use_cosine_sim)
        for tensor, moved in zip(state, (codes, size, sums), strict=True):
            if moved is not tensor:
                tensor.copy_(moved)

    def _lerp_(self, count: torch.Tensor, total: torch.Tensor, weight: torch.Tensor | None) -> None:
        step = torch.full_like(self.cluster_size, 1 - self.decay)
        if weight is not None:
            step *= weight if weight.dim() == 2 else weight[None]
        step = torch.where(count.isnan(), 0, step)
        self.cluster_size.lerp_(count.nan_to_num().to(step), step)
        self.embed_avg.lerp_(total.to(step), step[..., None])

    def _synchronised(self) -> bool:
        """Whether processes train together: asked at every step, unless the constructor was told not to."""
        return world()[1] > 1 and self.use_ddp is not False

    def _stats_of_all(
        self,
        x: torch.Tensor,  # [N, H, D]
        indices: torch.Tensor,  # [N, H]
        *,
        num_codes: int | None = None,
        anchors: Anchors | None = None,
        sync: bool = True,
    ) -> tuple[CodeStats, Anchors]:
        k = self.codebook_size if num_codes is None else num_codes
        return stats_of_all(x, indices, k, anchors, synchronised=sync and self._synchronised())


def _spread(x: torch.Tensor, indices: torch.Tensor, k: int) -> Anchors:  # [N, H, D], [N, H]
    """K random vectors, all different places of the batch if it has so many, and how they compete with others'."""
    usable = (indices >= 0).transpose(0, 1)  # [H, N]
    order = torch.where(usable, torch.rand(usable.shape, device=x.device), 2.0).argsort(dim=1, stable=True)
    available = usable.sum(dim=1, keepdim=True)
    # one row more, so that there is something to read when N = 0
    order = torch.cat([order, torch.zeros_like(available)], dim=1)
    places = torch.arange(k, device=x.device) % available.clamp(min=1)
    candidates = torch.cat([x, x.new_zeros(1, *x.shape[1:])]).transpose(0, 1)
    vectors = gather_codes(candidates, order.gather(1, places).transpose(0, 1)).transpose(0, 1)
    # exponentially distributed with rate N: every vector of all processes is as likely to win a place
    key = torch.rand(places.shape, device=x.device).log().neg() / available
    return Anchors(vectors, key.double())


def _recall_initted(codebook: nn.Module, _: Any) -> None:
    assert isinstance(codebook, Codebook)
    codebook._initted = bool(codebook.initted)
