"""However images are divided among batches, processes and interrupted runs, the scores are the same."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
import torch
from needs import needs_one_order
from processes import run_processes
from torch import distributed

from models.metrics.accumulator import Accumulator, ImageMeans
from models.metrics.codes import CodeCounts
from models.metrics.frechet import FrechetDistance, InceptionScore, PrecisionRecall, Similarity
from models.metrics.pixel import Psnr
from models.metrics.semantic import CodeClasses

IMAGES = 23


def fresh() -> dict[str, Accumulator]:
    return {
        "psnr": Psnr(),
        "means": ImageMeans("lpips"),
        "codes": CodeCounts(2, 8),
        "frechet": FrechetDistance(3),
        "cosine": Similarity(),
        "inception": InceptionScore(4, splits=3),
        "coverage": PrecisionRecall(),
        "classes": CodeClasses(8, 4),
    }


def feed(metrics: dict[str, Accumulator], numbers: torch.Tensor) -> None:
    """Everything about these images; the same numbers in every process."""
    generator = torch.Generator().manual_seed(0)
    images, wrong = torch.rand(2, IMAGES, 3, 4, 4, generator=generator).double()
    real, fake = torch.randn(2, IMAGES, 3, generator=generator)
    logits = torch.randn(IMAGES, 4, generator=generator)
    codes = torch.randint(8, (IMAGES, 2, 2, 2), generator=generator)
    labels = torch.randint(5, (IMAGES, 2, 2, 4), generator=generator)
    metrics["psnr"].update(numbers, images[numbers], wrong[numbers])
    metrics["means"].update(numbers, lpips=logits[numbers, 0])
    metrics["codes"].update(codes[numbers])
    metrics["frechet"].update(real[numbers], fake[numbers])
    metrics["cosine"].update(numbers, real[numbers], fake[numbers])
    metrics["inception"].update(numbers, logits[numbers])
    metrics["coverage"].update(numbers, real[numbers], fake[numbers])
    metrics["classes"].update(codes[numbers][..., 0], labels[numbers])


def results(metrics: dict[str, Accumulator]) -> dict[str, float]:
    return {f"{name}.{key}": value for name, metric in metrics.items() for key, value in metric.compute().items()}


@pytest.fixture(scope="module")
def wanted() -> dict[str, float]:
    metrics = fresh()
    feed(metrics, torch.arange(IMAGES))
    return results(metrics)


def check(found: dict[str, float], wanted: dict[str, float]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        sums = name.startswith(("frechet", "inception", "cosine"))  # float64, added in another order
        assert found[name] == (pytest.approx(value, rel=1e-11) if sums else value), name


def test_batches_do_not_matter(wanted: dict[str, float]) -> None:
    metrics = fresh()
    for numbers in torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1)).split(5):
        feed(metrics, numbers)
    check(results(metrics), wanted)


def test_interruptions_do_not_matter(wanted: dict[str, float], tmp_path: Path) -> None:
    metrics = fresh()
    for numbers in torch.arange(IMAGES).split(6):
        feed(metrics, numbers)
        torch.save({name: metric.state() for name, metric in metrics.items()}, tmp_path / "state.pt")
        states = torch.load(tmp_path / "state.pt", weights_only=True)
        metrics = fresh()
        for name, metric in metrics.items():
            metric.restore(states[name])
    check(results(metrics), wanted)


def test_a_state_is_a_copy() -> None:
    counts = CodeCounts(1, 4)
    state = counts.state()
    counts.update(torch.tensor([1]))
    assert state["counts"].sum() == 0


def test_a_state_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^state: expected \['counts'\] for CodeCounts, got \['error'\]$"):
        CodeCounts(1, 4).restore({"error": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"^state: expected \['error', 'error_luma', 'index'\] for Psnr, got \['x'\]$"
    ):
        Psnr().add({"x": torch.zeros(1)})


def test_means_of_nothing_are_not_a_number() -> None:
    assert math.isnan(ImageMeans("lpips").compute()["lpips"])


def _process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    metrics = fresh()
    # the last process sees nothing
    for numbers in torch.arange(rank, IMAGES, world - 1).split(4) if rank < world - 1 else ():
        feed(metrics, numbers)
    for metric in metrics.values():
        metric.merge_across_processes()
    torch.save(results(metrics), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.multiproc
@needs_one_order
def test_processes_do_not_matter(wanted: dict[str, float]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_processes(_process, args=(3, folder), nprocs=3)
        found = [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(3)]
    check(found[0], wanted)
    assert found[1] == found[0]
    assert found[2] == found[0]
