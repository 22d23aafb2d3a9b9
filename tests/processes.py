"""Several processes that run one function, as ``torch.multiprocessing.spawn`` starts them, without its wait."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def run_processes(worker: Callable[..., None], args: tuple[Any, ...], nprocs: int) -> None:
    """Run ``worker(rank, *args)`` in every process and wait; raise what one of them raises.

    They are forked from a process that has imported torch and this package, once, and done nothing else: an import
    takes seconds, and a fork of the tests' own process would have threads that do not exist.
    """
    multiprocessing.set_forkserver_preload(["torch", "torch.distributed", "vqkernels", "pytest"])
    mp.start_processes(worker, args=args, nprocs=nprocs, start_method="forkserver")
