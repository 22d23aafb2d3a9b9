"""The quantizer module: layout, projection, lookup, losses; everything else is its codebook's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import nn

from vqkernels._core.arguments import Backend, Metric, OneOf, Positive, Share, Size, checked
from vqkernels._core.checks import (
    check_data,
    check_floating,
    check_indices,
    check_integer,
    check_returned,
    check_same_device,
    check_seed,
    check_size,
    each_of,
)
from vqkernels._core.recomputation import Past
from vqkernels._core.shown import shape_of, shown
from vqkernels.distributed import ALONE, among, sum_of_all
from vqkernels.kmeans.processes import check_group
from vqkernels.nn.build import build_codebook
from vqkernels.nn.codebook import advance_, next_seed, unit
from vqkernels.nn.config import (
    CodebookConfig,
    FullCodebook,
    Learned,
    Regularizer,
    SemanticClustering,
    Sinkhorn,
    check_keep_probs,
)
from vqkernels.nn.layout import Layout
from vqkernels.nn.nested import kept_groups
from vqkernels.nn.output import QuantizerOutput
from vqkernels.nn.partly_frozen import PartlyFrozen
from vqkernels.nn.rows import label, masked_mean_square
from vqkernels.nn.scores import sample_codes, soft_values
from vqkernels.nn.sinkhorn import balanced_codes_of
from vqkernels.nn.usage import Usage, UsageStatistics
from vqkernels.ops.gather_codes import gather_codes
from vqkernels.ops.quantize import GRADIENTS, estimate_gradient

NESTED_SCOPES = ("entry", "batch")


class VectorQuantizer(PartlyFrozen, Layout):
    """Replace vectors by their nearest codes and train the codebook along.

    Equivalent, for the default arguments, to the quantizer of VQ-VAE (van den Oord et al. 2017)::

        indices   = cdist(x, codebook).argmin(-1)
        codes     = codebook[indices]
        quantized = x + (codes - x).detach()
        loss      = commitment_weight * mse(x, codes.detach()) + codebook_weight * mse(codes, x.detach())

    without an N x K matrix, a one-hot, or a host synchronisation.

    Args:
        dim: size of the vectors.
        num_codes: K, per group.
        groups: G; a vector is split into G parts, each with its own codebook (all in one lookup).
        code_dim: width in which codes are compared, split over the groups; None means ``dim``. If it differs
            from ``dim``, a linear layer leads there (``project_in``) and one leads back (``project_out``).
        metric: as in :func:`vqkernels.nearest_code`. With ``"cosine"`` the value is the code scaled to unit
            length, and losses and codebook updates compare it with the vector scaled to unit length.
        codebook: its kind and update rule: :class:`Learned`, :class:`Ema`, :class:`OnlineClustering`,
            :class:`SemanticClustering` or :class:`Frozen`.
        gradient: how the gradient of ``quantized`` reaches ``x``: ``"ste"``, ``"rotation"`` or ``"none"``, none of
            which lets it reach the codebook; or :class:`FullCodebook`, which lets it reach all codes.
        commitment_weight: weight of the loss that pulls vectors to their codes.
        codebook_weight: weight of the loss that pulls codes to their vectors, if they are trained by gradient.
        regularizers: further losses, each a :class:`Regularizer`.
        sampling_temperature: in training, draw codes from ``softmax(-distance / sampling_temperature)``; None takes
            the nearest.
        balance: in training, spread the vectors of a batch evenly over the codes; see :class:`Sinkhorn`.
        nested_keep_probs: probabilities of keeping the first 1, 2, ... G groups, drawn for every entry of a training
            batch, or as ``nested_scope`` says (MGVQ); the other groups have value 0 and index -1, no loss and no
            update. None keeps all.
        nested_scope: ``"entry"``: each entry of a batch has a draw of its own; ``"batch"``: one for all of them, as
            in MGVQ's released code.
        channels_first: vectors along dimension 1, ``[B, dim, ...]``, instead of along the last one.
        usage_window: training steps over which :meth:`usage` looks back.
        group: process group that trains it together, instead of the default one.
        synchronize: False for a quantizer that this process trains by itself, whatever processes there are.
        backend: a backend by name for every operation, or None.

    Numerics:
        The lookup is exact. Losses are float32 (float64 for float64 ``x``) under any autocast; ``quantized``
        has the dtype of ``x``. A vector that is not finite gets index 0 and the value of code 0; it
        takes no part in losses and updates, and no gradient reaches it. Nor does one longer than 2^62 take part:
        float32 may not hold its squared distances.

    State:
        Codebooks and statistics move in the forward of training mode, once per call. A forward that a checkpoint
        (``torch.utils.checkpoint``) computes again in the backward moves nothing, and sees the codes and draws of its
        first time. Batches that are split (gradient accumulation) make one update of an EMA codebook with
        ``Ema(accumulate=...)``. Everything that changes training is in the ``state_dict``;
        training resumed from it ends with the same bits.

    Distributed:
        In training, statistics are summed over all processes of the group, asked for at each step: in one
        all-reduce where codes are counted only, in two where there are sums or anchors. Codebooks updated without
        gradients stay the same bits everywhere, and on any number of processes. Starting from the same state and
        averaging gradients is left to DistributedDataParallel or ``fully_shard``. A batch without any valid vector is
        fine on any process.

    Raises:
        TypeError: if ``codebook`` is none of the kinds.
        ValueError: on sizes that do not fit or unknown names.

    Example:
        >>> import torch, vqkernels
        >>> quantizer = vqkernels.VectorQuantizer(8, 32, codebook=vqkernels.Ema(decay=0.9))
        >>> quantized, indices, loss, losses = quantizer(torch.randn(2, 5, 8))
        >>> list(quantized.shape), list(indices.shape), list(losses)
        ([2, 5, 8], [2, 5], ['commitment'])
    """

    draws: torch.Tensor  # [] int64, the steps that drew

    @checked
    def __init__(
        self,
        dim: Size,
        num_codes: Size,
        *,
        groups: Size = 1,
        code_dim: Size | None = None,
        metric: Metric = "l2",
        codebook: CodebookConfig = Learned(),  # noqa: B008, it is immutable
        gradient: Annotated[str, OneOf(GRADIENTS)] | FullCodebook = "ste",
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        regularizers: Sequence[Regularizer] = (),
        sampling_temperature: Positive | None = None,
        balance: Sinkhorn | None = None,
        nested_keep_probs: Sequence[Share] | None = None,
        nested_scope: Annotated[str, OneOf(NESTED_SCOPES)] = "entry",
        channels_first: bool = False,
        usage_window: Size = 100,
        group: Any = None,
        synchronize: bool = True,
        backend: Backend = None,
    ) -> None:
        super().__init__()
        check_group(group)
        self.group, self.synchronize = group, synchronize
        width = dim if code_dim is None else code_dim
        if width % groups:
            raise ValueError(f"groups: expected a divisor of the code width {width}, got {groups}")
        check_size("code_dim", dim=dim, code_dim=width)
        check_size("num_codes", num_codes=num_codes, code_dim=width)
        self.dim, self.num_codes, self.groups, self.code_dim = dim, num_codes, groups, width
        self.metric, self.gradient, self.backend = metric, gradient, backend
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.channels_first = channels_first
        self.project_in = nn.Linear(dim, width) if width != dim else None
        self.project_out = nn.Linear(width, dim) if width != dim else None
        self.regularizers = tuple(part for part in regularizers if part.weight)
        self.sampling_temperature, self.balance = sampling_temperature, balance
        self.nested_scope = nested_scope
        self.nested_keep_probs = None if nested_keep_probs is None else check_keep_probs(nested_keep_probs, groups)
        if sampling_temperature is not None or nested_keep_probs is not None:
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.table = build_codebook(codebook, groups, num_codes, width // groups, metric, backend)
        self.statistics = UsageStatistics(groups, num_codes, usage_window)
        self._past = Past()
        if isinstance(gradient, FullCodebook) and not self.table.trained:
            raise ValueError("gradient: expected a codebook trained by gradient with FullCodebook, got another")
        if balance is not None and (sampling_temperature is not None or isinstance(codebook, SemanticClustering)):
            other = "SemanticClustering" if sampling_temperature is None else "sampling_temperature"
            raise ValueError(f"balance: expected None with {other}, got Sinkhorn")

    def forward(
        self,
        x: torch.Tensor,  # [..., dim] or [B, dim, ...]
        mask: torch.Tensor | None = None,  # [...] bool
        labels: torch.Tensor | None = None,  # [...] int64
    ) -> QuantizerOutput:
        """Quantize; in training mode also update the codebook and the usage statistics.

        Args:
            x: vectors, floating point, ``[..., dim]``, or ``[B, dim, ...]`` with ``channels_first``.
            mask: False leaves a vector out: value 0, index -1, no loss, no update, no gradient. Shaped like
                ``x`` without its vector dimension.
            labels: class of each vector, in ``[-1, C)``, -1 for none; shaped like ``mask``. For a codebook with
                :class:`SemanticClustering` only, which without labels takes all vectors as of no class.

        Returns:
            ``QuantizerOutput(quantized, indices, loss, losses)``. ``quantized`` is made of the codes from
            before this step's update: :meth:`decode` gives the same in evaluation mode, and in training mode
            for codes that only an optimizer changes. ``loss`` is the weighted sum of ``losses``, each a mean
            over the vectors that take part; 0 if there are none.
        """
        self.check_ready()
        self.check_input("x", x)
        if not self.training:
            return self._step(x, mask, labels, moves=False)
        if self.group is None and self.synchronize:
            return self._train(x, mask, labels)
        with among(self._members):
            return self._train(x, mask, labels)

    @property
    def _members(self) -> Any:
        return self.group if self.synchronize else ALONE

    def _train(self, x: torch.Tensor, mask: torch.Tensor | None, labels: torch.Tensor | None) -> QuantizerOutput:
        self.table.begin()
        draws = [] if self.sampling_temperature is None and self.nested_keep_probs is None else [self.draws]
        return self._past.take(self._step, x, mask, labels, state=[*self.table.moving(), *draws])

    def _step(
        self, x: torch.Tensor, mask: torch.Tensor | None, labels: torch.Tensor | None, moves: bool
    ) -> QuantizerOutput:
        rows, usable, shape = self._rows(x, mask)
        given = () if labels is None else (self.table.labels(labels, shape),)
        codebook = self._codes()
        if self.training and self.table.moving() and (self.regularizers or isinstance(self.gradient, FullCodebook)):
            # their backward needs the codes as they are now
            codebook = codebook.clone()
        indices = label(self._find(rows, codebook, usable), usable, mask)
        taking_part = usable[:, None].expand_as(indices)
        if self.training and self.nested_keep_probs is not None:
            options = (self.nested_keep_probs, self.nested_scope, self.groups)
            kept = kept_groups(shape, *options, next_seed(self.draws))
            indices, taking_part = indices.where(kept, -1), taking_part & kept
        codes = self._values(codebook, indices)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if self.metric == "cosine":
            rows = unit(rows)
        losses = self._losses(rows, codebook, codes, taking_part)
        weights = {"commitment": self.commitment_weight, "codebook": self.codebook_weight}
        weights |= {part.name: part.weight for part in self.regularizers}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
        quantized = self._differentiable(rows, codebook, codes, indices)
        if moves:
            count = self.table.update(rows.detach(), indices.where(taking_part, -1), *given)
            self.statistics.update(count)
            if self.sampling_temperature is not None or self.nested_keep_probs is not None:
                advance_(self.draws, count)
        out = self._output(quantized, indices, shape).to(x.dtype)
        return QuantizerOutput(out, self._shaped(indices, shape), loss, losses)

    def check_ready(self) -> None:
        """Raise if it is to train and cannot yet."""
        if self.training and not self.table.ready():
            raise ValueError("codebook: expected a call of fit_codebook before training with 'matched', got none")

    def check_input(self, name: str, x: torch.Tensor) -> None:  # [..., dim] or [B, dim, ...]
        """Raise unless these are vectors as :meth:`forward` takes them."""
        check_floating(name, x, self.parameters())
        dim = 1 if self.channels_first else -1
        if x.dim() < (2 if self.channels_first else 1) or x.shape[dim] != self.dim:
            legend = "[B, dim, ...]" if self.channels_first else "[..., dim]"
            raise ValueError(f"{name}: expected {legend} with dim={self.dim}, got shape {shape_of(x)}")
        check_same_device(**{name: x}, module=self.statistics.step)

    @torch.no_grad()
    def encode(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:  # [...] or [..., G]
        """Indices of the nearest codes, as :meth:`forward` returns them; updates nothing in any mode."""
        self.check_input("x", x)
        rows, usable, shape = self._rows(x, mask)
        indices = self.table.find(rows, self._codes())
        return self._shaped(label(indices, usable, mask), shape)

    def decode(self, indices: torch.Tensor) -> torch.Tensor:  # [...] or [..., G] -> [..., dim] or [B, dim, ...]
        """Values of indices: the inverse of the lookup, ``project_out`` included, in the layout of ``x``.

        Args:
            indices: as returned by :meth:`forward` or :meth:`encode`; -1 gives a zero vector, or, in some groups
                only, zeros there: a prefix of groups is decoded with -1 in the others.

        Returns:
            Values in the dtype of the codebook, at least float32.

        Raises:
            IndexError: if an index is outside ``[-1, K)``.
            TypeError: if ``indices`` is not integer.
            ValueError: if ``indices`` does not end in G for more than one group.
        """
        check_indices("indices", indices)
        if self.channels_first and indices.dim() < 1 + (self.groups > 1):
            raise ValueError(f"indices: expected those of a batch, got shape {shape_of(indices)}")
        if self.groups == 1:
            indices = indices[..., None]
        elif indices.dim() == 0 or indices.shape[-1] != self.groups:
            raise ValueError(f"indices: expected [..., G={self.groups}], got shape {shape_of(indices)}")
        rows = indices.reshape(-1, self.groups)
        return self._output(self._values(self._codes(), rows), rows, indices.shape[:-1])

    @property
    @torch.no_grad()
    def codebook(self) -> torch.Tensor:  # [G, K, D]
        """The codes in effect, without gradient: projected if frozen, of unit length for ``metric="cosine"``."""
        codes = self._codes().detach()
        return unit(codes) if self.metric == "cosine" else codes

    @torch.no_grad()
    def fit_codebook(
        self, batches: torch.Tensor | Iterable[torch.Tensor], *, max_iter: int = 25, seed: int = 0
    ) -> None:
        """Start the codebook over from data: k-means centres; for a ``"matched"`` frozen codebook, its scale.

        Args:
            batches: one batch or several, each as :meth:`forward` takes it; held in memory together. Vectors
                with a non-finite entry are left out. Where several processes train, each calls with its own, or with
                none, and all get the codebook of one that has them all.
            max_iter: of :func:`vqkernels.kmeans`.
            seed: of :func:`vqkernels.kmeans`.

        Raises:
            ValueError: without any vector, with fewer distinct vectors than codes, or for a frozen codebook
                that is not ``"matched"``.
        """
        check_integer("max_iter", max_iter, 0)
        check_seed("seed", seed)
        device = self.statistics.step.device
        parts = [torch.empty(0, self.groups, self.code_dim // self.groups, device=device)]
        for batch in [batches] if isinstance(batches, torch.Tensor) else each_of("batches", batches):
            self.check_input("batches", batch)
            check_data("batches", batch)
            rows, usable, _ = self._rows(batch, None)
            parts.append(rows[usable])
        with among(self._members):
            (count,) = sum_of_all(torch.tensor(sum(map(len, parts)), device=device))
            if not count:
                raise ValueError("batches: expected at least one finite vector, got none")
            self.table.fit(torch.cat(parts), max_iter=int(max_iter), seed=int(seed))

    def usage(self) -> Usage:
        """How the codes are used: utilization, perplexity, dead codes; O(K), all processes together.

        Over the last ``usage_window`` training steps that saw any vector; before the first one no code is
        used and the perplexity is 1.
        """
        return self.statistics.summary()

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, metric={self.metric!r}, gradient={self.gradient!r}, "
            f"commitment_weight={self.commitment_weight}, codebook_weight={self.codebook_weight}"
        )

    def _values(self, codebook: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:  # [N, G] -> [N, G, D]
        codes = gather_codes(codebook, indices, backend=self.backend)
        codes = codes.to(torch.promote_types(codes.dtype, torch.float32))
        # not before the gather: only codes in use are worth scaling, forward and backward
        return unit(codes) if self.metric == "cosine" else codes

    def _find(
        self, rows: torch.Tensor, codebook: torch.Tensor, usable: torch.Tensor
    ) -> torch.Tensor:  # [N, G, D], [G, K, D], [N] -> [N, G]
        if self.training and self.sampling_temperature is not None:
            seed = next_seed(self.draws)
            return sample_codes(rows.float(), codebook.float(), self.metric, self.sampling_temperature, seed)[..., 0]
        if self.training and self.balance is not None:
            return balanced_codes_of(rows, codebook, usable, self.metric, self.balance)
        return self.table.find(rows, codebook)

    def _differentiable(
        self, rows: torch.Tensor, codebook: torch.Tensor, codes: torch.Tensor, indices: torch.Tensor
    ) -> torch.Tensor:  # [N, G, D]
        """The codes with the gradient that is to reach vectors and codebook; none where the index is -1."""
        if isinstance(self.gradient, FullCodebook):
            temperature = self.gradient.temperature
            quantized = soft_values(rows, codebook.to(rows.dtype), self.metric, temperature, instead=codes)
        else:
            quantized = estimate_gradient(rows, codes.detach(), self.gradient)
        return quantized.where((indices >= 0)[..., None], 0)

    def _losses(
        self,
        rows: torch.Tensor,  # [N, G, D]
        codebook: torch.Tensor,  # [G, K, D]
        codes: torch.Tensor,  # [N, G, D]
        taking_part: torch.Tensor,  # [N, G]
    ) -> dict[str, torch.Tensor]:
        losses = {"commitment": masked_mean_square(rows, codes.detach(), taking_part)}
        if self.table.trained:
            losses["codebook"] = masked_mean_square(rows.detach(), codes, taking_part)
        if self.regularizers:
            compared = unit(codebook) if self.metric == "cosine" else codebook
            for part in self.regularizers:
                loss = part.loss(rows, compared, weight=taking_part, backend=self.backend)
                check_returned("regularizers", loss, losses["commitment"], f"[] of {shown(part.name)}")
                losses[part.name] = loss
        return losses
