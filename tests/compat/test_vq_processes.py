"""``VectorQuantize`` in several processes. Oracle: one process that sees all batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes
from torch.nn.parallel import DistributedDataParallel

from vqkernels.compat.vector_quantize_pytorch import ResidualSimVQ, VectorQuantize
from vqkernels.testing import assert_bitwise_equal


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    quantizers = {name: build(name) for name in ("ema", "dead", "kmeans", "heads")}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    calls, running = dict.fromkeys(quantizers, 0), ""
    all_reduce = dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        if running:
            calls[running] += 1
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    for step in range(4):
        x = torch.randint(-4, 5, (1, 0 if step == 1 and rank else 20 + rank, 4), generator=batch_seed(step, rank))
        for name, quantizer in quantizers.items():
            running = name if step else ""  # the first step of "kmeans" is Lloyd's algorithm
            quantizer(x.float())
    states: dict[str, Any] = {name: quantizer.state_dict() for name, quantizer in quantizers.items()}
    running = ""
    torch.manual_seed(rank)
    stack = ResidualSimVQ(dim=4, num_quantizers=2, codebook_size=16, quantize_dropout=True)
    parallel = DistributedDataParallel(stack, find_unused_parameters=True)
    for step in range(2):
        quantized, _, losses = parallel(torch.randn(2, 10, 4), rand_quantize_dropout_fixed_seed=rank + step)
        (quantized.square().mean() + losses.sum()).backward()
    sent = list(parallel.named_module_buffers)
    torch.save(states | {"calls": calls, "sim": stack.state_dict(), "sent": sent}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def batch_seed(step: int, rank: int) -> torch.Generator:
    return torch.Generator().manual_seed(10 * step + rank)


def build(name: str) -> VectorQuantize:
    torch.manual_seed(3)
    options: dict[str, dict[str, Any]] = {
        "ema": {},
        "dead": {"threshold_ema_dead_code": 1},
        "kmeans": {"kmeans_init": True},
        "heads": {"kmeans_init": True, "heads": 2, "codebook_dim": 2, "separate_codebook_per_head": True},
    }
    return VectorQuantize(4, 16, decay=0.5, **options[name])


@pytest.mark.multiproc
def test_processes_synchronise_though_built_before_the_group(tmp_path: Path) -> None:
    run_processes(worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    # frozen codes are those of the first process, and sent no more than once
    torch.manual_seed(0)
    stack = ResidualSimVQ(dim=4, num_quantizers=2, codebook_size=16)
    for states in (first, second):
        assert states.pop("sent") == []
        found = states.pop("sim")
        assert found.keys() == stack.state_dict().keys()
        for number, layer in enumerate(stack.layers):
            assert_bitwise_equal(found[f"layers.{number}.frozen_codebook"], layer.frozen_codebook)
    # ranges and keys, then sums and vectors, whatever there is to tell
    assert first.pop("calls") == {"ema": 6, "dead": 6, "kmeans": 6, "heads": 6}
    for name, quantizer_state in first.items():
        for key, value in quantizer_state.items():
            assert_bitwise_equal(second[name][key], value)
    for kind in ("ema", "dead"):
        alone = build(kind)
        for step in range(4):
            sizes = (20, 0 if step == 1 else 21)
            parts = [torch.randint(-4, 5, (1, n, 4), generator=batch_seed(step, r)) for r, n in enumerate(sizes)]
            alone(torch.cat(parts, dim=1).float())
        for key, value in alone.state_dict().items():
            assert_bitwise_equal(first[kind][key], value)
