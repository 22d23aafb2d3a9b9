"""Every kernel once, on little data, held against the reference: what a sanitizer is let loose on.

``python -m bench.gpu.workout --backend triton`` (or ``cuda``); without a GPU, Triton's kernels are interpreted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

import vqkernels
from vqkernels import testing

BACKENDS = ("triton", "cuda")
# an op of the registry, how far it may be from the reference, and a call of it: backend -> tensors on the CPU
Task = tuple[str, float, Callable[[str], Any]]


def tasks() -> Iterator[Task]:
    """Calls that leave no kernel out: scans of every layout, listed vectors, NaN rows, both precisions."""
    lookup = partial(partial, _lookup)
    # near ties are listed; few vectors split the codebook
    for problem, n, k, d, metric in (
        ("gaussian", 200, 700, 8, "l2"),
        ("near-ties", 70, 300, 6, "l2"),
        ("near-ties", 3, 3000, 16, "l2"),
        ("gaussian", 40, 300, 70, "cosine"),
        ("near-ties", 40, 300, 200, "dot"),
    ):
        yield "nearest_code", 0.0, lookup(problem, n, k, d, 1, vqkernels.nearest_code, metric)
    yield "nearest_code", 0.0, lookup("duplicates", 50, 64, 4, 3, vqkernels.nearest_code, "l2")
    yield "top_codes", 0.0, lookup("gaussian", 20, 600, 8, 1, partial(vqkernels.top_codes, m=5), "l2")
    for squared in (False, True):
        yield "multilevel_nearest_code", 0.0, partial(_levels, squared)
    for temperature, metric, smoothing in ((1.0, "l2", "none"), (1e-6, "l2", "none"), (0.1, "cosine", "clamp")):
        yield "soft_assignment_entropy", 2.0**-7, partial(_entropy, temperature, metric, smoothing)
    # sums in any order, and lengths, are rounded as they come; everything else is the same bits
    yield "code_stats", 0.0, partial(_stats, True)
    yield "code_stats", 2.0**-18, partial(_stats, False)
    yield "code_range", 0.0, _range
    yield "gather_codes", 0.0, _gather
    yield "ema_update_", 0.0, partial(_ema, False)
    yield "ema_update_", 2.0**-20, partial(_ema, True)
    for metric in ("l2", "cosine"):
        yield "draw_rows", 0.0, partial(_draw, metric)


def _lookup(
    problem: str, n: int, k: int, d: int, groups: int, op: Callable[..., Any], metric: str, backend: str
) -> Any:
    x, codebook = testing.lookup_problem(problem, n, k, d, groups=groups)
    x[0] = torch.nan
    return testing.call_on(backend, partial(op, metric=metric), x, codebook)


def _levels(squared: bool, backend: str) -> Any:
    first, second = (testing.lookup_problem("gaussian", 60, 500, d, seed=d) for d in (8, 5))
    device = testing.backend_device(backend)
    xs, codebooks = ([tensor.to(device) for tensor in level] for level in zip(first, second, strict=True))
    found = vqkernels.multilevel_nearest_code(xs, codebooks, (1.0, 0.5), squared=squared, backend=backend)
    return tuple(part.cpu() for part in found)


def _entropy(temperature: float, metric: str, smoothing: str, backend: str) -> Any:
    device = testing.backend_device(backend)
    x, codebook = (t.to(device).requires_grad_() for t in testing.lookup_problem("gaussian", 40, 100, 8))
    sample, usage, _ = vqkernels.soft_assignment_entropy(
        x, codebook, metric=metric, temperature=temperature, smoothing=smoothing, backend=backend
    )
    gradients = torch.autograd.grad(sample - usage, (x, codebook))
    return tuple(t.detach().cpu() for t in (sample, usage, *gradients))


def _assigned() -> tuple[torch.Tensor, torch.Tensor]:
    x, indices = torch.randn(300, 20), torch.randint(-1, 50, (300,))
    x[7] = torch.inf
    return x, indices


def _stats(deterministic: bool, backend: str) -> Any:
    return testing.call_on(
        backend,
        lambda x, indices, backend: vqkernels.code_stats(
            x, indices, 50, weight=x[:, 0].abs(), deterministic=deterministic, backend=backend
        ),
        *_assigned(),
    )


def _range(backend: str) -> Any:
    return testing.call_on(backend, partial(vqkernels.code_range, num_codes=50), *_assigned())


def _gather(backend: str) -> Any:
    """Forward and backward: the gradient of the codes is a sum that nothing is left out of."""
    device = testing.backend_device(backend)
    codebook = torch.randn(50, 20).to(device).requires_grad_()
    x, indices = (t.to(device) for t in _assigned())
    codes = vqkernels.gather_codes(codebook, indices, backend=backend)
    with vqkernels.use_backend(backend):
        codes.backward(x)
    assert codebook.grad is not None
    return codes.detach().cpu(), codebook.grad.cpu()


def _ema(normalize: bool, backend: str) -> Any:
    device = testing.backend_device(backend)
    codebook, embed_sum, total = (torch.randn(50, 20).to(device) for _ in range(3))
    size, count = (torch.rand(50).to(device) for _ in range(2))
    vqkernels.ema_update_(codebook, size, embed_sum, count, total, decay=0.9, normalize=normalize, backend=backend)
    return tuple(t.cpu() for t in (codebook, size, embed_sum))


def _draw(metric: str, backend: str) -> Any:
    x, codebook = testing.lookup_problem("gaussian", 300, 40, 8)
    given = (codebook, torch.zeros(40), x, torch.randint(40, (300,)), torch.rand(300))
    book, usage, *rows = (t.to(testing.backend_device(backend)) for t in given)
    vqkernels.reanchor_(book, usage, *rows, decay=0.5, anchor="probabilistic", metric=metric, backend=backend)
    return book.cpu(), usage.cpu()


def differences(task: Callable[[str], Any], backend: str) -> float:
    """Largest difference from the reference over its largest value; infinite for what is no number on one side."""
    results = []
    for name in ("reference", backend):
        torch.manual_seed(0)
        results.append([t.double() for t in task(name) if t is not None])
    worst = 0.0
    for want, got in zip(*results, strict=True):
        same = (want == got) | (want.isnan() & got.isnan())
        error = torch.where(same, 0.0, (want - got).abs()).nan_to_num(nan=torch.inf)
        worst = max(worst, float(error.max() / want[want.isfinite()].abs().max().clamp(min=1e-30)))
    return worst


def kernels() -> set[str]:
    """Every Triton kernel of the package that is launched from Python: those without a leading underscore."""
    from triton.runtime import KernelInterface

    found = set()
    package = importlib.import_module("vqkernels")
    for module in pkgutil.walk_packages(package.__path__, "vqkernels."):
        name = module.name.rpartition(".")[2]
        if name.startswith("triton_") and ".ops." in module.name:
            for key, value in vars(importlib.import_module(module.name)).items():
                own = isinstance(value, KernelInterface) and value.fn.__module__ == module.name
                found |= {f"{module.name}:{key}"} if own and not key.startswith("_") else set()
    return found


@contextmanager
def launches() -> Iterator[set[str]]:
    """The names, as :func:`kernels` has them, of what is launched meanwhile."""
    from triton.runtime import KernelInterface

    seen: set[str] = set()
    before = KernelInterface.__getitem__

    def noting(self: Any, grid: Any) -> Any:
        seen.add(f"{self.fn.__module__}:{self.fn.__name__}")
        return before(self, grid)

    KernelInterface.__getitem__ = noting
    try:
        yield seen
    finally:
        KernelInterface.__getitem__ = before


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.workout", description=__doc__)
    parser.add_argument("--backend", choices=BACKENDS, required=True)
    backend = parser.parse_args(argv).backend
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    if backend not in testing.usable_backends("nearest_code"):
        parser.error(f"--backend: {backend} cannot run here")
    failed = []
    with launches() as seen:
        for op, tolerance, task in tasks():
            if backend in testing.usable_backends(op) and not (off := differences(task, backend)) <= tolerance:
                failed.append(f"{op} is off by {off:.1e}")
    idle = sorted(kernels() - seen) if backend == "triton" else []
    for line in (*failed, *(f"{name} was not launched" for name in idle)):
        print(line)
    print(f"{backend}: {len(seen)} kernels launched")
    return 1 if failed or idle else 0


if __name__ == "__main__":
    sys.exit(main())
