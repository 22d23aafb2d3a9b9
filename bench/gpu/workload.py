"""One call of one op at full size, for a profiler: ``python -m bench.gpu.workload "lookup D=8 triton"``.

The call is made once to compile and warm up, and once between the marks that begin and end profiling.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

import vqkernels
from bench.gpu.probes import usage
from vqkernels.testing import lookup_problem


class Workload(NamedTuple):
    """What is called, and which kernels count."""

    prepare: Callable[[], Callable[[], Any]]
    kernels: str  # alternatives of a regular expression that their names begin with


def _lookup(d: int, k: int, backend: str) -> Callable[[], Any]:
    x, codebook = (t.cuda() for t in lookup_problem("gaussian", 65536, k, d))
    return partial(vqkernels.nearest_code, x, codebook, backend=backend)


def _entropy(d: int, k: int) -> Callable[[], Any]:
    x, codebook = (t.cuda().requires_grad_() for t in lookup_problem("gaussian", 65536, k, d))

    def call() -> None:
        entropy = vqkernels.soft_assignment_entropy(x, codebook, backend="triton")
        (entropy.sample - entropy.usage).backward()

    return call


def _updates(d: int) -> Callable[[], Any]:
    n, k = 1 << 20, 100_000
    x, indices, codebook, size = (
        t.cuda() for t in (torch.randn(n, d), usage("zipf", n, k), torch.randn(k, d), torch.ones(k))
    )

    def call() -> None:
        count, total = vqkernels.code_stats(x, indices, k, backend="triton")
        vqkernels.ema_update_(codebook, size, codebook.clone(), count, total, decay=0.99, backend="triton")

    return call


_TRITON_LOOKUP = "scan_codes|decide_rows|scan_listed|decide_listed|pack_rows|pack_codes|measure_box|canonical_norms"
WORKLOADS = {
    **{
        f"lookup D={d} triton": Workload(partial(_lookup, d, 16384, "triton"), _TRITON_LOOKUP)
        for d in (8, 16, 64, 256)
    },
    "lookup D=8 cuda": Workload(partial(_lookup, 8, 16384, "cuda"), "scan|decide|pack_codes|inspect|sample"),
    "entropy D=8": Workload(partial(_entropy, 8, 16384), "normalize|sum_terms|pull"),
    "entropy D=256": Workload(partial(_entropy, 256, 1024), "normalize|sum_terms|pull"),
    "updates D=64": Workload(partial(_updates, 64), "measure_rows|add_rows|round_sums|move_statistics|write_codes"),
}


def main(name: str) -> int:
    call = WORKLOADS[name].prepare()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    call()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
