"""Rows to centroids, to none more than so many, so that the summed distance is least: a transport problem.

Every centroid has as many places as rows it may hold, and a price. A row takes the centroid where distance + price is
lowest. If no centroid then holds more than it may, and those with places left have the lowest price of all, no
assignment under that bound is better: the sum of distance + price is least for every row, and what all pay in prices
together does not depend on who sits where. Places that stay empty are as good as taken by rows that are at no
distance from any centroid.

So prices are raised where too many rows come. The row that costs least to move from one centroid to another is a
step between the two, and the shortest path from a centroid that holds too much to one with room says which rows move
up. Prices raised by what each centroid is nearer than the end of the path leave every row where it is best off
(successive shortest paths with potentials: Edmonds and Karp 1972). Prices to begin with are those of an eighth of the
rows for an eighth of the places, found in the same way: a path is long only where prices are far from right.

Distance + price is a squared distance once more, with the square root of the price as one coordinate more of a
centroid and 0 of a row. So what a row may take is found by a lookup: the :data:`_LISTED` best. Where prices have
risen beyond what that vouches for, the best is looked up again, and if it is not listed, the list; and where no list
leads to room, the lists get longer by the best of the centroids that are out of reach.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from vqkernels._core.backend import requested_backend
from vqkernels._core.extension import cpu_unsupported_reasons, extension
from vqkernels.kmeans.data import Data
from vqkernels.ops.top_codes import top_codes

PLACED, STOPPED, CUT_OFF = range(3)  # how a run of the paths ends
_LISTED = 16
_ENTRIES, _MOST = 1 << 19, 1024  # of all lists, where rows are few, and of one
_PIECE = 1 << 20  # numbers of rows looked up at a time
_SAMPLED = 8
_ROUNDS = 256  # of the kernel before signals are served
_ROUNDING = 1e-6  # of a distance and a price in float32, added up
_LONGEST = 40  # binary places of the largest number, in which squares and prices are far from float32's ends


class Assignment(NamedTuple):
    """Where rows are."""

    labels: torch.Tensor  # [n] int64, of this process's rows
    prices: torch.Tensor  # [K] float64


class Transport:
    """Rows of all processes, each of which holds its own, and how many of them a centroid may take."""

    def __init__(self, data: Data, capacity: int) -> None:
        parts = [chunk.rows for chunk in data.chunks()]
        empty = torch.empty(0, data.dim, dtype=data.dtype, device=data.device)
        self.rows = parts[0] if len(parts) == 1 else torch.cat([empty, *parts])
        self.first, self.total, self.capacity = data.first, data.total, capacity
        self.processes, self.backend = data.processes, data.backend

    def sample(self) -> Transport:
        """Some of the rows, evenly spread, for an eighth of the places: as scarce as all are."""
        some = copy.copy(self)
        some.capacity = self.capacity // _SAMPLED

        def taken(rows: int) -> int:
            return (rows - 1) * some.capacity // self.capacity + 1

        position = torch.arange(self.first, self.first + len(self.rows), device=self.rows.device)
        some.rows = self.rows[position * some.capacity % self.capacity < some.capacity]
        some.first, some.total = taken(self.first), taken(self.total)
        return some

    def assign(self, centroids: torch.Tensor, near: torch.Tensor | None = None) -> Assignment:  # [K, D], [K]
        """Give every row a place.

        Args:
            near: prices that save work, those of nearly the same centroids.
        """
        nothing = torch.zeros(len(centroids), dtype=torch.float64)
        if len(centroids) == 1:
            return Assignment(torch.zeros(len(self.rows), dtype=torch.int64, device=centroids.device), nothing)
        if near is None and self.capacity >= _SAMPLED:
            near = self.sample().assign(centroids).prices
        lists = _Lists(self, centroids)
        prices = nothing if near is None else near * lists.scale**2
        lists.look_up(torch.arange(self.total), prices)
        spare = self._spare(lists.nearest(prices), prices)
        reached = torch.zeros(len(prices), dtype=torch.uint8)
        flow = self._flow(lists, spare, prices, reached)
        while True:
            while (end := flow(_ROUNDS)) == STOPPED:
                pass
            if end == CUT_OFF:
                lists.look_beyond(reached.bool(), prices)
                flow = self._flow(lists, spare, prices, reached)
            elif len(stale := lists.stale(prices)):
                lists.look_again(stale, prices)
            else:
                break
        # what all prices have in common makes no difference
        prices = torch.where(spare > 0, 0.0, prices - prices.min()) / lists.scale**2
        own = slice(self.first, self.first + len(self.rows))
        return Assignment(lists.labels()[own].to(centroids.device), prices)

    def _spare(self, labels: torch.Tensor, prices: torch.Tensor) -> torch.Tensor:  # [N], [K] -> [K]
        """Places that nobody will take, at first: with the lowest prices, and there where rows leave room."""
        number = self.capacity * len(prices) - self.total
        lowest = prices == prices.min()
        room = (self.capacity - labels.bincount(minlength=len(prices))).clamp(min=0) * lowest
        spare = room.minimum((number - room.cumsum(0) + room).clamp(min=0))
        spare[lowest.nonzero()[0]] += number - spare.sum()
        return spare

    def _flow(self, lists: _Lists, *places: torch.Tensor) -> Callable[[int], int]:
        """What moves rows, for so many rounds, until none wants more than its list."""
        state = (lists.codes, lists.cost, lists.place, *places)
        if requested_backend(self.backend) == "reference" or cpu_unsupported_reasons(*state):
            from vqkernels.kmeans.shortest_paths import Flow

            return Flow(self.capacity, *state).run
        codes, cost, *moved = (tensor.data_ptr() for tensor in state)
        sizes = (*lists.codes.shape, len(places[0]), self.capacity)
        return partial(extension().transport_run, extension().Transport(codes, cost, *sizes, *moved))


class _Lists:
    """What every row may take: the best centroids at the prices of a lookup, and what others cost; on the CPU.

    Every process has those of all rows, and does the same with them.
    """

    def __init__(self, transport: Transport, centroids: torch.Tensor) -> None:  # [K, D]
        self.rows, self.centroids = transport.rows, centroids
        self.first, self.processes, self.backend = transport.first, transport.processes, transport.backend
        count = transport.total
        listed = min(len(centroids), _MOST, max(_LISTED, _ENTRIES // count))
        self.scale = self._scale()
        self.codes = torch.empty(count, listed, dtype=torch.int32)
        self.cost = torch.empty(count, listed, dtype=torch.float64)  # distances
        # distance + price of those that are not listed, at least
        self.others = torch.empty(count, dtype=torch.float64)
        self.place = torch.empty(count, dtype=torch.int32)  # where in its list a row is

    def nearest(self, prices: torch.Tensor) -> torch.Tensor:  # [K] -> [N]
        """The best of every list."""
        return self._at(self.codes, (self.cost + prices[self.codes]).argmin(dim=1)).long()

    def labels(self) -> torch.Tensor:  # [N]
        return self._at(self.codes, self.place.long()).long()

    def stale(self, prices: torch.Tensor) -> torch.Tensor:  # [K] -> [n]
        """Rows that are better off with a centroid that they do not list."""
        pays = self._at(self.cost, self.place.long()) + prices[self.labels()]
        which = (pays - self.others > _ROUNDING * pays).nonzero()[:, 0]
        codes, cost = self._found(which, torch.arange(len(prices)), prices, 1)
        pays = pays[which]
        better = pays - (cost + prices[codes])[:, 0] > _ROUNDING * pays
        self.others[which[~better]] = pays[~better]
        return which[better]

    def look_up(self, which: torch.Tensor, prices: torch.Tensor) -> None:  # [n] ascending, [K]
        """List anew for some rows of all processes."""
        listed = self.codes.shape[1]
        codes, cost = self._found(which, torch.arange(len(prices)), prices, listed)
        # as it is added up again, so that the best of the list is never above
        self.others[which] = (cost + prices[codes]).amax(dim=1) if len(prices) > listed else math.inf
        self.codes[which], self.cost[which], self.place[which] = codes, cost, -1

    def look_again(self, which: torch.Tensor, prices: torch.Tensor) -> None:  # [n] ascending, [K]
        """The same for rows that are somewhere, and stay there for now: in the place of the worst, if it must be."""
        there = self.place[which].long()
        code, paid = self._at(self.codes[which], there), self._at(self.cost[which], there)
        self.look_up(which, prices)
        same = self.codes[which] == code[:, None]
        place = torch.where(same.any(dim=1), same.int().argmax(dim=1), same.shape[1] - 1)
        self.codes[which, place], self.cost[which, place] = code, paid
        self.place[which] = ~place.int()

    def look_beyond(self, reached: torch.Tensor, prices: torch.Tensor) -> None:  # [K] bool, [K]
        """Lengthen the lists of all rows whose centroid is reached by the best of those that are not."""
        which, beyond = reached[self.labels()].nonzero()[:, 0], (~reached).nonzero()[:, 0]
        more = min(-(-self.codes.shape[1] // 4), len(beyond))
        codes, cost = self._found(which, beyond, prices, more)
        # nothing for the others
        longer = self.codes.new_zeros(len(self.codes), more), self.cost.new_full((len(self.cost), more), math.inf)
        longer[0][which], longer[1][which] = codes, cost
        self.codes, self.cost = torch.cat([self.codes, longer[0]], dim=1), torch.cat([self.cost, longer[1]], dim=1)

    def _found(
        self, which: torch.Tensor, among: torch.Tensor, prices: torch.Tensor, listed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [n], [C], [K] -> [n, L] int32, [n, L] float64
        """The best of some centroids for some rows of all processes, and their distances."""
        last = self.first + len(self.rows)
        device = self.rows.device
        own = which[(which >= self.first) & (which < last)].to(device) - self.first
        priced = torch.cat([self.centroids.float() * self.scale, prices.sqrt().float()[:, None].to(device)], dim=1)
        priced = priced[among.to(device)]
        parts = [self._nearest(some, priced, listed) for some in own.split(max(1, _PIECE // priced.shape[1]))]
        found, distance = (self.processes.concatenate(torch.cat(part)).cpu() for part in zip(*parts, strict=True))
        codes = among[found.long()].int()
        return codes, distance.double() - prices[codes]

    def _nearest(
        self, which: torch.Tensor, priced: torch.Tensor, listed: int
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [n], [C, D + 1] -> [n, L] int32, [n, L] float32
        rows = self.rows[which] if self.scale == 1 else self.rows[which].float() * self.scale
        found = top_codes(torch.nn.functional.pad(rows, (0, 1)), priced, listed, backend=self.backend)
        return found.indices.int(), found.distance.float()

    def _scale(self) -> float:
        """A power of two that keeps the squares of the largest numbers far from the ends of float32."""
        largest = self.centroids.abs().amax().double()
        if len(self.rows):
            largest = largest.maximum(self.rows.abs().amax().double())
        bits = largest.view(torch.int64)  # ordered as the numbers are
        self.processes.largest_(bits)
        exponent = math.frexp(float(bits.view(torch.float64)))[1]
        return 2.0 ** (min(max(exponent, -_LONGEST), _LONGEST) - exponent)

    def _at(self, values: torch.Tensor, place: torch.Tensor) -> torch.Tensor:  # [N, L], [N] -> [N]
        return values.gather(1, place[:, None])[:, 0]
