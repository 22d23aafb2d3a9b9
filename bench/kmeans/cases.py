"""The problems: what k-means of a large codebook costs per iteration."""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import vqkernels
from bench.case import Implementation, OpCase, Verdict, Work, needs_cuda
from bench.gate import SquaredL2
from bench.kmeans.contestants import CONTESTANTS, ELKAN, FAST_PYTORCH, OURS
from bench.kmeans.photos import patch_features
from bench.kmeans.problem import ClusterProblem
from bench.kmeans.pruning import FAISS_SUPER, SUPERKMEANS, Pruned

_ALLOWED = 1.005  # times the least inertia
_PART = 1 << 16
_MANY = 1 << 20
_LARGE = (1_000_000, 100_000, 256, 3)


def mixture(sizes: Mapping[str, int], seed: int) -> ClusterProblem:
    """A mixture of as many wide Gaussians as centroids; the start is rows of it."""
    n, k, d, iterations = (sizes[letter] for letter in "NKDI")
    generator = torch.Generator().manual_seed(seed)
    centers = 2.0 * torch.randn(k, d, generator=generator)
    x = torch.empty(n, d)
    # a part at a time: beside the vectors nothing of their size exists
    for part, ids in zip(x.split(_PART), torch.randint(k, (n,), generator=generator).split(_PART), strict=True):
        torch.add(centers[ids], torch.randn(part.shape, generator=generator), out=part)
    return ClusterProblem(x, x[torch.randperm(n, generator=generator)[:k]].clone(), iterations)


def low_rank(sizes: Mapping[str, int], seed: int) -> ClusterProblem:
    """Vectors near a subspace of an eighth of the dimensions, as embeddings are; the start is rows of them."""
    n, k, d, iterations = (sizes[letter] for letter in "NKDI")
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d // 8, generator=generator)).Q
    x = torch.randn(n, d // 8, generator=generator) @ basis.T
    x += 0.1 * torch.randn(n, d, generator=generator)
    return ClusterProblem(x, x[torch.randperm(n, generator=generator)[:k]].clone(), iterations)


def photos(sizes: Mapping[str, int], seed: int) -> ClusterProblem:
    """Patches of photographs; the start is distinct rows of them."""
    n, k, d, iterations = (sizes[letter] for letter in "NKDI")
    x = patch_features(n, d, seed)
    first = np.unique(x.numpy(), axis=0, return_index=True)[1]
    return ClusterProblem(x, x[torch.from_numpy(np.sort(first)[:k])], iterations)


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


def verify(
    problem: ClusterProblem, answers: Mapping[str, torch.Tensor | Pruned], ours: frozenset[str]
) -> dict[str, Verdict]:
    """Hold the inertia of every answer against the least."""
    misassigned = {name: wrong_share(answer) for name, answer in answers.items() if isinstance(answer, Pruned)}
    centroids = {name: a.centroids if isinstance(a, Pruned) else a for name, a in answers.items()}
    inertia = {name: _inertia(problem, found) for name, found in centroids.items()}
    least = min(value for value in inertia.values() if not math.isnan(value))
    # NaN is not below anything
    off = {name: not value <= _ALLOWED * least for name, value in inertia.items()}
    return {
        name: Verdict(
            1, 1, int(bad), int(bad), 0, not bad, excess=inertia[name] / least - 1, misassigned=misassigned.get(name)
        )
        for name, bad in off.items()
    }


def wrong_share(found: Pruned) -> float:
    """Share of the rows whose label is a centroid that is farther than float32 rounding explains."""
    geometry, labels = SquaredL2(found.rows, found.centroids), found.labels()
    wrong = 0
    for rows in torch.arange(len(found.rows)).split(max(1, _MANY // found.rows.shape[1])):
        nearest = vqkernels.nearest_code(found.rows[rows], found.centroids).indices[:, None, None]
        given = labels[rows][:, None, None]
        farther = geometry.distances(rows, given) - geometry.distances(rows, nearest)
        wrong += int((farther > geometry.budget(rows, given, nearest)).sum())
    return wrong / len(found.rows)


def _inertia(problem: ClusterProblem, centroids: torch.Tensor) -> float:
    """Of all vectors, or of an eighth of them if they are many."""
    total = 0.0
    for begin in range(0, len(problem.x), _PART if len(problem.x) <= _MANY else 8 * _PART):
        nearest = vqkernels.nearest_code(problem.part(begin, begin + _PART), centroids.contiguous())
        total += float(nearest.distance.double().sum())
    return total


def _work(sizes: Mapping[str, int]) -> Work:
    n, k, d, iterations = (sizes[letter] for letter in "NKDI")
    return Work(pairs=iterations * n * k, flops=2 * iterations * n * k * d, bytes=4 * iterations * (n + k) * d)


def _and_the_result(sizes: Mapping[str, int]) -> Work:
    """Of ours, which goes over the vectors once more."""
    return _work({**sizes, "I": sizes["I"] + 1})


def _case(
    name: str,
    sizes: tuple[int, int, int, int],  # N, K, D, iterations
    inputs: Callable[[Mapping[str, int], int], ClusterProblem],
    implementations: tuple[Implementation, ...],
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
        needs="sklearn" if inputs is photos else "",
        note=note,
    )


def _elkan(n: int, k: int) -> Implementation:
    """Only where its bounds fit, and one run does not take minutes."""
    if n * k <= 1 << 28:
        return ELKAN
    reason = f"its N x K bounds are {4 * n * k / 1e9:.0f} GB, and take minutes to keep up to date"
    return replace(ELKAN, obstacle=lambda _: reason)


def _masked(n: int, k: int) -> Implementation:
    """Only where its mask, as bool and as float32, fits into the device's memory."""
    needs = 5 * n * k

    def obstacle(device: str) -> str:
        if reason := needs_cuda(device):
            return reason
        free = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return f"its K x N masks need {needs / 1e9:.0f} GB of {free / 1e9:.0f} GB" if needs > 0.9 * free else ""

    return replace(FAST_PYTORCH, obstacle=obstacle)


def _faiss_super(d: int) -> Implementation:
    """Only where it can split the dimensions in two."""
    return FAISS_SUPER if d >= 32 else replace(FAISS_SUPER, obstacle=lambda _: f"needs 32 dimensions, got {d}")


def _everyone(n: int, k: int, d: int) -> tuple[Implementation, ...]:
    return (*CONTESTANTS, SUPERKMEANS, _faiss_super(d), _elkan(n, k), _masked(n, k))


def _both(name: str, sizes: tuple[int, int, int, int], note: str) -> tuple[OpCase, OpCase]:
    everyone = _everyone(*sizes[:3])
    return (
        _case(name, sizes, mixture, everyone, f"{note}; a mixture of K Gaussians"),
        _case(f"{name}-photos", sizes, photos, everyone, f"{note}; patches of photographs"),
    )


def _embeddings(name: str, sizes: tuple[int, int, int, int]) -> OpCase:
    note = f"embeddings: {sizes[2] // 8} dimensions, and noise in all"
    return _case(name, sizes, low_rank, _everyone(*sizes[:3]), note)


CASES = (
    *_both("k1000-d64", (100_000, 1000, 64, 10), "a small codebook of long codes"),
    *_both("k10000-d16", (100_000, 10_000, 16, 10), "ten vectors per centroid"),
    *_both("k50000-d8", (200_000, 50_000, 8, 3), "four vectors per centroid"),
    _embeddings("k1000-d128", (100_000, 1000, 128, 10)),
    _embeddings("k4096-d512", (50_000, 4096, 512, 10)),
    replace(
        _case(
            "k100000-d32-disk",
            (2_000_000, 100_000, 32, 1),
            _on_disk,
            OURS,
            "from a memory-mapped file; an iteration, and the inertia of its result: two passes",
        ),
        work=_and_the_result,
    ),
    replace(
        _case(
            "k100000-d256",
            _LARGE,
            mixture,
            _everyone(*_LARGE[:3]),
            "ten vectors per centroid, 1e11 pairs per iteration; a mixture of K Gaussians",
        ),
        devices=("cuda",),
    ),
)
