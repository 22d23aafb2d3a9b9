"""Codebooks that are running means of the vectors they are nearest to, under whatever names checkpoints know them."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import nn

from vqkernels._core.devices import widest
from vqkernels._core.library import NotScriptable
from vqkernels._core.random import row_numbers
from vqkernels._core.recomputation import Past, recomputing
from vqkernels.distributed import elect, stats_of_all, sum_of_all, world
from vqkernels.nn.codebook import unit
from vqkernels.ops.code_stats import CodeStats
from vqkernels.ops.ema_update import ema_update_
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.nearest_code import nearest_code
from vqkernels.ops.reanchor import Anchors, random_vectors


class State(NamedTuple):
    """The tensors that a training step writes."""

    embed: torch.Tensor  # [H, K, D]
    cluster_size: torch.Tensor  # [H, K]
    embed_avg: torch.Tensor  # [H, K, D]


class RunningMeans(NotScriptable, nn.Module):
    """What a training step does to H codebooks of K codes apart from gradients.

    Between its methods vectors travel as ``[N, H, D]`` and indices as ``[N, H]``, -1 for a vector left out. A
    subclass registers the buffers, one of them, named :attr:`flag`, for whether there are codes yet.

    Args:
        codebook_size, num_codebooks: K and H.
        decay, eps: of the running means, as in :func:`vqkernels.ema_update_`.
        kmeans_init, kmeans_iters: start from so many rounds of Lloyd's algorithm on the first batch.
        sync_kmeans: over the batches of all processes.
        threshold_ema_dead_code: codes whose running size falls below it are put on vectors of the batch; 0 never.
        reset_cluster_size: their size from then on; None means the threshold.
        use_ddp: sum statistics over processes; None means whenever there are several, asked at every step.
        use_cosine_sim: vectors and codes are of unit length.
    """

    flag: ClassVar[str]

    def __init__(
        self,
        codebook_size: int,
        num_codebooks: int,
        *,
        decay: float,
        eps: float,
        kmeans_init: bool,
        kmeans_iters: int,
        threshold_ema_dead_code: float,
        sync_kmeans: bool = True,
        reset_cluster_size: float | None = None,
        use_ddp: bool | None = None,
        use_cosine_sim: bool = False,
    ) -> None:
        super().__init__()
        self.codebook_size, self.num_codebooks = codebook_size, num_codebooks
        self.decay, self.eps = decay, eps
        self.kmeans_iters, self.sync_kmeans = kmeans_iters, sync_kmeans
        self.threshold_ema_dead_code = threshold_ema_dead_code
        self.has_dead_code_replacement = threshold_ema_dead_code > 0
        self.reset_cluster_size = threshold_ema_dead_code if reset_cluster_size is None else reset_cluster_size
        self.use_ddp = use_ddp
        self.use_cosine_sim = use_cosine_sim
        # known outside the graph, so that asking does not synchronise
        self._started = not kmeans_init
        self.past = Past()
        self.register_load_state_dict_post_hook(recall_started)  # type: ignore[no-untyped-call]

    def state(self) -> State:
        raise NotImplementedError

    def transform_input(self, x: torch.Tensor) -> torch.Tensor:  # [..., D]
        """Vectors as they are compared with codes."""
        return unit(x) if self.use_cosine_sim else x

    @property
    def metric(self) -> str:
        # of unit vectors; codes count as they are stored
        return "dot" if self.use_cosine_sim else "l2"

    @torch.no_grad()
    def start_(self, x: torch.Tensor, indices: torch.Tensor) -> None:  # [N, H, D], [N, H]
        """Start from Lloyd's algorithm on the first batch that holds any vector."""
        if self._started or recomputing():
            return
        means, key = self._winners(_spread(x, indices, self.codebook_size), sync=self.sync_kmeans)
        if not bool(key.isfinite().all()):
            return
        state = self.state()
        count = torch.zeros_like(state.cluster_size)
        for _ in range(self.kmeans_iters):
            nearest = nearest_code(x, means, metric=self.metric).indices
            (count, total), _ = self._stats_of_all(x, nearest.where(indices >= 0, -1), sync=self.sync_kmeans)
            centres = self.transform_input(total / count.clamp(min=1)[..., None])
            means = torch.where(count[..., None] > 0, centres, means)
        # a mean without vectors starts like any other code does; of size 0 it would become a zero code
        size = torch.where(count > 0, count, 1)
        size = torch.where(held(state.embed_avg, size[..., None], means * size[..., None]), size, 1)
        self._put_(held(state.embed_avg, means), means, size)
        self.started_()

    def started_(self) -> None:
        """There are codes now: nothing is to start from."""
        getattr(self, self.flag).fill_(True)
        self._started = True

    def update_ema(self) -> None:
        """Make the codes what the running statistics say."""
        if recomputing():
            return
        _, size, sums = self.state()
        self._ema_(torch.zeros_like(size), torch.zeros_like(sums), decay=1.0)

    def _ema_(self, count: torch.Tensor, total: torch.Tensor, decay: float) -> None:
        ema_update_(*self.state(), count, total, decay=decay, eps=self.eps, normalize=self.use_cosine_sim)

    def expires(self) -> bool:
        """Whether this step replaces dead codes."""
        return self.has_dead_code_replacement and self.training

    def _candidates(
        self,
        x: torch.Tensor,  # [N, H, D]
        indices: torch.Tensor,  # [N, H]
        *,
        exact: bool = True,
    ) -> Anchors:
        """A vector for each code that may be dead after this step."""
        size = self.state().cluster_size
        # a step with weights of its own can shrink any code
        least = size * (self.decay if exact else 0.0)
        # the state tells the seed, so all processes draw alike
        seed = row_numbers(0, size.reshape(1, -1))[0]
        return random_vectors(x, indices, least < self.threshold_ema_dead_code, seed)

    def _replace_(self, anchors: Anchors) -> None:
        """Put dead codes on their anchors; one without waits for the next batch."""
        if not anchors.key.numel():
            return
        _, cluster_size, embed_avg = self.state()
        size = torch.full_like(cluster_size, self.reset_cluster_size)
        replaced = (cluster_size < self.threshold_ema_dead_code) & anchors.key.isfinite()
        replaced &= held(embed_avg, anchors.vectors, anchors.vectors * self.reset_cluster_size)
        self._put_(replaced, anchors.vectors, size)

    def _put_(
        self,
        where: torch.Tensor,  # [H, K] bool
        means: torch.Tensor,  # [H, K, D]
        size: torch.Tensor,  # [H, K]
    ) -> None:
        """Make some codes means of so many vectors."""
        embed, cluster_size, embed_avg = self.state()
        for tensor, value in ((embed, means), (embed_avg, means * size[..., None])):
            tensor.copy_(torch.where(where[..., None], value, tensor))
        cluster_size.copy_(torch.where(where, size, cluster_size))

    def _expire_(self, x: torch.Tensor, indices: torch.Tensor) -> None:  # [N, H, D], [N, H]
        """Put codes that are dead by now on vectors of the batches of all processes."""
        if self.expires() and not recomputing():
            self._replace_(self._winners(self._candidates(x, indices)))

    def _winners(self, anchors: Anchors, *, sync: bool = True) -> Anchors:
        """The anchors that win among those of all processes."""
        if not (sync and self._synchronised()):
            return anchors
        nothing = torch.zeros(self.num_codebooks, 1, 4, dtype=torch.int64, device=anchors.key.device)
        anchors, _ = elect(anchors, nothing)
        (vectors,) = sum_of_all(anchors.vectors)
        return Anchors(vectors, anchors.key)

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


def held(like: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:  # [H, K, ...] each -> [H, K] bool
    """Which codes have numbers that a buffer like this one, perhaps of 16 bits, can hold."""
    finite = [value.to(like.dtype).isfinite().all(dim=-1) for value in values]
    return torch.stack(finite).all(dim=0)


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
    return Anchors(vectors, key.to(widest(key.device)))


def recall_started(codebook: nn.Module, _: object = None) -> None:
    """Look at the flag, after somebody else wrote it."""
    assert isinstance(codebook, RunningMeans)
    codebook._started = bool(getattr(codebook, codebook.flag))
