"""Processes that train together. Oracle: one process that sees all batches, and the other processes.

In most tests vectors are small integers and decays powers of two, so that results are easy to tell. That the
codebook does not depend on the number of processes is tested with real numbers of very different magnitudes.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from nn_oracle import compose
from processes import run_processes
from torch.nn.parallel import DistributedDataParallel

import vqkernels
from vqkernels.nn import SEQGAN_ENTROPY, Regularizer
from vqkernels.testing import assert_bitwise_equal

STEPS = 5
KINDS: dict[str, Any] = {
    "learned": vqkernels.Learned(init_scale=4.0),
    "ema": vqkernels.Ema(decay=0.5, eps=0.0),
    "ema-revived": vqkernels.Ema(decay=0.5, eps=0.0, dead_after=2),
    "online-closest": vqkernels.OnlineClustering(decay=0.5, init_scale=4.0),
    "online-random": vqkernels.OnlineClustering(decay=0.5, anchor="random", init_scale=4.0),
    "online-drawn": vqkernels.OnlineClustering(decay=0.5, anchor="probabilistic", init_scale=4.0),
}
# all-reduces of a step: where there are sums or anchors, one for their range and the keys, one for all the rest
COLLECTIVES = {"learned": 1, "ema": 2, "ema-revived": 2, "online-closest": 2, "online-random": 2, "online-drawn": 2}
COLLECTIVES |= {"nested": 2, "residual": 4}


def build(kind: str, **options: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    if kind in ("nested", "residual"):
        return compose(kind, 4, 16)
    quantizer = vqkernels.VectorQuantizer(4, 16, groups=2, codebook=KINDS[kind], usage_window=4, **options)
    if kind.startswith("ema"):
        quantizer.table.assign_(torch.randint(-4, 5, (2, 16, 2)) + 0.5)  # no vector
    return quantizer


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Even numbers on rank 0, odd ones on rank 1; one of them has no vector in steps 1 and 2, both in step 3."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    n = 0 if step == 1 and rank == 1 else 12 + rank
    x = 2.0 * torch.randint(-3, 4, (n, 4), generator=generator) + rank
    mask = torch.rand(n, generator=generator) > 0.2
    return x, mask & (step != 3) & (step != 2 or rank != 0)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    # built before there is anybody to talk to
    quantizers = {kind: build(kind) for kind in COLLECTIVES}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    calls = 0
    all_reduce = dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    result: dict[str, Any] = {}
    for kind, quantizer in quantizers.items():
        calls = 0
        for step in range(STEPS):
            quantizer(*batch(step, rank))
        result[kind] = {"state": quantizer.state_dict(), "calls": calls / STEPS}
    calls = 0
    result["alone"] = train_alone(rank)
    assert calls == 0
    result["trained"] = {kind: train_in_parallel(kind, rank) for kind in COLLECTIVES}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def train_alone(rank: int) -> dict[str, Any]:
    """What rank 0 trains without rank 1: one quantizer that asks nobody, and one in a group of its own."""
    groups = [dist.new_group([member]) for member in range(2)]
    if rank:
        with pytest.raises(TypeError, match=r"group: expected None or a torch\.distributed process group, got"):
            build("ema-revived", group=groups[0])
        return {}
    trained = {}
    for name, options in {"alone": {"synchronize": False}, "group": {"group": groups[0]}}.items():
        quantizer = build("ema-revived", **options)
        quantizer.fit_codebook(torch.cat([batch(step, 0)[0] for step in range(STEPS)]), max_iter=2)
        for step in range(STEPS):
            quantizer(*batch(step, 0))
        trained[name] = quantizer.state_dict()
    return trained


def train_in_parallel(kind: str, rank: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), build(kind))
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimizer.zero_grad()
        out = parallel(batch(step, rank)[0])
        (out.quantized.square().sum() + out.loss).backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    run_processes(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.multiproc
@pytest.mark.parametrize("kind", COLLECTIVES)
def test_processes_stay_identical(kind: str, results: list[dict[str, Any]]) -> None:
    for states in ([r[kind]["state"] for r in results], [r["trained"][kind] for r in results]):
        for name, tensor in states[0].items():
            assert_bitwise_equal(states[1][name], tensor)
            assert bool(tensor.isfinite().all())


@pytest.mark.multiproc
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_do_what_one_does_with_both_batches(kind: str, results: list[dict[str, Any]]) -> None:
    quantizer = build(kind)
    for step in range(STEPS):
        quantizer(*map(torch.cat, zip(batch(step, 0), batch(step, 1), strict=True)))
    for name, tensor in quantizer.state_dict().items():
        assert_bitwise_equal(results[0][kind]["state"][name], tensor)


@pytest.mark.multiproc
@pytest.mark.parametrize("name", ["alone", "group"])
def test_one_process_trains_by_itself(name: str, results: list[dict[str, Any]]) -> None:
    """Oracle: the same where there is no other process."""
    quantizer = build("ema-revived")
    quantizer.fit_codebook(torch.cat([batch(step, 0)[0] for step in range(STEPS)]), max_iter=2)
    for step in range(STEPS):
        quantizer(*batch(step, 0))
    for key, tensor in quantizer.state_dict().items():
        assert_bitwise_equal(results[0]["alone"][name][key], tensor)


@pytest.mark.multiproc
@pytest.mark.parametrize("kind", ["ema-revived", "online-random"])
def test_drawn_vectors_come_from_both_processes(kind: str, results: list[dict[str, Any]]) -> None:
    weight = results[0][kind]["state"]["table.weight"]
    # off the vector by the jitter, or by what a moved code keeps of itself
    drawn = (weight - weight.round()).abs().amax(dim=2) < 0.02
    parity = weight[drawn].round().remainder(2)
    assert bool((parity[:, 0] == parity[:, 1]).all())
    assert 0 < int(parity[:, 0].sum()) < len(parity)


@pytest.mark.multiproc
@pytest.mark.parametrize("kind", COLLECTIVES)
def test_number_of_collectives(kind: str, results: list[dict[str, Any]]) -> None:
    assert [r[kind]["calls"] for r in results] == [COLLECTIVES[kind]] * 2


def entropy_step(x: torch.Tensor) -> dict[str, torch.Tensor]:  # [N, D]
    """The entropy over all processes, and the gradient that DistributedDataParallel makes of those of its parts."""
    torch.manual_seed(3)
    over_all = functools.partial(SEQGAN_ENTROPY, reduce=vqkernels.distributed.sum_with_gradient)
    entropy = Regularizer(name="entropy", loss=over_all, weight=0.01)
    quantizer = vqkernels.VectorQuantizer(4, 16, codebook=KINDS["learned"], regularizers=[entropy]).double()
    loss = quantizer(x).losses["entropy"]
    loss.backward()
    gradient = quantizer.table.weight.grad
    if dist.is_initialized():
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
    return {"loss": loss.detach(), "gradient": gradient}


def entropy_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(entropy_step(batch(0, rank)[0].double()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.multiproc
def test_an_entropy_over_two_processes_is_that_of_both_batches(tmp_path: Path) -> None:
    run_processes(entropy_worker, args=(str(tmp_path),), nprocs=2)
    expected = entropy_step(torch.cat([batch(0, 0)[0], batch(0, 1)[0]]).double())
    assert float(expected["gradient"].norm()) > 0
    for rank in range(2):
        # in float64: sums in another order, and nothing else
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), expected)


WORLD_INDEPENDENT: dict[str, Any] = {
    "ema": vqkernels.Ema(decay=0.9, eps=1e-5),
    "ema-revived": vqkernels.Ema(decay=0.9, eps=1e-5, dead_after=1),
    **{
        f"online-{a}": vqkernels.OnlineClustering(decay=0.9, anchor=a) for a in ("closest", "random", "probabilistic")
    },
}


def share(step: int, rank: int, processes: int) -> torch.Tensor:
    """Some vectors of one batch of real numbers, dealt out at random; the last process has none in the first step."""
    generator = torch.Generator().manual_seed(step)
    n = 6000  # so many that their number has a say in the grid
    whole = torch.randn(n, 4, generator=generator) * 10.0 ** torch.linspace(-9, 6, n)[:, None]
    whole[torch.randperm(n, generator=generator)[:5]] = torch.nan
    dealt = torch.rand(n, generator=generator).square() * (processes if step or processes == 1 else processes - 1)
    return whole[dealt.long() == rank]


def train_on_shares(kind: str, rank: int, processes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    quantizer = vqkernels.VectorQuantizer(4, 16, groups=2, codebook=WORLD_INDEPENDENT[kind])
    with torch.no_grad():  # codes of all sizes, so that sums of small vectors show the grid
        quantizer.table.assign_(torch.randn(2, 16, 2) * 10.0 ** torch.linspace(-9, 6, 16)[:, None])
    for step in range(4):
        quantizer(share(step, rank, processes))
    return quantizer.state_dict()


def share_worker(rank: int, processes: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    torch.save({kind: train_on_shares(kind, rank, processes) for kind in WORLD_INDEPENDENT}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.multiproc
@pytest.mark.parametrize("processes", [2, 4])
def test_the_codebook_does_not_depend_on_the_number_of_processes(processes: int, tmp_path: Path) -> None:
    assert bool(share(0, 0, 2).isfinite().all(1).any())
    assert sum(len(share(1, rank, processes)) for rank in range(processes)) == 6000
    assert len(share(0, processes - 1, processes)) == 0
    run_processes(share_worker, args=(processes, str(tmp_path)), nprocs=processes)
    for kind in WORLD_INDEPENDENT:
        expected = train_on_shares(kind, 0, 1)
        for rank in range(processes):
            state = torch.load(tmp_path / f"{rank}.pt")[kind]
            for name, tensor in expected.items():
                assert_bitwise_equal(state[name], tensor)
