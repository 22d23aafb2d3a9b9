"""Vectors of a batch spread evenly over the codes: entropic optimal transport by Sinkhorn's iterations."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vqkernels.nn.config import Sinkhorn
from vqkernels.nn.scores import chunks, scores

_KEPT = 1 << 24  # pairs whose logits are kept from one pass to the next, 128 MB; beyond, they are computed again


@torch.no_grad()
def balanced_codes_of(
    x: torch.Tensor,  # [N, G, D]
    codes: torch.Tensor,  # [G, K, D]
    part: torch.Tensor,  # [N] bool
    metric: str,
    config: Sinkhorn,
) -> torch.Tensor:  # [N, G] int64
    """Codes of the vectors that take part, and 0 for the others; see :class:`vqkernels.Sinkhorn`."""
    found = torch.zeros(x.shape[:2], dtype=torch.int64, device=x.device)
    for g, book in enumerate(codes.double()):
        plan = _Plan(x[:, g].double(), book, part, metric, config.epsilon)
        scale = plan.scale_of_codes(config.iterations)
        for chunk, logits in plan.pieces():
            found[chunk, g] = torch.where(part[chunk], (logits + scale).argmax(dim=1), 0)
    return found


class _Plan:
    """Logits ``-cost / epsilon`` of all pairs, a few vectors at a time, with costs shifted and scaled to [-1, 1]."""

    def __init__(
        self, x: torch.Tensor, book: torch.Tensor, part: torch.Tensor, metric: str, epsilon: float
    ) -> None:  # [N, D], [K, D], [N]
        # a code that is not finite is never taken
        self._whole = book.isfinite().all(dim=1)
        self._x, self._book, self._part, self._metric = x, book.where(self._whole[:, None], 0), part, metric
        self._shift, self._slope = x.new_zeros(()), x.new_ones(())
        least, most = x.new_full((), torch.inf), x.new_full((), -torch.inf)
        for chunk, similarity in self._made():
            kept = part[chunk, None] & similarity.isfinite()
            least = torch.minimum(least, similarity.where(kept, torch.inf).amin())
            most = torch.maximum(most, similarity.where(kept, -torch.inf).amax())
        half = (most - least) / 2
        self._shift = (most + least) / 2
        # costs that are all alike tell nothing
        self._slope = 1 / (epsilon * torch.where(half > 0, half, 1))
        self._kept = list(self._made()) if len(x) * len(book) <= _KEPT else None

    def pieces(self) -> Iterator[tuple[slice, torch.Tensor]]:
        return self._made() if self._kept is None else iter(self._kept)

    def _made(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for chunk in chunks(len(self._x), len(self._book)):
            logits = (scores(self._x[chunk], self._book, self._metric) - self._shift) * self._slope
            yield chunk, logits.where(self._whole & logits.isfinite(), -torch.inf)

    def scale_of_codes(self, iterations: int) -> torch.Tensor:  # [K]
        """Logarithms of what the columns of the plan are multiplied with."""
        k = len(self._book)
        scale = self._x.new_zeros(k)
        for _ in range(iterations):
            sums = self._x.new_full((k,), -torch.inf)
            for chunk, logits in self.pieces():
                # rows that add up to 1, and then the sums of the columns
                total = (logits + scale).logsumexp(dim=1, keepdim=True)
                kept = self._part[chunk, None] & total.isfinite()
                sums = torch.logaddexp(sums, (logits - total).where(kept, -torch.inf).logsumexp(dim=0))
            # nothing is spread over a code that no vector may take
            scale = torch.where(sums.isfinite(), -sums, 0)
        return scale
