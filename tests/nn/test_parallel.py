"""Quantizers in DistributedDataParallel and in FSDP2. Oracle: one process that has all batches; DDP.

What is exact is compared to the bit: codebooks from k-means and what a step writes. Gradients of two processes are
averages of two numbers, the same in either.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from needs import needs_one_order
from nn_oracle import KINDS
from processes import run_processes
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import vqkernels
from vqkernels.compat.taming import EMAVectorQuantizer
from vqkernels.compat.vector_quantize_pytorch import VectorQuantize
from vqkernels.distributed import stats_of_all
from vqkernels.testing import assert_bitwise_equal

FITTED = ("learned", "ema", "online-closest", "matched")
SHARDED = ("online-closest", "online-drawn", "semantic", "ema", "taming", "expiring")


def batch(step: int, rank: int) -> torch.Tensor:
    return torch.randn(24, 8, generator=torch.Generator().manual_seed(100 * step + rank)) * (1 + rank)


def quantizer(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind == "taming":
        return EMAVectorQuantizer(16, 8, 0.25)
    if kind == "expiring":
        return VectorQuantize(8, 16, learnable_codebook=True, ema_update=False, threshold_ema_dead_code=0.5)
    if kind == "semantic":
        made = vqkernels.VectorQuantizer(
            8, 16, codebook=vqkernels.SemanticClustering(num_classes=3, init_scale=1.0, label="histogram")
        )
        made.table.classes.requires_grad_(False)  # no loss here trains them
        return made
    return vqkernels.VectorQuantizer(8, 16, codebook=KINDS[kind](16))


class Model(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.encoder, self.quantizer = nn.Linear(8, 8), quantizer(kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, 8] -> []
        rows = self.encoder(x)
        images = isinstance(self.quantizer, EMAVectorQuantizer)
        semantic = hasattr(getattr(self.quantizer, "table", None), "classes")
        given = {"labels": torch.arange(len(x)) % 3} if semantic else {}
        out = self.quantizer(rows[:, :, None, None] if images else rows, **given)
        loss = out.loss if isinstance(out, vqkernels.QuantizerOutput) else out[1] if images else out[2]
        return out[0].square().mean() + loss


def train(model: nn.Module, rank: int, module: Any = None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4):
        optimizer.zero_grad()
        (model if module is None else module)(batch(step, rank)).backward()
        optimizer.step()


def full(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {key: (t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for key, t in state.items()}


def fitted(kind: str, rank: int) -> dict[str, torch.Tensor]:
    """After DistributedDataParallel was put around; rank 1 has nothing in the first of two runs."""
    states = {}
    for run in range(2):
        model = Model(kind)
        DistributedDataParallel(model)
        model.quantizer.fit_codebook([] if run == 0 and rank == 1 else [batch(run, rank), batch(run + 1, rank)])
        states |= {f"{run}.{key}": t.clone() for key, t in model.quantizer.state_dict().items()}
    return states


def wide_batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(40, 1, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 5, (40, 1), generator=generator)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    result: dict[str, Any] = {"fitted": {kind: fitted(kind, rank) for kind in FITTED}, "trained": {}}
    for kind in SHARDED:
        for how in ("ddp", "fsdp root", "fsdp quantizer"):
            model = Model(kind)
            if how == "ddp":
                train(model, rank, DistributedDataParallel(model))
            else:
                if how == "fsdp quantizer":
                    fully_shard(model.quantizer, mesh=mesh, reshard_after_forward=True)
                fully_shard(model, mesh=mesh)
                train(model, rank)
            result["trained"][kind, how] = full(model.state_dict())

    torch.manual_seed(3)
    stack = vqkernels.ResidualQuantizer.build(2, 8, 16, code_dim=4)
    parallel = DistributedDataParallel(stack)
    for step in range(2):
        out = parallel(batch(step, rank))
        (out.quantized.square().mean() + out.loss).backward()
    result["stack"] = {name: p.grad.clone() for name, p in stack.named_parameters()}

    features = vqkernels.Frozen(features=torch.randn(16, 12, generator=torch.Generator().manual_seed(rank)))
    frozen = vqkernels.VectorQuantizer(8, 16, codebook=features)
    parallel = DistributedDataParallel(frozen)
    parallel(batch(0, rank)).loss.backward()
    result["sent"] = {name: t.numel() for name, t in parallel.named_module_buffers.items()}
    result["frozen"] = frozen.state_dict()

    x, indices = wide_batch()
    result["wide"] = stats_of_all(x.chunk(2)[rank], indices.chunk(2)[rank], 5)[0]

    lowered = Model("online-closest")
    fully_shard(lowered, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    before = full(lowered.state_dict())
    try:
        lowered(batch(0, rank))
    except ValueError as error:
        result["lowered"] = str(error)
    after = full(lowered.state_dict())
    result["unchanged"] = all(torch.equal(after[key], before[key]) for key in before)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("gloo")
    run_processes(worker, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.multiproc
@needs_one_order
@pytest.mark.parametrize("kind", FITTED)
def test_all_processes_start_from_the_codebook_of_all_vectors(kind: str, results: list[dict[str, Any]]) -> None:
    for run, batches in enumerate(([batch(0, 0), batch(1, 0)], [batch(s, r) for r in range(2) for s in (1, 2)])):
        alone = Model(kind).quantizer
        alone.fit_codebook(batches)
        for key, want in alone.state_dict().items():
            for result in results:
                assert_bitwise_equal(result["fitted"][kind][f"{run}.{key}"], want)


@pytest.mark.multiproc
@pytest.mark.parametrize("how", ["fsdp root", "fsdp quantizer"])
@pytest.mark.parametrize("kind", SHARDED)
def test_shards_train_as_copies_do(kind: str, how: str, results: list[dict[str, Any]]) -> None:
    start = Model(kind).state_dict()
    name = next(key for key in start if key.endswith(("table.weight", "embedding.weight", "embed")))
    for result in results:
        got, want = result["trained"][kind, how], result["trained"][kind, "ddp"]
        assert not torch.equal(want[name], start[name])
        assert got.keys() == want.keys()
        for key, expected in want.items():
            assert_bitwise_equal(got[key], expected)


@pytest.mark.multiproc
def test_sums_of_float64_vectors_are_those_of_one_process(results: list[dict[str, Any]]) -> None:
    x, indices = wide_batch()
    for result in results:
        for got, want in zip(result["wide"], vqkernels.code_stats(x, indices, 5, groups=1), strict=True):
            assert_bitwise_equal(got, want)


@pytest.mark.multiproc
def test_precision_that_would_round_shards_is_refused(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert (
            result["lowered"]
            == "weight: expected FSDP to compute in torch.float32, as it is kept, got torch.bfloat16"
        )
        assert result["unchanged"]


@pytest.mark.multiproc
def test_every_projection_of_a_stack_is_used(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert all(bool(gradient.any()) for gradient in result["stack"].values())
        for name, gradient in results[0]["stack"].items():
            assert_bitwise_equal(result["stack"][name], gradient)


@pytest.mark.multiproc
def test_frozen_features_are_sent_once(results: list[dict[str, Any]]) -> None:
    """Those of the first process, in the first step; they stay in the state."""
    for result in results:
        assert not any("features" in name for name in result["sent"])
        want = torch.randn(16, 12, generator=torch.Generator().manual_seed(0))
        assert_bitwise_equal(result["frozen"]["table.features"], want)


def test_frozen_features_are_in_the_state_and_no_step_moves_them() -> None:
    """Under the name that checkpoints know, moved like a buffer, also where everything is unfrozen."""
    made = vqkernels.VectorQuantizer(8, 16, codebook=KINDS["frozen"](16))
    assert not any("features" in name for name, _ in [*made.named_buffers(), *made.named_parameters()])
    other = copy.deepcopy(made)
    other.table.features.zero_()
    assert other.load_state_dict(made.state_dict()) == ([], [])
    assert other.half().table.features.dtype == torch.float16
    assert other.to("meta").table.features.is_meta
    other = copy.deepcopy(made)
    short = made.state_dict()
    del short["table.features"]
    assert other.load_state_dict(short, strict=False).missing_keys == ["table.features"]
    with pytest.raises(RuntimeError, match=r"size mismatch for table.features"):
        other.load_state_dict(made.state_dict() | {"table.features": torch.zeros(16, 13)})
    other.load_state_dict({key: tensor.clone() for key, tensor in made.state_dict().items()}, assign=True)
    made.requires_grad_(False)
    made.requires_grad_(True)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.1)
    for _ in range(2):
        out = made(torch.randn(20, 8))
        out.loss.backward()
        optimizer.step()
    assert_bitwise_equal(made.table.features, other.table.features)
    assert not torch.equal(made.codebook, other.codebook)
