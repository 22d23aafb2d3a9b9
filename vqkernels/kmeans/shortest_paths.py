"""The plain form of csrc/cpu/transport.cpp, to the bit: for tests, and where no compiled module is."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from vqkernels.kmeans.transport import CUT_OFF, PLACED, STOPPED

_EQUAL = 1e-13  # of the largest cost


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
        self.label: NDArray[np.int32] = np.full(len(self.codes), -1, dtype=np.int32)
        self.changed: list[int] = []  # rows that may be better off by their new lists
        # what costs are equal by
        self.nothing = _EQUAL * max(0.0, float(self.cost.max(initial=0.0, where=self.cost < np.inf)))

    def run(self, rounds: int) -> int:
        """Move rows up until no code holds more than it may, or no list leads to where there is room."""
        if (self.label < 0).all():
            nowhere = np.flatnonzero(self.place < 0)
            self.place[nowhere] = self._totals(nowhere).argmin(axis=1)
        else:
            changed = np.flatnonzero(self.place < 0)
            self.place[changed] = ~self.place[changed]
            self.changed += changed.tolist()
        self.label = self.codes[np.arange(len(self.codes)), self.place]
        # beyond its own places
        self.over = np.bincount(self.label, minlength=len(self.prices)) + self.spare - self.capacity
        for source in range(len(self.prices)):
            rounds, end = self._drain(source, rounds)
            if end != PLACED:
                return end
        # one after the other: where many want the same, its price is another once the first are there
        while self.changed:
            row = self.changed.pop()
            total = self._totals(np.array([row]))[0]
            if not total.min() < total[self.place[row]] - self.nothing:
                continue
            self.over[self.label[row]] -= 1
            self.place[row] = total.argmin()
            self.label[row] = self.codes[row, self.place[row]]
            self.over[self.label[row]] += 1
            rounds, end = self._drain(self.label[row], rounds)
            if end != PLACED:
                return end
        return PLACED

    def _drain(self, source: int, rounds: int) -> tuple[int, int]:
        """Move rows up until a code holds no more than it may; how many rounds are left, and how it ended."""
        while self.over[source] > 0:
            if rounds == 0:
                return rounds, STOPPED
            rounds -= 1
            code = self._search(source)
            if code is None:
                self.reached[:] = self.distance < np.inf
                return rounds, CUT_OFF
            self._raise(self.distance[code])
            while self._push(code):
                pass
        return rounds, PLACED

    def _totals(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        totals: NDArray[np.float64] = self.cost[rows] + self.prices[self.codes[rows]]
        return totals

    def _search(self, source: int) -> int | None:
        """The shortest path (Dijkstra) from a code that holds too much to one with room, if there is any."""
        size = len(self.prices)
        self.distance = np.full(size, np.inf)
        self.distance[source] = 0
        # how a path comes to a code: in how many steps, from which (-1: it starts here), by which row (-1: a spare
        # place), at what cost beyond the prices
        self.number, self.origin, self.row = np.zeros(size, dtype=np.int64), np.full(size, -1), np.full(size, -1)
        self.key = np.zeros(size)
        settled = np.zeros(size, dtype=bool)
        self.order: list[int] = []
        any_spare = False
        while True:
            waiting = np.where(settled, np.inf, self.distance)
            code = int(np.where(waiting == waiting.min(), self.number, size).argmin())
            if waiting[code] == np.inf:
                return None
            settled[code] = True
            self.order.append(code)
            if self.over[code] < 0:
                return code
            if self.spare[code] > 0 and not any_spare:
                any_spare = True
                more = (self.prices - self.prices[code] - self.nothing).clip(min=0)
                self._relax(settled, code, self.distance[code] + more, np.full(size, -1), np.zeros(size))
            row, key = self._edges(code)
            more = (key + (self.prices - self.prices[code]) - self.nothing).clip(min=0)
            self._relax(settled, code, self.distance[code] + more, row, key)

    def _edges(self, code: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:  # [K], [K]
        """By which row of a code the others are reached, of equal ones the first, and its cost beyond the prices."""
        rows = np.flatnonzero(self.label == code)
        key = self.cost[rows] - self.cost[rows, self.place[rows]][:, None]
        other = self.codes[rows] != code
        to, key, row = self.codes[rows][other], key[other], np.broadcast_to(rows[:, None], other.shape)[other]
        order = np.lexsort((row, key, to))
        to, first = np.unique(to[order], return_index=True)
        best, cheapest = np.full(len(self.prices), -1), np.full(len(self.prices), np.inf)
        best[to], cheapest[to] = row[order][first], key[order][first]
        return best, cheapest

    def _relax(
        self,
        settled: NDArray[np.bool_],
        code: int,
        distance: NDArray[np.float64],
        row: NDArray[np.int64],
        key: NDArray[np.float64],
    ) -> None:
        number = self.number[code] + 1
        before = (number < self.number) | ((number == self.number) & (row < self.row))
        same = (distance == self.distance) & (distance < np.inf) & before
        better = ((distance < self.distance) | same) & ~settled
        self.distance[better], self.number[better], self.origin[better] = distance[better], number, code
        self.row[better], self.key[better] = row[better], key[better]

    def _raise(self, reach: float) -> None:
        """Prices at which no row is better off elsewhere still, and the paths within reach cost nothing."""
        self.prices[self.order] += (reach - self.distance[self.order]).clip(min=0)

    def _push(self, code: int) -> bool:
        """Move rows, or as many spare places as may, along the path to a code with room, and say whether it could.

        Rows that cost no more than those by which the path was found may follow them.
        """
        moves, amount, to = [], -int(self.over[code]), code
        while (origin := int(self.origin[to])) >= 0:
            row = -1
            if self.row[to] >= 0:
                rows, key = self._edges(origin)
                row = int(rows[to])
                if not key[to] <= self.key[to] + self.nothing:
                    return False
            amount = min(amount, int(self.spare[origin]) if row < 0 else 1)
            moves.append((origin, to, row))
            to = origin
        amount = min(amount, int(self.over[to]))
        if amount <= 0:
            return False
        self.over[to] -= amount
        self.over[code] += amount
        for origin, to, row in moves:
            if row < 0:
                self.spare[origin] -= amount
                self.spare[to] += amount
            else:
                self.label[row] = to
                self.place[row] = np.where(self.codes[row] == to, self.cost[row], np.inf).argmin()
        return True
