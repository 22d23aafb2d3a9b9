"""The problems: what k-means of a large codebook costs per iteration."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch

import vqkernels
from bench.case import Implementation, OpCase, Verdict, Work
from bench.kmeans.contestants import CONTESTANTS, FEW_CENTROIDS, FROM_DISK
from bench.kmeans.problem import ClusterProblem

_ALLOWED = 1.005  # times the least inertia
_PART = 1 << 16


def _mixture(sizes: Mapping[str, int], seed: int) -> ClusterProblem:
    """A mixture of as many wide Gaussians as centroids; the start is rows of it."""
    n, k, d, iterations = (sizes[letter] for letter in "NKDI")
    generator = torch.Generator().manual_seed(seed)
    centers = 2.0 * torch.randn(k, d, generator=generator)
    x = centers[torch.randint(k, (n,), generator=generator)] + torch.randn(n, d, generator=generator)
    return ClusterProblem(x, x[torch.randperm(n, generator=generator)[:k]].clone(), iterations)


def _on_disk(sizes: Mapping[str, int], seed: int) -> ClusterProblem:
    """The same in a file, made and mapped a part at a time."""
    n, k, d, iterations = (sizes[letter] for letter in "NKDI")
    folder = Path(tempfile.mkdtemp(prefix="vqkernels-bench-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "rows.npy"
    centers = 2.0 * np.random.default_rng(seed).standard_normal((k, d), dtype=np.float32)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
    for begin in range(0, n, _PART):
        generator = np.random.default_rng([seed, begin])
        size = min(_PART, n - begin)
        noise = generator.standard_normal((size, d), dtype=np.float32)
        rows[begin : begin + size] = centers[generator.integers(k, size=size)] + noise
    rows.flush()
    del rows
    x = np.load(path, mmap_mode="r")
    return ClusterProblem(x, torch.from_numpy(x[:k].copy()), iterations)


def verify(problem: ClusterProblem, answers: Mapping[str, torch.Tensor], ours: frozenset[str]) -> dict[str, Verdict]:
    """Hold the inertia of every answer against the least."""
    inertia = {name: _inertia(problem, centroids) for name, centroids in answers.items()}
    least = min(inertia.values())
    # NaN is not below anything
    off = {name: not value <= _ALLOWED * least for name, value in inertia.items()}
    return {name: Verdict(1, 1, int(bad), int(bad), 0, not bad) for name, bad in off.items()}


def _inertia(problem: ClusterProblem, centroids: torch.Tensor) -> float:
    total = 0.0
    for begin in range(0, len(problem.x), _PART):
        nearest = vqkernels.nearest_code(problem.part(begin, begin + _PART), centroids.contiguous())
        total += float(nearest.distance.double().sum())
    return total


def _work(sizes: Mapping[str, int]) -> Work:
    n, k, d, iterations = (sizes[letter] for letter in "NKDI")
    return Work(pairs=iterations * n * k, flops=2 * iterations * n * k * d, bytes=4 * iterations * (n + k) * d)


def _case(
    name: str,
    sizes: tuple[int, int, int, int],  # N, K, D, iterations
    implementations: tuple[Implementation, ...],
    *,
    inputs: Callable[[Mapping[str, int], int], ClusterProblem] = _mixture,
    note: str,
) -> OpCase:
    return OpCase(
        op="kmeans",
        name=name,
        sizes=dict(zip("NKDI", sizes, strict=True)),
        inputs=inputs,
        implementations=implementations,
        verify=verify,
        work=_work,
        smoke_sizes={"N": 600, "K": 20, "I": 2},
        note=note,
    )


CASES = (
    _case("k1000-d64", (100_000, 1000, 64, 5), FEW_CENTROIDS, note="a small codebook of long codes"),
    _case("k10000-d16", (100_000, 10_000, 16, 5), FEW_CENTROIDS, note="ten vectors per centroid"),
    _case("k50000-d8", (200_000, 50_000, 8, 3), CONTESTANTS, note="four vectors per centroid"),
    _case(
        "k100000-d32-disk", (2_000_000, 100_000, 32, 1), FROM_DISK, inputs=_on_disk, note="from a memory-mapped file"
    ),
)
