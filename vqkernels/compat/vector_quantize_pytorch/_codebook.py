"""The codes behind :class:`VectorQuantize`, and what a training step does to them apart from gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vqkernels._core.checks import check_floating, check_same_device
from vqkernels._core.recomputation import recomputing
from vqkernels._core.shown import shape_of
from vqkernels._core.usable import usable_rows
from vqkernels.compat._running_means import RunningMeans, State, held
from vqkernels.nn.sharded import WrittenParameters
from vqkernels.ops.ema_update import no_step_if_empty

UpdateWeight = torch.Tensor | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Codebook(WrittenParameters, RunningMeans):
    """H codebooks of K codes with their running statistics, under the names that checkpoints know."""

    flag = "initted"
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
        super().__init__(
            codebook_size,
            num_codebooks,
            decay=decay,
            eps=eps,
            kmeans_init=kmeans_init,
            kmeans_iters=kmeans_iters,
            threshold_ema_dead_code=threshold_ema_dead_code,
            sync_kmeans=sync_kmeans,
            reset_cluster_size=reset_cluster_size,
            use_ddp=use_ddp,
            use_cosine_sim=use_cosine_sim,
        )
        self.learnable_codebook = learnable_codebook
        self.sample_codebook_temp = sample_codebook_temp
        self.ema_update, self.manual_ema_update = ema_update, manual_ema_update
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

    def state(self) -> State:
        return State(self.embed.detach(), self.cluster_size, self.embed_avg)

    def codes(self) -> torch.Tensor:  # [H, K, D] float32
        """The codes as they are looked up, with a gradient if they are trained by one."""
        embed = (self.embed if self.learnable_codebook else self.embed.detach()).float()
        # its backward needs them as they are now
        return embed if self.vq_bridge is None else self.vq_bridge(embed.clone())

    def moving(self) -> list[torch.Tensor]:
        """What a training step writes in place and a lookup reads."""
        return [self.embed]

    def stored(self, x: torch.Tensor) -> torch.Tensor:  # [N, H, D]
        """Vectors in the space of ``embed``, which :meth:`codes` may lie outside of."""
        return x

    def prepare(self, x: torch.Tensor, indices: torch.Tensor) -> None:  # [N, H, D], [N, H]
        """What a training step does before the lookup."""
        self.init_embed_(x, indices)

    def init_embed_(self, x: torch.Tensor, indices: torch.Tensor) -> None:  # [N, H, D], [N, H]
        """Start from k-means, if that is wanted and has not been done."""
        fresh = not self._started
        self.start_(x, indices)
        if fresh and self._started:
            self.update_ema()

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
        if recomputing() or (not ema_update and not self.has_dead_code_replacement):
            return
        if self.learnable_codebook:
            self.about_to_write("embed")
        anchors = self._candidates(x, indices, exact=ema_update_weight is None) if self.expires() else None
        (count, total), anchors = self._stats_of_all(self.stored(x), indices, anchors=anchors)
        if callable(ema_update_weight):
            ema_update_weight = ema_update_weight(total, count)
        if ema_update_weight is not None:
            self.check_update_weight(ema_update_weight)
        for buffer, new in ((self.cluster_size, count), (self.embed_avg, total)):
            # what batches before this one left to be taken in with it
            if buffer.grad is not None:
                new += buffer.grad
            buffer.grad = new.to(buffer.dtype) if accum_ema_update else None
        if accum_ema_update:
            return
        rebuild = ema_update and not self.manual_ema_update
        count = no_step_if_empty(count)
        if rebuild and ema_update_weight is None:
            self._ema_(count, total, self.decay)
        else:
            self._lerp_(count, total, ema_update_weight)
            if rebuild:
                self.update_ema()
        self._replace_(anchors)

    def check_update_weight(self, weight: torch.Tensor) -> None:  # [K] or [H, K]
        name, like = "ema_update_weight", self.cluster_size
        check_floating(name, weight)
        if weight.shape not in (like.shape, like.shape[1:]):
            raise ValueError(f"{name}: expected {shape_of(like[0])} or {shape_of(like)}, got {shape_of(weight)}")
        check_same_device(**{name: weight}, module=like)

    @torch.no_grad()
    def expire_codes_(self, batch_samples: torch.Tensor, seq_mask: torch.Tensor | None = None) -> None:
        """Replace dead codes by vectors ``[H, ..., D]``, of which ``seq_mask [H, ...]`` tells the valid ones."""
        x = batch_samples.flatten(1, -2).transpose(0, 1)
        valid = usable_rows(x) if seq_mask is None else usable_rows(x) & seq_mask.flatten(1).transpose(0, 1)
        self._expire_(x, torch.where(valid, 0, -1))

    def _lerp_(self, count: torch.Tensor, total: torch.Tensor, weight: torch.Tensor | None) -> None:
        step = torch.full_like(self.cluster_size, 1 - self.decay)
        if weight is not None:
            step *= weight if weight.dim() == 2 else weight[None]
        step = torch.where(count.isnan(), 0, step).to(torch.promote_types(step.dtype, torch.float32))
        size = torch.lerp(self.cluster_size.to(step), count.nan_to_num().to(step), step)
        sums = torch.lerp(self.embed_avg.to(step), total.to(step), step[..., None])
        # as of `ema_update_`: a code whose statistics would not be finite keeps its state
        kept = held(self.embed_avg, size[..., None], sums)
        self.cluster_size.copy_(torch.where(kept, size, self.cluster_size))
        self.embed_avg.copy_(torch.where(kept[..., None], sums, self.embed_avg))
