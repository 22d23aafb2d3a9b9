"""Rows to centroids, to none more than so many: an auction.

Every centroid has as many places as rows it may hold, and a price, at first nothing. A row wants the centroid where
distance + price is lowest, and offers the most it could pay before another were as good, and a step on top. Of all
offers a centroid takes the highest, as many as it has places; once it is full, its price is the lowest it took. Rows
that got none, or are outbid, offer again. When all have a place, each is within a step of its best choice at the
prices asked, so that the sum of distances is at most the least possible one and a step per row (Bertsekas 1988), and
what the prices of places left over come to, which is kept below that.

Prices that rise by steps take long where many rows want the same few centroids. So a first auction has large steps,
and is over when nearly all have places; the next, with smaller ones, begins near the prices found. Prices found by
some of the rows for as many of the places do as well, to begin with. The last few rows, which would raise prices far
and wide to push each other to the last places, take those as they are, if what all of them lose by that is little.

Distance + price is a squared distance once more, with the square root of the price as one coordinate more of a
centroid and 0 of a row. So what a row may want is found by a lookup: the :data:`_LISTED` best, and again when
prices have risen beyond what the last lookup vouches for.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch

from vqkernels._core.backend import requested_backend
from vqkernels._core.extension import cpu_unsupported_reasons, extension
from vqkernels.kmeans.data import Data
from vqkernels.kmeans.sums import exact_bins, exact_sum, rounded_sum
from vqkernels.ops.top_codes import top_codes

_LISTED = 32
_PIECE = 1 << 20  # numbers of rows looked up at a time
_STEP = 1 / 100  # the last step, of the mean distance without bounds
_FINER = 5.0
_FEW = 0.005  # of the rows
_SAMPLED = 8
_TRIES = 3


class Assignment(NamedTuple):
    """Where rows are."""

    labels: torch.Tensor  # [n] int64, of this process's rows
    prices: torch.Tensor  # [K] float64


class Auction:
    """Rows of all processes, each of which holds its own, and how many of them a centroid may take."""

    def __init__(self, data: Data, capacity: int) -> None:
        parts = [chunk.rows for chunk in data.chunks()]
        empty = torch.empty(0, data.dim, dtype=data.dtype, device=data.device)
        self.rows = parts[0] if len(parts) == 1 else torch.cat([empty, *parts])
        self.first, self.total, self.capacity = data.first, data.total, capacity
        self.processes, self.backend = data.processes, data.backend

    def sample(self) -> Auction:
        """Some of the rows, evenly spread, for an eighth of the places: as scarce as all are."""
        some = copy.copy(self)
        some.capacity = self.capacity // _SAMPLED

        def taken(rows: int) -> int:
            return -(-rows * some.capacity // self.capacity)

        position = torch.arange(self.first, self.first + len(self.rows), device=self.rows.device)
        some.rows = self.rows[position * some.capacity % self.capacity < some.capacity]
        some.first, some.total = taken(self.first), taken(self.total)
        return some

    def assign(
        self,
        centroids: torch.Tensor,  # [K, D]
        near: torch.Tensor | None = None,  # [K]
        coarse: float = 1.0,
    ) -> Assignment:
        """Give every row a place.

        Args:
            near: prices that save work, those of nearly the same centroids.
            coarse: how many times longer than it might be the last step is.
        """
        num_codes = len(centroids)
        nothing = torch.zeros(num_codes, dtype=torch.float64, device=centroids.device)
        if num_codes == 1:
            return Assignment(torch.zeros(len(self.rows), dtype=torch.int64, device=centroids.device), nothing)
        if near is None and self.capacity >= _SAMPLED**2:
            near = self.sample().assign(centroids).prices
        wanted = _Wanted(self, centroids, nothing if near is None else near)
        last, step = self._steps(wanted)
        last *= coarse
        # prices start a little too low where places may stay empty, so that those stay empty that cost nothing
        spare = self.capacity * num_codes > self.total
        prices = nothing
        if near is not None:
            step = min(step, _FINER * last / coarse)
            prices = (near - spare * step).clamp(min=0)
            wanted.fallen(near, prices)
        while True:
            step = max(step, last)
            sold = self._sell(wanted, prices, step, last)
            if step == last:
                return sold
            prices = (sold.prices - spare * step).clamp(min=0)
            wanted.fallen(sold.prices, prices)
            step /= _FINER

    def _steps(self, wanted: _Wanted) -> tuple[float, float]:
        """The last step and the first."""
        nearest, among = wanted.cost[:, 0], wanted.cost[:, -1]
        bins = exact_bins(nearest)
        farthest = among.float().clamp(min=0).amax().view(torch.int32).long() if len(among) else bins.new_zeros(())
        self.processes.add_(bins)
        self.processes.largest_(farthest)
        largest = float(farthest.int().view(torch.float32))
        # prices stay far from where adding a step is lost in rounding
        last = max(_STEP * rounded_sum(bins) / self.total, 1e-7 * largest, torch.finfo(torch.float32).tiny)
        return last, largest / _FINER

    def _sell(self, wanted: _Wanted, prices: torch.Tensor, step: float, last: float) -> Assignment:
        """An auction from prices ``[K]`` on; one that is not the last leaves the last few rows without a place."""
        own, allowed = slice(self.first, self.first + len(self.rows)), last * self.total
        for attempt in range(_TRIES + 1):
            sale, few = _Sale(self, prices.clone()), int(_FEW * self.total)
            while True:
                wanted.advance(sale, step, few)
                bids = wanted.bids(sale, step)
                if len(bids) > few:
                    sale.take(bids)
                    continue
                lost = sale.fill(wanted) if step == last and few else 0.0
                # what all prices have in common makes no difference
                asked = sale.prices - sale.prices.min()
                # what places that nobody took cost: rows might have been better off there
                left = self.capacity - sale.label[sale.label >= 0].bincount(minlength=len(prices))
                if step > last:
                    left = (left - len(bids)).clamp(min=0)
                enough = lost + exact_sum(left * asked) <= allowed
                if enough or step > last or not few:
                    break
                # those that got what was left go on asking for better
                sale.label[bids[:, 0].long()] = -1
                few //= 4
            wanted.fallen(sale.prices, asked)
            if enough:
                break
            prices = torch.where((left > 0) | (attempt == _TRIES - 1), 0, prices)
            wanted.fallen(asked, prices)
        return Assignment(sale.label[own], asked)


class _Wanted:
    """What every row of this process may want: the best centroids at the prices of a lookup, and what others cost."""

    def __init__(self, auction: Auction, centroids: torch.Tensor, prices: torch.Tensor) -> None:  # [K, D], [K]
        self.rows, self.first, self.centroids = auction.rows, auction.first, centroids
        self.processes, self.backend = auction.processes, auction.backend
        count, listed, device = len(self.rows), min(_LISTED, len(centroids)), self.rows.device
        self.codes = torch.empty(count, listed, dtype=torch.int32, device=device)
        self.cost = torch.empty(count, listed, dtype=torch.float64, device=device)  # distances
        # distance + price of those that are not listed, at least
        self.others = torch.empty(count, dtype=torch.float64, device=device)
        self._look_up(torch.arange(count, device=device), prices)

    def fallen(self, before: torch.Tensor, after: torch.Tensor) -> None:  # [K], [K]
        """Prices are no longer what they were."""
        self.others -= (before - after).amax().clamp(min=0)

    def advance(self, sale: _Sale, step: float, few: int) -> None:
        """The same rounds by a compiled kernel, if all rows are here and it can run them."""
        state = (self.codes, self.cost, self.others, sale.label, sale.paid, sale.prices)
        named = requested_backend(self.backend)
        if self.processes.size > 1 or named not in (None, "cpu") or cpu_unsupported_reasons(*state):
            return
        codes, cost, others, label, paid, prices = (tensor.data_ptr() for tensor in state)
        sizes = (*self.codes.shape, len(sale.prices), sale.capacity, step, few)
        while True:
            extension().auction_rounds(codes, cost, others, *sizes, label, paid, prices)
            free = self._free(sale)
            if len(free) <= few:
                return
            self._two_best(free, sale.prices)

    def bids(self, sale: _Sale, step: float) -> torch.Tensor:  # [n, 3] float64: row, centroid, offer
        """Offers of the rows of all processes that have no place."""
        free = self._free(sale)
        best, lowest, second = self._two_best(free, sale.prices)
        offer = sale.prices[best] + (second - lowest) + step
        return self.processes.concatenate(torch.stack([(free + self.first).double(), best.double(), offer], dim=1))

    def places(self, sale: _Sale, vacant: torch.Tensor) -> torch.Tensor:  # [v] -> [n, 2 + 2 M] float64
        """Rows without a place, what their best choice costs, the nearest places left and what those cost."""
        free = self._free(sale)
        _, lowest, _ = self._two_best(free, sale.prices)
        priced = self._priced(sale.prices)[vacant]
        found = top_codes(self._rows(free), priced, min(_LISTED, len(vacant)), backend=self.backend)
        columns = torch.stack([(free + self.first).double(), lowest], dim=1)
        return self.processes.concatenate(torch.cat([columns, vacant[found.indices].double(), found.distance], dim=1))

    def _free(self, sale: _Sale) -> torch.Tensor:  # [n]
        return (sale.label[self.first : self.first + len(self.rows)] < 0).nonzero()[:, 0]

    def _two_best(
        self, which: torch.Tensor, prices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [n], [K] -> [n] each
        """The best centroid, distance + price there, and what the second best costs at least."""
        best, lowest, second = self._two_best_listed(which, prices)
        stale = (lowest > self.others[which]).nonzero()[:, 0]
        if len(stale):
            self._look_up(which[stale], prices)
            best[stale], lowest[stale], second[stale] = self._two_best_listed(which[stale], prices)
        # who offers less than he might makes no mistake
        return best, lowest, second.minimum(self.others[which])

    def _two_best_listed(
        self, which: torch.Tensor, prices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [n], [K] -> [n] each
        codes = self.codes[which]
        total = self.cost[which] + prices[codes]
        place = total.argmin(dim=1, keepdim=True)  # the first of equal ones
        lowest = total.gather(1, place)[:, 0]
        return codes.gather(1, place)[:, 0], lowest, total.scatter(1, place, math.inf).amin(dim=1)

    def _look_up(self, which: torch.Tensor, prices: torch.Tensor) -> None:  # [n], [K]
        priced = self._priced(prices)
        for some in which.split(max(1, _PIECE // priced.shape[1])):
            found = top_codes(self._rows(some), priced, self.codes.shape[1], backend=self.backend)
            price = prices[found.indices]
            cost = found.distance.double() - price
            self.codes[some], self.cost[some] = found.indices.int(), cost
            # as it is added up again, so that the best of the list is never above
            self.others[some] = (cost + price).amax(dim=1) if len(prices) > cost.shape[1] else math.inf

    def _priced(self, prices: torch.Tensor) -> torch.Tensor:  # [K] -> [K, D + 1]
        return torch.cat([self.centroids, prices.sqrt().float()[:, None]], dim=1)

    def _rows(self, which: torch.Tensor) -> torch.Tensor:  # [n] -> [n, D + 1]
        return torch.nn.functional.pad(self.rows[which], (0, 1))


class _Sale:
    """Who has places so far, of all processes' rows, and what was paid."""

    def __init__(self, auction: Auction, prices: torch.Tensor) -> None:  # [K]
        self.capacity, self.prices = auction.capacity, prices
        self.label = torch.full((auction.total,), -1, device=prices.device)
        self.paid = torch.zeros(auction.total, dtype=torch.float64, device=prices.device)

    def fill(self, wanted: _Wanted) -> float:
        """Give the rows without a place the nearest places left, one after the other; what they lose by that."""
        left = self.capacity - self.label[self.label >= 0].bincount(minlength=len(self.prices))
        asking = wanted.places(self, (left > 0).nonzero()[:, 0])
        room, lost = left.tolist(), 0.0
        for row, lowest, *found in asking.tolist():
            codes, costs = found[: len(found) // 2], found[len(found) // 2 :]
            place = next((place for place, code in enumerate(codes) if room[int(code)]), None)
            if place is None:
                return math.inf
            room[int(codes[place])] -= 1
            self.label[int(row)] = int(codes[place])
            lost += costs[place] - lowest
        return lost

    def take(self, bids: torch.Tensor) -> None:  # [n, 3]
        """Let the highest offers have the places; of equal ones, those of the first rows."""
        wanted = torch.zeros_like(self.prices, dtype=torch.bool)
        wanted[bids[:, 1].long()] = True
        holders = (wanted[self.label.clamp(min=0)] & (self.label >= 0)).nonzero()[:, 0]
        row = torch.cat([holders, bids[:, 0].long()])
        code = torch.cat([self.label[holders], bids[:, 1].long()])
        paid = torch.cat([self.paid[holders], bids[:, 2]])
        order = row.argsort()
        order = order[paid[order].argsort(descending=True, stable=True)]
        order = order[code[order].argsort(stable=True)]
        row, code, paid = row[order], code[order], paid[order]
        count = code.bincount(minlength=len(self.prices))
        place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[code]
        self.label[row] = torch.where(place < self.capacity, code, -1)
        self.paid[row] = paid
        lowest = place == self.capacity - 1
        self.prices[code[lowest]] = paid[lowest]
