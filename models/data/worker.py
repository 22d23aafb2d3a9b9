"""A worker process of the loader: gets its task on stdin, writes batches to stdout, as fast as they are read.

It imports neither torch nor the program that started it. It ends when nobody reads any more; signals that ask the
training to stop are for the training, which still has a step to finish.

A message: length of the head and of the body (two uint64), the head (pickled), the body (the arrays of the batch).
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
import traceback
import warnings
from typing import IO, Any, NamedTuple

import numpy as np

from models.data.batches import Batches, RawBatch, Skipped
from models.errors import UserError

LENGTHS = struct.Struct("<QQ")
ALIGNMENT = 64  # bytes, of each array in a body


class Task(NamedTuple):
    """Which batches a worker makes."""

    batches: Batches
    steps: range


class ArrayInfo(NamedTuple):
    """Where an array lies in the body."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Head(NamedTuple):
    """What a message says before its arrays."""

    arrays: tuple[ArrayInfo, ...]
    skipped: tuple[Skipped, ...]
    user_error: str | None = None
    failure: str | None = None  # traceback


def main() -> None:
    """Run the task until its last step, until an error (which is sent), or until nobody reads."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # remarks on image files that are skipped and named anyway
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # what a library prints must not end up between the batches
        try:
            _work(out)
        except BrokenPipeError:
            os._exit(0)  # closing the file would write again


def _work(out: IO[bytes]) -> None:
    try:
        task: Task = pickle.load(sys.stdin.buffer)
        for step in task.steps:
            send(out, task.batches.batch(step))
    except BrokenPipeError:
        raise
    except UserError as error:
        _send(out, Head((), (), user_error=str(error)), [])
    except Exception:  # told to the training, which stops with it
        _send(out, Head((), (), failure=traceback.format_exc()), [])


def send(out: IO[bytes], batch: RawBatch) -> None:
    infos, parts, end = list[ArrayInfo](), list[Any](), 0
    for name, array in batch.arrays.items():
        infos.append(ArrayInfo(name, array.dtype.str, array.shape, end))
        parts += [np.ascontiguousarray(array).reshape(-1).view(np.uint8), bytes(-array.nbytes % ALIGNMENT)]
        end += array.nbytes + -array.nbytes % ALIGNMENT
    _send(out, Head(tuple(infos), batch.skipped), parts)


def _send(out: IO[bytes], head: Head, parts: list[Any]) -> None:
    content = pickle.dumps(head)
    out.write(LENGTHS.pack(len(content), sum(len(part) for part in parts)))
    out.write(content)
    for part in parts:
        out.write(part)
    out.flush()


if __name__ == "__main__":
    main()
