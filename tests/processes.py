"""Several processes that run one function, as ``torch.multiprocessing.spawn`` starts them, without its wait."""

from __future__ import annotations

import multiprocessing
import socket
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


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def torchrun_variables(rank: int, world: int, port: int) -> dict[str, str]:
    """What ``torchrun`` tells a process through its environment."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
