"""K-means of several processes, uneven and empty shards. Oracle: one process with all rows, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes

import vqkernels
from vqkernels.kmeans import source as sources
from vqkernels.testing import assert_bitwise_equal

PROBLEMS: dict[str, dict[str, Any]] = {
    "plus-plus": {},
    "random": {"init": "random", "batch": True},
    "hierarchical": {"init": "hierarchical"},
    "magnitudes": {"magnitudes": True, "weight": True},
    "cosine": {"metric": "cosine", "weight": True},
    "empty-clusters": {"init": torch.cat([torch.full((30, 4), 1e3), torch.zeros(10, 4)])},
}
LEVELS: dict[str, Any] = {"max_share": 1.0, "max_iter": 2, "tol": 0.0}
SHARES = {2: (157, 243), 4: (7, 0, 350, 43)}


def problem(name: str) -> tuple[torch.Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, 4, generator=generator) + 3
    x[::9, 1] = torch.inf
    options: dict[str, Any] = {"max_iter": 8, "tol": 0.0, **PROBLEMS[name]}
    if options.pop("magnitudes", False):
        x *= 2.0 ** torch.randint(-40, 58, (400, 1), generator=generator)
    if options.get("weight"):
        options["weight"] = torch.rand(400, generator=generator) + 0.5
    return x, options


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    sources._READ = 4 * 50
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    results: dict[str, Any] = {}
    calls: list[int] = []
    all_reduce = dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    for name in PROBLEMS:
        x, options = problem(name)
        mine = x.split(SHARES[world])[rank]
        if "weight" in options:
            options["weight"] = options["weight"].split(SHARES[world])[rank]
        source = [mine] if options.pop("batch", False) else mine
        told: list[tuple[Any, ...]] = []
        between: list[int] = []

        def tell(*args: Any, told: list[Any] = told, between: list[int] = between) -> None:
            told.append(args)
            between.append(len(calls))

        results[name] = {"result": vqkernels.kmeans(source, 40, group=dist.group.WORLD, callback=tell, **options)}
        results[name] |= {"told": told, "reductions": torch.tensor(between).diff().tolist()}
    x, options = problem("plus-plus")
    mine = x.split(SHARES[world])[rank]
    results["batches"] = vqkernels.kmeans(mine, 40, group=dist.group.WORLD, batch_size=16, max_iter=3)
    results["levels"] = vqkernels.residual_kmeans(mine, [6, 5], group=dist.group.WORLD, **LEVELS)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.multiproc
@pytest.mark.parametrize("world", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in SHARES if n != 2)])
def test_processes_equal_one(world: int, tmp_path: Path) -> None:
    run_processes(worker, args=(world, str(tmp_path)), nprocs=world)
    everybody = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(world)]
    for name in PROBLEMS:
        x, options = problem(name)
        options.pop("batch", None)
        told: list[tuple[Any, ...]] = []
        want = vqkernels.kmeans(x, 40, callback=lambda *args, told=told: told.append(args), **options)
        for results in everybody:
            got = results[name]["result"]
            assert_bitwise_equal(got.centroids, want.centroids)
            assert_bitwise_equal(got.count, want.count)
            assert got[2:] == want[2:]
            assert results[name]["told"] == told
            # one all-reduce per iteration, two more where a cluster is empty
            expected = [3 if empty else 1 for *_, empty in told[:-1]]
            assert results[name]["reductions"] == expected
        if name == "empty-clusters":
            assert told[0][3] > 30
            assert told[-1][3] == 0
    levels = vqkernels.residual_kmeans(problem("plus-plus")[0], [6, 5], **LEVELS)
    assert_bitwise_equal(torch.cat([results["levels"].indices for results in everybody]), levels.indices)
    for results in everybody:
        for got, want in zip(results["levels"].centroids, levels.centroids, strict=True):
            assert_bitwise_equal(got, want)
        assert results["levels"].inertia == levels.inertia
    for results in everybody:
        assert_bitwise_equal(results["batches"].centroids, everybody[0]["batches"].centroids)
        assert results["batches"].history == everybody[0]["batches"].history
    assert everybody[0]["batches"].inertia < everybody[0]["batches"].history[0]
