"""Rows to centroids, to none more than so many: an auction.

Every centroid has as many places as rows it may hold, and a price, at first nothing. A row wants the centroid where
distance + price is lowest, and offers the most it could pay before another were as good, and a step on top. Of all
offers a centroid takes the highest, as many as it has places; once it is full, its price is the lowest it took. Rows
that got none, or are outbid, offer again. When all have a place, each is within a step of its best choice at the
prices asked, so that the sum of distances is at most the least possible one and a step per row (Bertsekas 1988), and
what the prices of places left over come to, which is kept below that.

Prices that rise by steps take long where many rows want the same few centroids. So a first auction has large steps,
and is over when nearly all have places; the next, with smaller ones, begins near the prices found.

Distance + price is a squared distance once more, with the square root of the price as one coordinate more of a
centroid and 0 of a row. So what a row may want is found by a lookup: the :data:`_LISTED` best, and again when
prices have risen beyond what the last lookup vouches for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from vqkernels.kmeans.data import Data
from vqkernels.kmeans.sums import exact_bins, exact_sum, rounded_sum
from vqkernels.ops.top_codes import top_codes

_LISTED = 16
_PIECE = 1 << 20  # numbers of rows looked up at a time
_STEP = 1 / 100  # the last step, of the mean distance without bounds
_FINER = 5.0
_FEW = 0.005
_TRIES = 3


class Assignment(NamedTuple):
    """Where rows are."""

    labels: torch.Tensor  # [n] int64, of this process's rows
    prices: torch.Tensor  # [K] float64


class Auction:
    """Rows, which are held in memory, and how many of them each centroid may take."""

    def __init__(self, data: Data, capacity: int) -> None:
        self.data, self.capacity = data, capacity
        parts = [chunk.rows for chunk in data.chunks()]
        empty = torch.empty(0, data.dim, dtype=data.dtype, device=data.device)
        self.rows = parts[0] if len(parts) == 1 else torch.cat([empty, *parts])

    def assign(self, centroids: torch.Tensor, near: torch.Tensor | None = None) -> Assignment:  # [K, D], [K]
        """Give every row a place; ``near`` are prices that save work, those of nearly the same centroids."""
        num_codes = len(centroids)
        nothing = torch.zeros(num_codes, dtype=torch.float64, device=self.data.device)
        if num_codes == 1:
            return Assignment(torch.zeros(len(self.rows), dtype=torch.int64, device=self.data.device), nothing)
        wanted = _Wanted(self, centroids, nothing if near is None else near)
        last, step = self._steps(wanted)
        # prices start a little too low where places may stay empty, so that those stay empty that cost nothing
        spare = self.capacity * num_codes > self.data.total
        prices = nothing
        if near is not None:
            step = min(step, _FINER * last)
            prices = (near - spare * step).clamp(min=0)
        while True:
            step = max(step, last)
            sold = self._sell(centroids, prices, step, last)
            if step == last:
                return sold
            prices = (sold.prices - spare * step).clamp(min=0)
            step /= _FINER

    def _steps(self, wanted: _Wanted) -> tuple[float, float]:
        """The last step and the first."""
        nearest, among = wanted.cost[:, 0], wanted.cost[:, -1]
        bins = exact_bins(nearest)
        farthest = among.float().clamp(min=0).amax().view(torch.int32).long() if len(among) else bins.new_zeros(())
        self.data.processes.add_(bins)
        self.data.processes.largest_(farthest)
        largest = float(farthest.int().view(torch.float32))
        # prices stay far from where adding a step is lost in rounding
        last = max(_STEP * rounded_sum(bins) / self.data.total, 1e-7 * largest, torch.finfo(torch.float32).tiny)
        return last, largest / _FINER

    def _sell(self, centroids: torch.Tensor, prices: torch.Tensor, step: float, last: float) -> Assignment:
        """An auction from prices ``[K]`` on; one that is not the last leaves the last few rows without a place."""
        few = 0 if step == last else int(_FEW * self.data.total)
        for attempt in range(_TRIES + 1):
            wanted, sale = _Wanted(self, centroids, prices), _Sale(self, prices.clone())
            while len(bids := self.data.processes.concatenate(wanted.bids(sale, step))) > few:
                sale.take(bids)
            # what all prices have in common makes no difference
            sale.prices -= sale.prices.min()
            taken = sale.label[sale.label >= 0].bincount(minlength=len(prices))
            left = (self.capacity - len(bids) - taken).clamp(min=0)
            # what places that nobody took cost: rows might have been better off there
            if exact_sum(left * sale.prices) <= last * self.data.total:
                break
            prices = torch.where((left > 0) | (attempt == _TRIES - 1), 0, prices)
        return Assignment(sale.label[self.data.first : self.data.first + len(self.rows)], sale.prices)


class _Wanted:
    """What every row of this process may want: the best centroids at the prices of a lookup, and what others cost."""

    def __init__(self, auction: Auction, centroids: torch.Tensor, prices: torch.Tensor) -> None:  # [K, D], [K]
        self.data, self.rows, self.centroids = auction.data, auction.rows, centroids
        listed, device = min(_LISTED, len(centroids)), self.rows.device
        self.codes = torch.empty(len(self.rows), listed, dtype=torch.int32, device=device)
        self.cost = torch.empty(len(self.rows), listed, dtype=torch.float64, device=device)  # distances
        self.others = torch.empty(
            len(self.rows), dtype=torch.float64, device=device
        )  # distance + price, of those that are not listed
        self._look_up(torch.arange(len(self.rows), device=device), prices)

    def bids(self, sale: _Sale, step: float) -> torch.Tensor:  # [n, 3] float64: row, centroid, offer
        """Offers of the rows without a place."""
        free = (sale.label[self.data.first : self.data.first + len(self.rows)] < 0).nonzero()[:, 0]
        best, lowest, second = self._two_best(free, sale.prices)
        stale = (second > self.others[free]).nonzero()[:, 0]
        if len(stale):
            self._look_up(free[stale], sale.prices)
            best[stale], lowest[stale], second[stale] = self._two_best(free[stale], sale.prices)
        offer = sale.prices[best] + (second - lowest) + step
        return torch.stack([(free + self.data.first).double(), best.double(), offer], dim=1)

    def _two_best(
        self, which: torch.Tensor, prices: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [n], [K] -> [n] each
        """The best centroid, and distance + price there and at the second best."""
        codes = self.codes[which].long()
        total = self.cost[which] + prices[codes]
        place = total.argmin(dim=1, keepdim=True)  # the first of equal ones
        lowest = total.gather(1, place)[:, 0]
        return codes.gather(1, place)[:, 0], lowest, total.scatter(1, place, math.inf).amin(dim=1)

    def _look_up(self, which: torch.Tensor, prices: torch.Tensor) -> None:  # [n], [K]
        priced = torch.cat([self.centroids, prices.sqrt().float()[:, None]], dim=1)
        for some in which.split(max(1, _PIECE // priced.shape[1])):
            free = torch.nn.functional.pad(self.rows[some], (0, 1))
            found = top_codes(free, priced, self.codes.shape[1], backend=self.data.backend)
            distance = found.distance.double()
            self.codes[some], self.cost[some] = found.indices.int(), distance - prices[found.indices]
            self.others[some] = distance[:, -1] if len(prices) > distance.shape[1] else math.inf


class _Sale:
    """Who has places so far, of all processes' rows, and what was paid."""

    def __init__(self, auction: Auction, prices: torch.Tensor) -> None:  # [K]
        self.capacity, self.prices = auction.capacity, prices
        self.label = torch.full((auction.data.total,), -1, device=prices.device)
        self.paid = torch.zeros(auction.data.total, dtype=torch.float64, device=prices.device)

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
