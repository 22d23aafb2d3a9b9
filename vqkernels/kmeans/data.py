"""The rows that take part, seen in passes of chunks, and what one pass over them tells in advance."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from vqkernels._core.canonical import canonical_norm
from vqkernels._core.checks import check_data, check_floating
from vqkernels._core.random import uniform_at
from vqkernels._core.shown import shape_of
from vqkernels._core.usable import LONGEST
from vqkernels._core.wide import compared
from vqkernels.kmeans.bands import Bands, magnitudes, places_of
from vqkernels.kmeans.processes import Processes
from vqkernels.kmeans.source import Source, tensor_of
from vqkernels.kmeans.sums import exact_bins, rounded_sum, weighted
from vqkernels.ops.nearest_code import NearestCode, nearest_code

_PIECE = 1 << 15  # numbers


class Chunk(NamedTuple):
    """Some of the rows that take part."""

    rows: torch.Tensor  # [n, D], finite; of unit length for cosine
    weight: torch.Tensor | None  # [n] float32 > 0
    first: int  # position of the first among those of all processes


class Data:
    """Rows spread over processes: finite, of positive weight and, for cosine, not zero; the others are left out.

    A row's position counts those that take part, by rank and then in the order of the source, so that nothing
    depends on where the chunks and the processes divide them.
    """

    def __init__(
        self,
        source: Source,
        weight: torch.Tensor | None,  # [N]
        metric: str,
        backend: str | None,
        processes: Processes,
    ) -> None:
        self.source, self.weight, self.metric = source, weight, metric
        self.backend, self.processes = backend, processes
        self.first = 0  # position of this process's first row
        self.count = -1  # rows of this process; -1 until they are counted
        self._held = list(self._clean(source.chunks())) if source.in_memory else None
        self._survey()

    def _survey(self) -> None:
        places = places_of(torch.zeros(0, dtype=torch.float64)).expand(2, -1)  # of rows by their weight, of weights
        local = 0
        shape = torch.zeros(2, dtype=torch.int64)  # dimension, and whether any row is float64
        squares = exact_bins(torch.zeros(0, dtype=torch.float64))
        self.device = torch.device("cpu")
        for chunk in self.chunks():
            rows = chunk.rows
            if shape[0] not in (0, rows.shape[1]):
                raise ValueError(f"x: expected rows of {int(shape[0])} numbers in every batch, got {rows.shape[1]}")
            self.device = rows.device
            shape = torch.maximum(shape, torch.tensor([rows.shape[1], rows.dtype == torch.float64]))
            local += len(rows)
            mass = torch.ones(1, dtype=torch.float64) if chunk.weight is None else chunk.weight.double()
            of_chunk = [places_of(magnitudes(rows, chunk.weight)).cpu(), places_of(mass).cpu()]
            places = torch.maximum(places, torch.stack(of_chunk))
            squares += exact_bins(weighted(by_pieces(squared_lengths, rows), chunk.weight)).cpu()
        lengths = self.processes.of_each(local, self.device)
        left_out = self.processes.of_each(self.seen - local, self.device)
        own, shape, places = int(shape[0]), shape.to(self.device), places.to(self.device)
        self.processes.largest_(shape, places)
        squares = squares.to(self.device)
        self.processes.add_(squares)
        self.squares = rounded_sum(squares)  # weighted sum of squared lengths
        self.first, self.total, self.left_out = sum(lengths[: self.processes.rank]), sum(lengths), sum(left_out)
        self.bands, self.mass_bands = (Bands(each, self.total) for each in places)
        if local and own != shape[0]:
            raise ValueError(f"x: expected rows of {int(shape[0])} numbers as elsewhere, got {own}")
        self.dim = int(shape[0])
        self.dtype = torch.float64 if shape[1] else torch.float32
        self.count = local
        if self._held is not None:
            self._held = [chunk._replace(first=chunk.first + self.first) for chunk in self._held]

    def chunks(self) -> Iterator[Chunk]:
        """One pass over the rows of this process."""
        if self._held is not None:
            yield from self._held
            return
        count = 0
        for chunk in self._clean(read_ahead(self.source.chunks())):
            count += len(chunk.rows)
            yield chunk
        if self.count not in (-1, count):
            raise ValueError(f"x: expected the same rows in every pass, got {count} after {self.count}")

    def batches(self, size: int) -> Iterator[Chunk]:
        """The same in batches of ``size`` rows, the last one smaller."""
        waiting: list[Chunk] = []
        held = 0
        for chunk in self.chunks():
            waiting.append(chunk)
            held += len(chunk.rows)
            while held >= size:
                whole = _joined(waiting)
                yield _part(whole, 0, size)
                waiting, held = [_part(whole, size, held)], held - size
        if held:
            yield _joined(waiting)

    def nearest(self, rows: torch.Tensor, centroids: torch.Tensor) -> NearestCode:
        return nearest_code(rows, centroids, metric=self.metric, backend=self.backend)

    def sample(self, wanted: int, seed: int) -> Chunk:
        """Rows drawn uniformly without replacement, in random order, on every process; all, if there are no more."""
        share = (wanted + 8 * math.sqrt(wanted) + 32) / max(1, self.total)
        while True:
            keys, rows, weights = [], [torch.empty(0, self.dim, dtype=self.dtype, device=self.device)], []
            for chunk in self.chunks():
                position = torch.arange(chunk.first, chunk.first + len(chunk.rows), device=self.device)
                key = uniform_at(seed, position)
                taken = (key < share).nonzero()[:, 0]
                keys.append(key[taken])
                rows.append(chunk.rows[taken].to(self.dtype))
                weights.append(torch.ones_like(key[taken]) if chunk.weight is None else chunk.weight[taken].double())
            nothing = torch.empty(0, dtype=torch.float64, device=self.device)
            every_key, every_row, weight = (
                self.processes.concatenate(torch.cat(parts))
                for parts in ([nothing, *keys], rows, [nothing, *weights])
            )
            if len(every_key) >= min(wanted, self.total):
                order = every_key.argsort(stable=True)[:wanted]
                return Chunk(every_row[order], weight[order].float(), 0)
            share *= 2

    def _clean(self, chunks: Iterable[torch.Tensor]) -> Iterator[Chunk]:
        self.seen = 0
        position = self.first
        for rows in chunks:
            weight = None
            if self.weight is not None:
                weight = self.weight[self.seen : self.seen + len(rows)]
            self.seen += len(rows)
            if weight is not None and len(weight) < len(rows):
                break
            rows, weight = usable(rows, weight, self.metric)
            yield Chunk(rows, weight, position)
            position += len(rows)
        if self.weight is not None and self.seen != len(self.weight):
            raise ValueError(f"weight: expected shape [N], one for each row of x, got {list(self.weight.shape)}")


def check_weight(name: str, weight: Any) -> torch.Tensor:
    """A user's weights, as ``[N]`` float32."""
    weight = weight if isinstance(weight, torch.Tensor) else tensor_of(name, weight)
    check_floating(name, weight)
    check_data(name, weight)
    if weight.dim() != 1:
        raise ValueError(f"{name}: expected shape [N], got {shape_of(weight)}")
    mass: torch.Tensor = weight.float()
    if not bool(((mass >= 0) & (mass <= LONGEST)).all()):
        raise ValueError(f"{name}: expected finite numbers >= 0, at most 2^62, got others")
    return mass


def usable(
    rows: torch.Tensor, weight: torch.Tensor | None, metric: str
) -> tuple[torch.Tensor, torch.Tensor | None]:  # [n, D], [n] -> fewer of them
    """The rows that can be clustered: float32 holds their squared distances; for cosine scaled to unit length."""
    keep = by_pieces(lambda piece: piece.isfinite().all(dim=1), rows)
    if metric == "l2":
        keep &= by_pieces(squared_lengths, rows) <= LONGEST**2
    if weight is not None:
        keep &= weight > 0
    if metric == "cosine":
        wide = compared(rows.double(), metric)
        norm = canonical_norm(wide)
        keep &= (norm > 0) & norm.isfinite()
        rows = (wide / norm[:, None]).to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
    if bool(keep.all()):
        return rows.contiguous(), weight
    return rows[keep], None if weight is None else weight[keep]


def squared_lengths(rows: torch.Tensor) -> torch.Tensor:  # [n, D] -> [n] float64
    return rows.double().square().sum(dim=1)


def by_pieces(f: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:  # [n, D] -> [n]
    """``f(rows)``; on a processor so many rows at a time that what lies between stays in the cache."""
    size = _PIECE // rows.shape[1] + 1 if rows.device.type == "cpu" else max(1, len(rows))
    return torch.cat([f(piece) for piece in rows.split(size)])


def read_ahead(chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same chunks, the next one read by another thread while this one is worked on."""
    ready: queue.Queue[tuple[torch.Tensor | None, BaseException | None]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(item: tuple[torch.Tensor | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        failure: BaseException | None = None
        try:
            for chunk in chunks:
                put((chunk, None))
                if stopped.is_set():
                    return
        except BaseException as error:  # raised again by whoever asked for the chunk
            failure = error
        put((None, failure))

    reader = threading.Thread(target=read, name="vqkernels-read-ahead", daemon=True)
    reader.start()
    try:
        while True:
            chunk, failure = ready.get()
            if failure is not None:
                raise failure
            if chunk is None:
                return
            yield chunk
    finally:
        stopped.set()
        reader.join()


def _joined(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    weights = [chunk.weight for chunk in chunks if chunk.weight is not None]
    rows = torch.cat([chunk.rows for chunk in chunks])
    return Chunk(rows, torch.cat(weights) if weights else None, chunks[0].first)


def _part(chunk: Chunk, start: int, stop: int) -> Chunk:
    weight = None if chunk.weight is None else chunk.weight[start:stop]
    return Chunk(chunk.rows[start:stop], weight, chunk.first + start)
