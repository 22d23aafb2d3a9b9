"""``SemanticClustering``. Oracles: SGC-VQGAN's equations written out, one process, unbroken training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import run_processes

import vqkernels
from vqkernels import SemanticClustering, VectorQuantizer, multilevel_nearest_code, semantic_reanchor_
from vqkernels.testing import assert_bitwise_equal


def build(seed: int = 3, **changes: Any) -> VectorQuantizer:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"num_classes": 5, "init_scale": 1.0, "decay": 0.8, **changes}
    return VectorQuantizer(8, 32, codebook=SemanticClustering(**options), usage_window=4)


def batch(step: int, n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(n, 8, generator=generator), torch.randint(-1, 5, (n,), generator=generator)


def bits(quantizer: VectorQuantizer) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in quantizer.state_dict().items()}


@pytest.mark.parametrize(
    ("sigma", "high"), [(0.5, 2), (0.3, 4), (0.1, 6), (0.0, 8), (0.51, 0)], ids=["25", "50", "75", "100", "none"]
)
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_lookup_adds_distances_of_high_and_low_levels(sigma: float, high: int, beta: float) -> None:
    quantizer = build(sigma=sigma, high_weight=beta).eval()
    assert quantizer.table.high == high
    x, _ = batch(0)
    codes = quantizer.codebook[0].double()
    apart = beta * torch.cdist(x.double()[:, :high], codes[:, :high]) if high else 0.0
    apart = apart + torch.cdist(x.double()[:, high:], codes[:, high:]) if high < 8 else apart
    assert torch.equal(quantizer(x).indices, apart.argmin(1))
    assert torch.equal(quantizer.encode(x), apart.argmin(1))


@pytest.mark.parametrize("anchor", ["closest", "probabilistic"])
def test_a_step_is_that_of_the_op(anchor: str) -> None:
    quantizer = build(anchor=anchor)
    codes, usage = quantizer.table.weight[0].detach().clone(), torch.zeros(32)
    for step in range(3):
        x, labels = batch(step)
        levels = [x[:, :2], x[:, 2:]], [codes[:, :2].contiguous(), codes[:, 2:].contiguous()]
        found = multilevel_nearest_code(*levels, [1.0, 1.0])
        classes = quantizer.table.classes.detach()[:, :2].contiguous()
        semantic_reanchor_(
            codes, usage, x, *found, labels, classes, decay=0.8, anchor=anchor, seed=torch.tensor(step + 1)
        )
        assert torch.equal(quantizer(x, labels=labels).indices, found.indices)
        assert_bitwise_equal(quantizer.table.weight[0].detach(), codes)
        assert_bitwise_equal(quantizer.table.usage[0], usage)


def test_codes_are_drawn_to_the_classes_they_stand_for() -> None:
    """One dead code, one vector: the target is a^2 of it and a (1 - a) of what the code means (Eq. 7)."""
    quantizer = VectorQuantizer(
        4, 2, codebook=SemanticClustering(num_classes=2, levels=2, label="histogram", decay=0.5)
    )
    with torch.no_grad():
        quantizer.table.weight.copy_(torch.tensor([[[0.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]]))
        quantizer.table.classes.copy_(torch.tensor([[1.0, 2.0, 0.0, 0.0], [3.0, -4.0, 0.0, 0.0]]))
        quantizer.table.usage.copy_(torch.tensor([[0.0, 0.05]]))  # half its share after this step: a = exp(-10 k)
    x = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.3, 0.1, 0.0, 0.2], [0.2, 0.2, 0.2, 0.2]])
    quantizer(x, labels=torch.tensor([0, 1, -1]))
    histogram = quantizer.table.histogram
    # of the two vectors with a class one is of each; the update keeps half of what was, which was nothing
    assert histogram.tolist() == [[0.25, 0.25], [0.0, 0.0]]
    a = torch.exp(-quantizer.table.usage * 2 * 10 / 0.5 - 1e-3)[0]
    moved = quantizer.table.weight[0].detach()
    assert a[1] > 0.3
    drawn = [((1 - a[1]) * 9 + a[1] * vector) for vector in x]
    # the second code has no history: its anchor stands for its meaning
    assert min((moved[1] - expected).abs().max() for expected in drawn) < 1e-5


def test_gradients_reach_codes_and_classes_through_what_was_chosen() -> None:
    quantizer = build()
    x, labels = batch(0)
    out = quantizer(x.requires_grad_(), labels=labels)
    chosen = quantizer.decode(out.indices)  # [N, D]
    keep = labels >= 0
    similarity = chosen[keep] @ quantizer.table.classes.mT
    loss = out.loss + torch.nn.functional.cross_entropy(similarity, labels[keep])
    loss.backward()
    used = torch.zeros(32, dtype=torch.bool).index_fill(0, out.indices, True)
    assert torch.equal(quantizer.table.weight.grad[0].abs().sum(1) > 0, used)
    assert bool(quantizer.table.classes.grad.any())


@pytest.mark.parametrize("label", ["anchor", "histogram"])
def test_training_resumes_to_the_same_bits(label: str) -> None:
    whole = build(label=label)
    for step in range(6):
        x, labels = batch(step)
        whole(x, labels=labels)
        if step == 2:
            saved = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    resumed = build(seed=8, label=label)
    resumed.load_state_dict(saved)
    for step in range(3, 6):
        x, labels = batch(step)
        resumed(x, labels=labels)
    assert bits(resumed) == bits(whole)


@pytest.mark.parametrize("label", ["anchor", "histogram"])
def test_vectors_that_take_no_part_leave_the_state_alone(label: str) -> None:
    """NaN and masked vectors, whatever their class; a class of none counts for no class."""
    x, labels = batch(0)
    plain, spoiled = build(label=label), build(label=label)
    plain(x, labels=labels)
    more = torch.cat([x, torch.full((2, 8), float("nan")), torch.randn(2, 8)])
    mask = torch.arange(64) < 62
    spoiled(more, mask=mask, labels=torch.cat([labels, torch.tensor([0, 1, 2, 3])]))
    assert bits(plain) == bits(spoiled)
    before = bits(plain)
    plain(torch.full((3, 8), float("nan")), labels=torch.tensor([0, 1, 2]))
    assert bits(plain) == before
    void = build(label=label)
    void(x, labels=torch.full((60,), -1))
    none = build(label=label)
    none(x)
    assert bits(void) == bits(none)
    if label == "histogram":
        assert not void.table.histogram.any()


def worker(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
    for name, options in KINDS.items():
        quantizer = build(**options)
        for step in range(4):
            x, labels = batch(step)
            quantizer(x[rank::world], labels=labels[rank::world])
        torch.save(quantizer.state_dict(), f"{folder}/{name}_{world}_{rank}.pt")
    dist.destroy_process_group()


KINDS: dict[str, dict[str, Any]] = {
    "closest": {"anchor": "closest"},
    "drawn": {"anchor": "probabilistic"},
    "histogram": {"label": "histogram", "sigma": 0.3},
}


@pytest.mark.multiproc
def test_the_codebook_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    alone = {}
    for name, options in KINDS.items():
        quantizer = build(**options)
        for step in range(4):
            x, labels = batch(step)
            quantizer(x, labels=labels)
        alone[name] = quantizer.state_dict()
    for world in (2, 4):
        run_processes(worker, args=(world, str(tmp_path)), nprocs=world)
        for name, expected in alone.items():
            for rank in range(world):
                state = torch.load(tmp_path / f"{name}_{world}_{rank}.pt", weights_only=True)
                for key, tensor in expected.items():
                    assert_bitwise_equal(state[key], tensor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, r"num_classes: expected an integer in \[1, 2\^31\), got 0"),
        ({"num_classes": 2, "anchor": "random"}, "anchor: expected one of closest, probabilistic, got 'random'"),
        ({"num_classes": 2, "label": "majority"}, "label: expected one of anchor, histogram, got 'majority'"),
        ({"num_classes": 2, "high_weight": -1.0}, r"high_weight: expected a number in \[0, 3.40282e\+38\], got -1.0"),
        (
            {"num_classes": 2, "level_weights": (0.1, 0.9), "levels": 2},
            "level_weights: expected 2 numbers >= 0",
        ),
        ({"num_classes": 2, "level_weights": (0.9, 0.1)}, "level_weights: expected 4 numbers"),
        ({"num_classes": 2, "sigma": 0.0, "high_weight": 0.0}, "high_weight: expected more than 0 where all levels"),
    ],
)
def test_a_description_that_is_none_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SemanticClustering(**options)


def test_what_does_not_go_together_is_refused() -> None:
    kind = SemanticClustering(num_classes=2)
    for options in ({"groups": 2}, {"metric": "cosine"}):
        with pytest.raises(ValueError, match="codebook: expected one group and metric='l2' with SemanticClustering"):
            VectorQuantizer(8, 4, codebook=kind, **options)
    with pytest.raises(ValueError, match="levels: expected a divisor of the code dimension, got 4 of 6"):
        VectorQuantizer(6, 4, codebook=kind)
    with pytest.raises(ValueError, match="labels: expected None but for a codebook with SemanticClustering"):
        VectorQuantizer(8, 4)(torch.zeros(3, 8), labels=torch.zeros(3, dtype=torch.int64))
    quantizer = VectorQuantizer(8, 4, codebook=kind)
    before = bits(quantizer)
    with pytest.raises(IndexError, match=r"labels: expected values in \[-1, 2\), got 2"):
        quantizer(torch.zeros(3, 8), labels=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="labels"):
        quantizer(torch.zeros(3, 8), labels=torch.tensor([0, 1]))
    assert bits(quantizer) == before


def test_its_name_is_public() -> None:
    assert vqkernels.nn.SemanticClustering is vqkernels.SemanticClustering
