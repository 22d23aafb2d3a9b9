"""What taming's and LlamaGen's quantizers get wrong, and the adapters do not; see ``vqkernels/compat/README.md``.

Oracles: exact arithmetic, plain torch, or the adapter itself under conditions that must not matter.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from needs import needs_extension
from processes import run_processes
from rounding import farthest, in_their_last_bits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from vqkernels.compat import llamagen, taming
from vqkernels.nn import scores
from vqkernels.testing import (
    assert_bitwise_equal,
    assert_exact_lookup,
    assert_within_budget,
    peak_memory_growth,
)

NEAREST: dict[str, Callable[..., torch.nn.Module]] = {
    "taming VectorQuantizer": lambda k=32, d=8: taming.VectorQuantizer(k, d, 0.25),
    "taming VectorQuantizer2": lambda k=32, d=8: taming.VectorQuantizer2(k, d, 0.25, legacy=False),
    "taming EMAVectorQuantizer": lambda k=32, d=8: taming.EMAVectorQuantizer(k, d, 0.25, decay=0.9),
    "llamagen": lambda k=32, d=8: llamagen.VectorQuantizer(k, d, 0.25, 0.0, False, True),
    "llamagen, unit, entropy": lambda k=32, d=8: llamagen.VectorQuantizer(k, d, 0.25, 0.1, True, True),
}
ALL = {**NEAREST, "taming GumbelQuantize": lambda k=32, d=8: taming.GumbelQuantize(d, d, k, kl_weight=0.1)}


def run(quantizer: torch.nn.Module, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Value, loss and flat indices of a training step."""
    z_q, loss, (*_, indices) = quantizer(z)
    total = loss if isinstance(loss, torch.Tensor) else sum(loss[:3])
    return z_q, total, indices.reshape(-1)


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert_bitwise_equal(actual[name], value)


@pytest.mark.parametrize("name", ["taming VectorQuantizer", "taming VectorQuantizer2", "llamagen"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_nearest_code_is_found_far_from_the_origin(name: str, offset: float) -> None:
    quantizer = NEAREST[name](512, 16)
    codes = torch.randn(512, 16) + offset
    with torch.no_grad():
        quantizer.embedding.weight.copy_(codes)
    z = torch.randn(2, 16, 16, 16) + offset
    rows = z.movedim(1, -1).reshape(-1, 16)
    indices = run(quantizer, z)[2]
    distance = (rows.double() - codes[indices].double()).square().sum(1).float()
    assert_exact_lookup(rows, codes, indices, distance)


@pytest.mark.parametrize("name", NEAREST)
def test_the_value_is_the_code_to_the_bit(name: str) -> None:
    quantizer = NEAREST[name]().eval()
    z = torch.randn(2, 8, 3, 5)
    z_q, _, indices = quantizer(z)[0], None, quantizer(z)[2][-1]
    shape = (2, 8, 3, 5) if "llamagen" in name else (2, 3, 5, 8)
    assert_bitwise_equal(quantizer.get_codebook_entry(indices, shape), z_q)


@pytest.mark.parametrize("name", ALL)
def test_batches_that_are_not_finite_are_no_steps(name: str) -> None:
    """Oracle: the clean steps alone."""
    clean, disturbed = (ALL[name]() for _ in range(2))
    disturbed.load_state_dict(clean.state_dict())
    optimizers = [torch.optim.SGD([*q.parameters(), torch.zeros(1)], lr=0.1) for q in (clean, disturbed)]
    for step in range(12):
        z = torch.randn(2, 8, 3, 5)
        if step % 4 == 1:
            bad = torch.full_like(z, [torch.nan, torch.inf, -torch.inf][step // 4]).requires_grad_()
            z_q, loss, _ = run(disturbed, bad)
            (z_q.sum() + loss).backward()
            optimizers[1].step()
            optimizers[1].zero_grad()
            assert loss.item() == 0
            assert z_q.isfinite().all()
            assert bad.grad is not None
            assert not bad.grad.any()
            continue
        for quantizer, optimizer in zip((clean, disturbed), optimizers, strict=True):
            torch.manual_seed(step)
            z_q, loss, _ = run(quantizer, z.clone().requires_grad_())
            (z_q.square().mean() + loss).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same(state(disturbed), state(clean))


@pytest.mark.parametrize("name", NEAREST)
def test_a_vector_that_is_not_finite_spoils_no_other(name: str) -> None:
    """Oracle: the map without its last column."""
    with_it, without = (NEAREST[name]() for _ in range(2))
    with_it.load_state_dict(without.state_dict())
    z = torch.randn(1, 8, 1, 40)
    bad = torch.cat([z, torch.full((1, 8, 1, 1), torch.nan)], dim=3).requires_grad_()
    z.requires_grad_()
    results = [run(with_it, bad), run(without, z)]
    for z_q, loss, _ in results:
        (z_q[..., :40].square().sum() + loss).backward()
    assert_bitwise_equal(results[0][0][..., :40], results[1][0])
    assert torch.equal(results[0][2][:40], results[1][2])
    assert results[0][2][40] == 0
    torch.testing.assert_close(results[0][1], results[1][1])
    assert bad.grad is not None
    assert z.grad is not None
    torch.testing.assert_close(bad.grad[..., :40], z.grad)
    assert not bad.grad[..., 40].any()
    for key, value in state(without).items():
        torch.testing.assert_close(with_it.state_dict()[key], value)


@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(name: str) -> None:
    with_it, without = (ALL[name]() for _ in range(2))
    with_it.load_state_dict(without.state_dict())
    z = torch.randn(2, 8, 6, 6, dtype=torch.bfloat16)
    outcomes = []
    for quantizer, enabled in ((with_it, True), (without, False)):
        torch.manual_seed(3)
        x = z.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            z_q, loss, indices = run(quantizer, x)
        assert loss.dtype == torch.float32
        (z_q.float().square().mean() + loss).backward()
        outcomes.append([z_q, loss, indices, x.grad, *(p.grad for p in quantizer.parameters() if p.requires_grad)])
    for got, want in zip(*outcomes, strict=True):
        assert_bitwise_equal(got, want)
    assert_same(state(with_it), state(without))


@pytest.mark.parametrize("name", ALL)
def test_a_module_in_half_precision_trains(name: str) -> None:
    quantizer = ALL[name]().bfloat16()
    z = torch.randn(2, 8, 6, 6, dtype=torch.bfloat16, requires_grad=True)
    before = state(quantizer)
    z_q, loss, indices = run(quantizer, z)
    assert z_q.dtype == torch.bfloat16
    (z_q.square().mean() + loss).backward()
    assert all(p.grad is not None and p.grad.any() for p in quantizer.parameters() if p.requires_grad)
    if name == "taming EMAVectorQuantizer":
        count = torch.bincount(indices, minlength=32)
        assert_bitwise_equal(
            quantizer.embedding.cluster_size, torch.lerp(torch.ones(32), count.float(), 0.1).bfloat16()
        )
        assert not torch.equal(quantizer.embedding.weight, before["embedding.weight"])
    if "llamagen" in name:
        # integers up to 2^16, which bfloat16 would round
        assert torch.equal(quantizer.codebook_used[-72:].long(), indices)


@pytest.mark.parametrize("name", ALL)
def test_a_training_step_never_asks_for_the_value_of_a_tensor(name: str) -> None:
    # a fake tensor has no values: .item(), bool(), nonzero() on one raise
    with FakeTensorMode(allow_non_fake_inputs=True):
        quantizer = ALL[name]()
        z = torch.randn(2, 8, 3, 5, requires_grad=True)
        z_q, loss, indices = run(quantizer, z)
        (z_q.sum() + loss).backward()
        assert z_q.shape == z.shape
        assert indices.shape == (30,)


@pytest.mark.parametrize(
    "name",
    [
        "taming EMAVectorQuantizer",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("taming VectorQuantizer2", "llamagen")),
    ],
)
def test_one_graph_serves_every_batch_size(name: str) -> None:
    eager, compiled = (NEAREST[name]() for _ in range(2))
    compiled.load_state_dict(eager.state_dict())
    graph = torch.compile(compiled, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3):
        z = torch.randn(batch, 8, 3, 5)
        for got, want in zip(run(graph, z), run(eager, z), strict=True):
            assert_bitwise_equal(got, want)
    assert_same(state(compiled), state(eager))


def test_renaming_leaves_its_argument_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "used.npy", np.array([3, 1]))
    quantizer = taming.VectorQuantizer2(8, 4, 0.25, remap=str(tmp_path / "used.npy"), unknown_index="extra")
    positions = torch.tensor([[0, 1, 2]])
    assert quantizer.unmap_to_all(positions).tolist() == [[3, 1, 3]]
    assert positions.tolist() == [[0, 1, 2]]


def test_indices_are_decoded_as_they_were_returned(tmp_path: Path) -> None:
    """Also where the original wants another shape, or has no decoder."""
    np.save(tmp_path / "used.npy", np.arange(32))
    remap = {"remap": str(tmp_path / "used.npy")}
    for quantizer in (
        taming.VectorQuantizer(32, 8, 0.25),
        taming.VectorQuantizer2(32, 8, 0.25, **remap),
        taming.VectorQuantizer2(32, 8, 0.25, sane_index_shape=True, **remap),
        taming.EMAVectorQuantizer(32, 8, 0.25, **remap),
        taming.GumbelQuantize(8, 8, 32, **remap),
    ):
        z_q, _, (*_, indices) = quantizer.eval()(torch.randn(2, 8, 3, 5))
        assert_bitwise_equal(quantizer.get_codebook_entry(indices, (2, 3, 5, 8)), z_q)


def test_remap_reaches_the_ema_quantizer(tmp_path: Path) -> None:
    np.save(tmp_path / "used.npy", np.array([5, 2, 9]))
    quantizer = taming.EMAVectorQuantizer(16, 4, 0.25, remap=str(tmp_path / "used.npy"), unknown_index="extra").eval()
    codes = quantizer.embedding.weight.detach()[[2, 9, 7]]
    assert quantizer(codes.T.reshape(1, 4, 1, 3))[2][2].tolist() == [1, 2, 3]


def test_codes_without_vectors_do_not_leave() -> None:
    """Oracle: running means, of which a code that gets nothing keeps its own."""
    quantizer = taming.EMAVectorQuantizer(64, 4, 0.25, eps=1e-9)
    before = quantizer.embedding.weight.clone()
    indices = quantizer(torch.randn(1, 4, 1, 5))[2][2]
    unused = torch.ones(64, dtype=torch.bool).index_fill_(0, indices, False)
    torch.testing.assert_close(quantizer.embedding.weight[unused], before[unused], rtol=1e-5, atol=0)
    assert not torch.equal(quantizer.embedding.weight[~unused], before[~unused])


@pytest.mark.parametrize("training", [True, False])
def test_gumbel_codes_follow_the_softmax(training: bool) -> None:
    """Oracle: the expected counts, within five standard deviations each."""
    n, k = 20000, 6
    quantizer = taming.GumbelQuantize(4, 3, k).train(training)
    z = torch.randn(1, 4, 1, 1)
    p = quantizer.proj(z).softmax(dim=1).flatten().double()
    indices = quantizer(z.expand(1, 4, 100, 200))[2][2]
    count = torch.bincount(indices.flatten(), minlength=k)
    assert p.max() < 0.9
    assert ((count - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt()).all()


def test_a_gumbel_code_is_that_of_its_soft_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where scores are made in pieces. Oracle: at temperature 0 the mean of all codes is the one drawn."""
    monkeypatch.setattr(scores, "_PAIRS", 200)
    quantizer = taming.GumbelQuantize(4, 3, 32, straight_through=False, temp_init=1e-4)
    z_q, _, (*_, indices) = quantizer(torch.randn(2, 4, 5, 6))
    codes = quantizer.embed(indices).movedim(-1, 1)
    # two scores may be nearly equal
    assert torch.isclose(z_q, codes, atol=1e-4).all(dim=1).sum() >= 59


@pytest.mark.parametrize("straight_through", [True, False])
def test_a_vector_that_is_not_finite_gets_the_first_code(straight_through: bool) -> None:
    """Oracle: all others get the one code that is likely, and they alone move it."""
    quantizer = taming.GumbelQuantize(4, 3, 8, straight_through=straight_through)
    with torch.no_grad():
        # no noise gets past this
        quantizer.proj.bias.copy_(1e3 * (torch.arange(8) == 5))
    z = torch.randn(1, 4, 1, 7)
    bad = z.clone()
    bad[..., 3] = torch.nan
    bad.requires_grad_()
    z_q, diff, (*_, indices) = quantizer(bad)
    assert indices.flatten().tolist() == [5, 5, 5, 0, 5, 5, 5]
    assert_bitwise_equal(z_q[0, :, 0, 3], quantizer.embed.weight[0])
    (z_q.sum() + diff).backward()
    assert bad.grad is not None
    assert not bad.grad[..., 3].any()
    expected = 6.0 * (torch.arange(8) == 5)[:, None].expand(8, 3)
    torch.testing.assert_close(quantizer.embed.weight.grad, expected)


def test_the_usage_window_takes_any_batch() -> None:
    quantizer = llamagen.VectorQuantizer(64, 4, 0.25, 0.0, False, True)
    # nothing seen yet is nothing in use
    codes = quantizer.embedding.weight.detach()

    def usage(indices: torch.Tensor) -> float:
        return quantizer(codes[indices].T.reshape(1, 4, 1, -1))[1][3].item()

    assert usage(torch.tensor([5, 7, 5])) == 2 / 64
    assert usage(torch.arange(9, 20).repeat(6554)) == 11 / 64  # longer than the window
    assert usage(torch.tensor([1])) == 12 / 64
    assert quantizer.codebook_used.grad_fn is None
    assert not quantizer.codebook_used.requires_grad
    assert quantizer.codebook_used[-1] == 1


def test_no_entropy_is_computed_at_weight_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(llamagen, "LLAMAGEN_ENTROPY", refuse)
    z = torch.randn(1, 4, 2, 2)
    assert llamagen.VectorQuantizer(16, 4, 0.25, 0.0, True, False)(z)[1][2].item() == 0
    with pytest.raises(AssertionError, match="computed"):
        llamagen.VectorQuantizer(16, 4, 0.25, 0.1, True, False)(z)


def test_a_zero_vector_has_a_finite_gradient() -> None:
    quantizer = llamagen.VectorQuantizer(16, 4, 0.25, 0.1, True, False)
    z = torch.zeros(1, 4, 2, 2, requires_grad=True)
    z_q, loss, _ = run(quantizer, z)
    (z_q.sum() + loss).backward()
    assert z.grad is not None
    assert not z.grad.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: taming.VectorQuantizer2(8, 4, 0.25)(torch.zeros(1, 5, 2, 2)),
            r"z: expected vectors of dim=4 along dimension 1, got shape",
        ),
        (lambda: taming.VectorQuantizer2(8, 4, 0.25)(torch.zeros(1, 4, 2, 2), temp=0.5), "temp: expected None"),
        (
            lambda: taming.VectorQuantizer2(8, 4, 0.25)(torch.zeros(1, 4, 2, 2), return_logits=True),
            "return_logits: expected False",
        ),
        (
            lambda: taming.GumbelQuantize(5, 4, 8)(torch.zeros(1, 4, 2, 2)),
            r"z: expected vectors of dim=5 along dimension 1, got",
        ),
        (lambda: taming.EmbeddingEMA(8, 4).weight_update(9), "num_tokens: expected 8, got 9"),
    ],
)
def test_what_does_not_fit_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def ema_step(rank: int, processes: int) -> dict[str, torch.Tensor]:
    """Three steps of an EMA quantizer on this process's share of uneven batches; the first process may have none."""
    quantizer = taming.EMAVectorQuantizer(32, 8, 0.25, decay=0.5)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.randn(32, 8, generator=generator))
        quantizer.embedding.embed_avg.copy_(quantizer.embedding.weight)
    for cut in (0, 3, 7):
        z = torch.randn(10, 8, 2, 3, generator=generator)
        quantizer(z if processes == 1 else (z[:cut], z[cut:])[rank])
    return state(quantizer)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(ema_step(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.multiproc
def test_processes_keep_one_ema_codebook(tmp_path: Path) -> None:
    """Oracle: one process that sees the batches of both."""
    run_processes(worker, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{rank}.pt", weights_only=True), ema_step(0, 1))


@pytest.mark.parametrize("l2_norm", [False, True])
def test_the_entropy_loss_has_the_gradient_of_its_formula(l2_norm: bool) -> None:
    """Oracle: the softmax over all codes in float64; the budget is the error of the same in float32."""

    def entropy(z: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        rows = z.movedim(1, -1).reshape(-1, 4)
        rows, codes = (F.normalize(t, dim=1) for t in (rows, codes)) if l2_norm else (rows, codes)
        log_p = (-(rows[:, None] - codes).square().sum(2) / 0.01).log_softmax(1)
        mean = log_p.exp().mean(0)
        return -(log_p.exp() * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()

    quantizer = llamagen.VectorQuantizer(24, 4, 0.25, 1.0, l2_norm, False)
    z = 0.3 * torch.randn(2, 4, 5, 5)
    codes = quantizer.embedding.weight.detach() * (1 if l2_norm else 8)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(codes)
    leaf = z.clone().requires_grad_()
    quantizer(leaf)[1][2].backward()
    gradients = [leaf.grad, quantizer.embedding.weight.grad]

    def wanted(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        return torch.autograd.grad(entropy(*leaves), leaves)

    truth = wanted(z.double(), codes.double())
    runs = [wanted(*moved) for moved in in_their_last_bits([z, codes])]
    for got, exact, *plain in zip(gradients, truth, *runs, strict=True):
        assert got is not None
        assert_within_budget(got, exact, farthest(exact, plain), factor=4.0)


MEMORY = """
import torch
from vqkernels.compat import llamagen, taming
torch.set_num_threads(2)
build = lambda k: {build}
def step(quantizer, n):
    z_q, loss, _ = quantizer(torch.randn(1, 8, 1, n, requires_grad=True))
    (z_q.square().mean() + (loss if isinstance(loss, torch.Tensor) else sum(loss[:3]))).backward()
step(build(300), 600)
large = build({k})
"""
SIZES = {
    "taming.EMAVectorQuantizer(k, 8, 0.25)": (16384, 100000),
    "taming.GumbelQuantize(8, 8, k)": (4096, 65536),
    "llamagen.VectorQuantizer(k, 8, 0.25, 0.1, True, True)": (4096, 65536),
}


@needs_extension
@pytest.mark.parametrize(
    "build", [pytest.param(build, marks=pytest.mark.slow) if "Gumbel" in build else build for build in SIZES]
)
def test_a_training_step_needs_no_matrix_of_vectors_and_codes(build: str) -> None:
    n, k = SIZES[build]
    # two dozen float32 copies of vectors and codes, as many pieces of a million pairs, and what has a fixed size
    budget = 24 * (4 * (n + k) * 8 + (4 << 20)) + (32 << 20)
    assert 5 * budget < 4 * n * k
    assert peak_memory_growth(MEMORY.format(build=build, k=k), f"step(large, {n})") < budget
