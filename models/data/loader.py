"""Batches as tensors, made ahead by worker processes.

B batch, S crop size, T frames. What a batch holds depends on (seed, step, rank) alone: not on the workers, nor on
where a training was resumed (:mod:`models.data.batches`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from models.data.batches import Batches, RawBatch, Skipped
from models.data.pixels import to_float
from models.data.sample import Source
from models.data.transforms import Transform
from models.data.worker import LENGTHS, Head, Task
from models.errors import UserError

Batch = dict[str, torch.Tensor]

_NAMED = 3  # skipped samples that are named in the summary
_PIPE_BYTES = 1 << 20
_START = "import sys; sys.path[:] = {path!r}; from models.data.worker import main; main()"
# each worker is one thread, whatever library it calls
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Loader:
    """Iterates over the batches of steps ``start_step + 1``, ``start_step + 2``, ...

    A batch is a dict: ``image`` [B, 3, S, S] ([B, T, 3, S, S] of clips) float32 in [-1, 1], or ``codes`` or
    ``latents``; ``label`` [B] and ``map`` [B, S, S] int64 where the source has them; ``index`` [B] int64, in the
    source. A sample that cannot be used is replaced by the next one, counted and named on stderr. Iterating again
    starts again.

    Args:
        source: where samples come from.
        transform: what is made of one, see :mod:`models.data.transforms`.
        batch_size: samples per batch of this process.
        seed: of order and transforms.
        rank: number of this process.
        world: number of processes; together they make the batch of a step.
        start_step: steps already done.
        workers: processes that make batches ahead; with 0 they are made in this one, when asked for.
        shuffle: False gives one pass in order, over what can be used, to all processes together.
        device: where the tensors go; on a GPU through pinned memory.
        prefetch: batches that wait per worker.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        workers: int = 0,
        shuffle: bool = True,
        device: torch.device | str = "cpu",
        prefetch: int = 2,
    ) -> None:
        if workers < 0 or prefetch < 1:
            raise ValueError(f"workers, prefetch: expected at least 0 and 1, got {workers} and {prefetch}")
        self.source, self.device = source, torch.device(device)
        self.wait_seconds = 0.0  # spent waiting for batches, and bringing them to the device, so far
        self._batches = Batches(
            source=source,
            transform=transform,
            batch_size=batch_size,
            seed=seed,
            rank=rank,
            world=world,
            shuffle=shuffle,
        )
        self._start_step, self._count, self._prefetch = start_step, workers, prefetch
        self._workers: list[_Worker] = []
        self._skipped: dict[int, Skipped] = {}
        self._told = 1  # skipped samples when they were last summed up; the first is told at once

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        last = self._batches.last_step
        steps = range(self._start_step + 1, sys.maxsize if last is None else last + 1)
        if self._count:
            self._workers = [
                _Worker(Task(self._batches, steps[number :: self._count]), self._prefetch, self.device.type == "cuda")
                for number in range(self._count)
            ]
        workers = self._workers
        try:
            for number, step in enumerate(steps):
                started = time.perf_counter()
                if workers:
                    received = workers[number % len(workers)].get()
                else:
                    received = _from_arrays(self._batches.batch(step))
                self._note(received.skipped)
                batch = _to_device(received.tensors, self.device)
                self.wait_seconds += time.perf_counter() - started
                if batch:
                    yield batch
        finally:
            if workers is self._workers:
                self.close()

    def batch(self, step: int) -> Batch:
        """The batch of any step, made in this process."""
        received = _from_arrays(self._batches.batch(step))
        self._note(received.skipped)
        return _to_device(received.tensors, self.device)

    @property
    def skipped(self) -> int:
        """Different samples that could not be used, so far."""
        return len(self._skipped)

    def close(self) -> None:
        """End the workers, and say what was skipped."""
        for worker in self._workers:
            worker.close()
        self._workers = []
        if len(self._skipped) > self._told:
            self._told = len(self._skipped)
            names = [skipped.name for skipped in self._skipped.values()][:_NAMED]
            shown = ", ".join(names) + (", ..." if self._told > _NAMED else "")
            print(f"data: skipped {self._told} samples: {shown}", file=sys.stderr)

    def _note(self, skipped: tuple[Skipped, ...]) -> None:
        for sample in skipped:
            if not self._skipped:
                print(f"data: skipped {sample.name} ({sample.reason})", file=sys.stderr)
            self._skipped[sample.number] = sample


class _Received(NamedTuple):
    """A batch before it goes to the device."""

    tensors: Batch
    skipped: tuple[Skipped, ...]


class _Worker:
    """A worker process, and the thread that receives its batches: neither waits for this process's main thread."""

    def __init__(self, task: Task, prefetch: int, pin: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _ONE_THREAD,
            bufsize=0,
            process_group=0,  # Ctrl-C is for the training
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdout, self._pin = self._process.stdout, pin
        with contextlib.suppress(OSError):  # the system allows less
            fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._queue: queue.Queue[Head | _Received | None] = queue.Queue(prefetch)  # None: the process is gone
        self._ended = False
        self._thread = threading.Thread(target=self._receive, daemon=True)
        self._thread.start()
        # a worker that cannot even start is found out by get
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(pickle.dumps(task))

    def get(self) -> _Received:
        """The next batch; waits for it."""
        message = None if self._ended else self._queue.get()
        if isinstance(message, _Received):
            return message
        if message is None:
            self._ended = True
            raise UserError(f"data: worker process {self._process.pid} {_how_ended(self._process.wait())}")
        if message.user_error is not None:
            raise UserError(message.user_error)
        raise RuntimeError(f"a data worker failed:\n{message.failure}")

    def close(self) -> None:
        """Kill the process; nothing is lost with it."""
        self._process.kill()
        while not self._ended:
            self._ended = self._queue.get() is None
        self._thread.join()
        self._process.wait()
        self._stdout.close()

    def _receive(self) -> None:
        try:
            while True:
                self._queue.put(_receive(self._stdout, self._pin))
        except EOFError:
            self._queue.put(None)


def _receive(stream: IO[bytes], pin: bool) -> Head | _Received:
    head_length, body_length = LENGTHS.unpack(_read(stream, bytearray(LENGTHS.size)))
    head: Head = pickle.loads(_read(stream, bytearray(head_length)))
    if head.user_error is not None or head.failure is not None:
        return head
    # one buffer, and views of this tensor: so the allocator of pinned memory knows while a copy is under way
    body = torch.empty(body_length, dtype=torch.uint8, pin_memory=pin)
    _read(stream, body.numpy())
    tensors = {}
    for info in head.arrays:
        dtype = torch.from_numpy(np.empty(0, info.dtype)).dtype
        size = dtype.itemsize * int(np.prod(info.shape, dtype=np.int64))
        tensors[info.name] = body[info.offset : info.offset + size].view(dtype).view(info.shape)
    return _Received(tensors, head.skipped)


def _read(stream: IO[bytes], buffer: Any) -> Any:
    view, done = memoryview(buffer), 0
    while done < len(view):
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        done += count
    return buffer


def _from_arrays(batch: RawBatch) -> _Received:
    return _Received({name: torch.from_numpy(array) for name, array in batch.arrays.items()}, batch.skipped)


def _to_device(tensors: Batch, device: torch.device) -> Batch:
    """Images become pixels in [-1, 1], other integers int64, and floats float32."""
    batch = {}
    for name, tensor in tensors.items():
        moved = tensor.to(device, non_blocking=True)
        if name == "image":
            batch[name] = to_float(moved)
        else:
            batch[name] = moved.float() if moved.is_floating_point() else moved.long()
    return batch


def _how_ended(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
