"""The plain form of csrc/cpu/transport.cpp, to the bit: for tests, and where no compiled module is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

PLACED, STOPPED, CUT_OFF = range(3)


class Flow:
    """Rows on their way; arguments as ``TransportProblem`` has them, changed in place."""

    def __init__(
        self,
        capacity: int,
        codes: torch.Tensor,  # [N, L] int32
        cost: torch.Tensor,  # [N, L] float64
        place: torch.Tensor,  # [N] int32
        spare: torch.Tensor,  # [K] int64
        prices: torch.Tensor,  # [K] float64
        reached: torch.Tensor,  # [K] uint8
    ) -> None:
        self.codes, self.cost, self.reached = codes.numpy(), cost.numpy(), reached.numpy()
        self.place, self.spare, self.prices = place.numpy(), spare.numpy(), prices.numpy()
        self.capacity = capacity

    def run(self, rounds: int) -> int:
        """Move rows up until no code holds more than it may, or no list leads to where there is room."""
        nowhere = np.flatnonzero(self.place < 0)
        self.place[nowhere] = (self.cost[nowhere] + self.prices[self.codes[nowhere]]).argmin(axis=1)
        self.label = self.codes[np.arange(len(self.codes)), self.place]
        # beyond its own places
        self.over = np.bincount(self.label, minlength=len(self.prices)) + self.spare - self.capacity
        for source in range(len(self.prices)):
            while self.over[source] > 0:
                if rounds == 0:
                    return STOPPED
                rounds -= 1
                code = self._search(source)
                if code is None:
                    self.reached[:] = self.distance < np.inf
                    return CUT_OFF
                self._raise(self.distance[code])
                self._push(code)
        return PLACED

    def _search(self, source: int) -> int | None:
        """The shortest path (Dijkstra) from a code that holds too much to one with room, if there is any."""
        size = len(self.prices)
        self.distance = np.full(size, np.inf)
        self.distance[source] = 0
        # how a path comes to a code: from which (-1: it starts here), by which row (-1: a spare place)
        self.origin, self.row = np.full(size, -1), np.full(size, -1)
        settled = np.zeros(size, dtype=bool)
        self.order: list[int] = []
        any_spare = False
        while True:
            waiting = np.where(settled, np.inf, self.distance)
            code = int(waiting.argmin())
            if waiting[code] == np.inf:
                return None
            settled[code] = True
            self.order.append(code)
            if self.over[code] < 0:
                return code
            if self.spare[code] > 0 and not any_spare:
                any_spare = True
                more = (self.prices - self.prices[code]).clip(min=0)
                self._relax(settled, code, self.distance[code] + more, np.full(size, -1))
            to, key, row = self._edges(code)
            distance = np.full(size, np.inf)
            distance[to] = self.distance[code] + (key + (self.prices[to] - self.prices[code])).clip(min=0)
            first = np.full(size, -1)
            first[to] = row
            self._relax(settled, code, distance, first)

    def _edges(self, code: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        """Where rows of a code may move, at what cost beyond the prices, by which row: of equal ones the first."""
        rows = np.flatnonzero(self.label == code)
        key = self.cost[rows] - self.cost[rows, self.place[rows]][:, None]
        other = self.codes[rows] != code
        to, key, row = self.codes[rows][other], key[other], np.broadcast_to(rows[:, None], other.shape)[other]
        order = np.lexsort((row, key, to))
        to, first = np.unique(to[order], return_index=True)
        return to, key[order][first], row[order][first]

    def _relax(
        self, settled: NDArray[np.bool_], code: int, distance: NDArray[np.float64], row: NDArray[np.int64]
    ) -> None:
        shorter = distance < self.distance
        same = (distance == self.distance) & (distance < np.inf) & (row < self.row)
        better = (shorter | same) & ~settled
        self.distance[better], self.origin[better], self.row[better] = distance[better], code, row[better]

    def _raise(self, reach: float) -> None:
        """Prices at which no row is better off elsewhere still, and the paths within reach cost nothing."""
        self.prices[self.order] += (reach - self.distance[self.order]).clip(min=0)

    def _push(self, code: int) -> None:
        """Move rows, or as many spare places as may, along the path to a code with room."""
        path, amount = [code], -int(self.over[code])
        while (origin := int(self.origin[path[-1]])) >= 0:
            amount = min(amount, int(self.spare[origin]) if self.row[path[-1]] < 0 else 1)
            path.append(origin)
        amount = min(amount, int(self.over[path[-1]]))
        self.over[path[-1]] -= amount
        self.over[code] += amount
        for to, origin in pairwise(path):
            row = int(self.row[to])
            if row < 0:
                self.spare[origin] -= amount
                self.spare[to] += amount
            else:
                self.label[row] = to
                self.place[row] = np.where(self.codes[row] == to, self.cost[row], np.inf).argmin()
