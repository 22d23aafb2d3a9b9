"""The quantizers of encodec beside the originals, and what the originals get wrong.

Oracles: the original in float64 (:mod:`vqp_oracle`), plain torch in float64, one process that sees all batches.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from needs import encodec
from processes import run_processes
from vqp_oracle import assert_trains_alike

from vqkernels.compat.encodec.quantization import ResidualVectorQuantizer
from vqkernels.compat.encodec.quantization.core_vq import (
    EuclideanCodebook,
    ResidualVectorQuantization,
    VectorQuantization,
)
from vqkernels.testing import assert_bitwise_equal, assert_exact_lookup, assert_within_budget, peak_memory_growth

core_vq, vq = encodec("core_vq"), encodec("vq")

SETTLED: dict[str, Any] = {"kmeans_init": False, "threshold_ema_dead_code": 0}


def settle(module: torch.nn.Module) -> torch.nn.Module:
    """Give every codebook a state as after some training."""
    for codebook in module.modules():
        if hasattr(codebook, "embed_avg"):
            codebook.embed.normal_()
            codebook.cluster_size.uniform_(3, 9)
            codebook.embed_avg.copy_(codebook.embed * codebook.cluster_size[:, None])
    return module


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "default": ("VectorQuantization", {}, {}),
    "projection": ("VectorQuantization", {"codebook_dim": 4}, {}),
    "wider codes": ("VectorQuantization", {"codebook_dim": 12}, {}),
    "no commitment": ("VectorQuantization", {"commitment_weight": 0.0}, {}),
    "decay": ("VectorQuantization", {"decay": 0.8, "epsilon": 1e-3, "commitment_weight": 0.25}, {}),
    "no dead codes": ("VectorQuantization", {"threshold_ema_dead_code": 1}, {}),
    "stack": ("ResidualVectorQuantization", {"num_quantizers": 3}, {}),
    "stack, some": ("ResidualVectorQuantization", {"num_quantizers": 3}, {"n_q": 2}),
    "stack, projection": ("ResidualVectorQuantization", {"num_quantizers": 2, "codebook_dim": 4}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_trains_like_the_original(case: str) -> None:
    """Outputs, losses, gradients and buffers of three steps and an evaluation; checkpoints both ways, strict."""
    name, arguments, options = CASES[case]
    torch.manual_seed(3)
    arguments = {"dim": 8, "codebook_size": 16, **SETTLED, **arguments}
    theirs = settle(getattr(core_vq, name)(**arguments))
    ours = globals()[name](**arguments)
    assert_trains_alike(theirs, ours, (2, 8, 40), options)


def test_a_codebook_trains_like_the_original() -> None:
    torch.manual_seed(3)
    theirs = settle(core_vq.EuclideanCodebook(8, 16, **SETTLED))
    ours = EuclideanCodebook(8, 16, **SETTLED)
    ours.load_state_dict(theirs.state_dict())
    truth, x = copy.deepcopy(theirs).double(), torch.randn(2, 40, 8)
    for _ in range(3):
        (value, index), (plain, plain_index), (exact, _) = ours(x), theirs(x), truth(x.double())
        assert_bitwise_equal(index, plain_index)
        assert_within_budget(value, exact, plain)
    for name, want in truth.state_dict().items():
        assert_within_budget(ours.state_dict()[name], want, theirs.state_dict()[name])


@pytest.mark.parametrize("bandwidth", [None, 0.0, 0.1, 1.0, 1.2, 2.0])
def test_bandwidths(bandwidth: float | None) -> None:
    """Oracle: the original, on numbers that neither rounds."""
    options: dict[str, Any] = {"dimension": 8, "n_q": 4, "bins": 32}
    theirs = settle(vq.ResidualVectorQuantizer(**options, kmeans_init=False)).eval()
    ours = ResidualVectorQuantizer(**options)
    for codebook in (layer._codebook for layer in theirs.vq.layers):
        codebook.embed.copy_(torch.randint(-9, 9, codebook.embed.shape))
    ours.load_state_dict(theirs.state_dict())
    ours.eval()
    x = torch.randint(-9, 9, (2, 8, 20)).float()
    got, want = (module(x, sample_rate=100, bandwidth=bandwidth) for module in (ours, theirs))
    for name in ("quantized", "codes", "bandwidth", "penalty"):
        assert_bitwise_equal(getattr(got, name), getattr(want, name))
    assert got.metrics == {}
    codes = ours.encode(x, 100, bandwidth)
    assert_bitwise_equal(codes, theirs.encode(x, 100, bandwidth))
    assert_bitwise_equal(ours.decode(codes), theirs.decode(codes))
    assert_bitwise_equal(ours.decode(codes), got.quantized)


def test_a_bandwidth_past_the_last_layer_is_that_of_all_layers() -> None:
    ours = ResidualVectorQuantizer(dimension=8, n_q=2, bins=32).eval()
    result = ours(torch.randn(1, 8, 20), sample_rate=100, bandwidth=24.0)
    assert float(result.bandwidth) == 2 * 5 * 100 / 1000
    assert len(result.codes) == 2


def test_k_means_like_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the original's Lloyd iterations in float64, from the vectors that were drawn here."""
    x = torch.randn(1, 300, 8)
    ours = EuclideanCodebook(8, 16, kmeans_init=True, kmeans_iters=4, threshold_ema_dead_code=0)
    start = copy.deepcopy(ours)
    start.kmeans_iters = 0
    torch.manual_seed(5)
    start.init_embed_(x)
    monkeypatch.setattr(core_vq, "sample_vectors", lambda samples, num: start.embed.to(samples.dtype))
    torch.manual_seed(5)
    ours.init_embed_(x)
    exact, count = core_vq.kmeans(x[0].double(), 16, 4)
    plain, _ = core_vq.kmeans(x[0], 16, 4)
    assert bool((count > 0).all())
    assert_within_budget(ours.embed, exact, plain)
    assert_bitwise_equal(ours.cluster_size, count.float())
    assert float(ours.inited) == 1
    # the sums belong to the means, so that the first step leaves them where they are
    assert_bitwise_equal(ours.embed_avg, ours.embed * ours.cluster_size[:, None])


def test_codes_stay_where_k_means_put_them() -> None:
    """Oracle: the means of the clusters in float64. The original forgets to multiply them by their sizes."""
    ours, theirs = (module(8, 16, kmeans_iters=50) for module in (VectorQuantization, core_vq.VectorQuantization))
    x = torch.randn(4, 8, 200)
    index = ours(x)[1].flatten()
    rows = x.transpose(1, 2).reshape(-1, 8).double()
    means = torch.stack([rows[index == code].mean(0) for code in range(16)])
    # of smoothing, which divides by (size + eps) / (1 + K eps / N) instead of size, and of rounding a few times
    eps, smallest = ours._codebook.epsilon, int(index.bincount().min())
    relative = eps / smallest + 16 * eps / len(rows) + 8 * torch.finfo(torch.float32).eps
    assert bool(((ours.codebook - means).abs() <= relative * means.abs().amax()).all())
    theirs(x)
    assert float(theirs.codebook.abs().max()) < float(means.abs().max()) / 10


def test_k_means_waits_for_training_and_for_vectors() -> None:
    ours = VectorQuantization(8, 16)
    before = copy.deepcopy(ours.state_dict())
    ours.eval()(torch.randn(1, 8, 50))
    ours.train()(torch.full((1, 8, 50), torch.nan))
    for name, want in before.items():
        assert_bitwise_equal(ours.state_dict()[name], want)
    ours(torch.randn(1, 8, 50))
    assert float(ours._codebook.inited) == 1
    assert bool(ours.codebook.any(dim=1).all())


def test_codes_without_vectors_do_not_leave() -> None:
    """Oracle: the largest of codes and vectors. The original divides fresh codes that are not used by epsilon."""
    torch.manual_seed(0)
    ours, theirs = (
        module(8, 64, threshold_ema_dead_code=0) for module in (EuclideanCodebook, core_vq.EuclideanCodebook)
    )
    x = torch.randn(1, 10, 8)
    for module in (ours, theirs):
        module(x)
    assert float(ours.embed.abs().max()) <= float(x.abs().max())
    assert float(theirs.embed.abs().max()) > 100


def test_dead_codes_move_to_vectors_and_stay() -> None:
    """Oracle: rows of the batch. In the original the same step overwrites what it has just replaced."""
    torch.manual_seed(0)
    ours = settle(EuclideanCodebook(8, 16))
    ours.embed[3:6] = 100.0
    ours.cluster_size[3:6] = 1.0
    ours.embed_avg.copy_(ours.embed * ours.cluster_size[:, None])
    x = torch.randn(1, 400, 8)
    ours(x)
    revived = ours.embed[3:6]
    distance = torch.cdist(revived, x[0], compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    assert_bitwise_equal(distance, torch.zeros(3))
    assert len(revived.unique(dim=0)) == 3
    assert_bitwise_equal(ours.cluster_size[3:6], torch.full((3,), 2.0))
    assert_bitwise_equal(ours.embed_avg[3:6], 2 * revived)
    ours(x)
    assert float(ours.embed[3:6].abs().max()) < 10


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_lookup_is_exact(offset: float) -> None:
    ours = VectorQuantization(16, 200, kmeans_init=False).eval()
    ours.codebook.copy_(torch.randn(200, 16) + offset)
    x = torch.randn(1, 16, 300) + offset
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, index, _ = ours(x)
    assert_bitwise_equal(ours.encode(x), index)
    rows = x[0].T
    distance = (rows.double() - ours.codebook[index[0]].double()).square().sum(1)
    assert_exact_lookup(rows, ours.codebook, index[0], distance.float())


@pytest.mark.parametrize("codebook_dim", [None, 4])
def test_batches_that_are_not_finite_are_no_steps(codebook_dim: int | None) -> None:
    """Oracle: the clean steps alone."""
    options: dict[str, Any] = {"num_quantizers": 2, "dim": 8, "codebook_size": 32, "codebook_dim": codebook_dim}
    clean, disturbed = (ResidualVectorQuantization(**options, **SETTLED) for _ in range(2))
    disturbed.load_state_dict(clean.state_dict())
    for step in range(20):
        x = torch.randn(2, 8, 30)
        if step % 5 == 3:
            bad = torch.full_like(x, torch.nan if step % 2 else torch.inf).requires_grad_()
            quantized, index, losses = disturbed(bad)
            (quantized.nan_to_num().sum() + losses.sum()).backward()
            assert not losses.detach().any()
            assert not index.any()
            assert bad.grad is not None
            assert bool(bad.grad.isfinite().all())
            continue
        clean(x)
        disturbed(x)
    for name, want in clean.state_dict().items():
        assert_bitwise_equal(disturbed.state_dict()[name], want)


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    """Oracle: the batch without the row, in numbers whose squares add exactly in any order."""
    with_row, without = (settle(VectorQuantization(8, 32, kmeans_init=False)) for _ in range(2))
    without._codebook.embed.copy_(torch.randint(-4, 5, (32, 8)))
    with_row.load_state_dict(without.state_dict())
    x = torch.randint(-4, 5, (1, 8, 40)).float()
    bad = torch.cat([x, torch.full((1, 8, 1), torch.nan)], dim=2).requires_grad_()
    torch.manual_seed(0)
    quantized, index, loss = with_row(bad)
    torch.manual_seed(0)
    want = without(x)
    assert_bitwise_equal(quantized[..., :40], want[0])
    assert_bitwise_equal(index[:, :40], want[1])
    assert_bitwise_equal(loss, want[2])
    (quantized.sum() + loss.sum()).backward()
    assert bad.grad is not None
    assert not bad.grad[..., 40].any()
    assert_bitwise_equal(with_row.codebook, without.codebook)


def test_half_precision() -> None:
    """Oracle: the same vectors and codes in float32."""
    wide = settle(ResidualVectorQuantization(num_quantizers=1, dim=8, codebook_size=32, **SETTLED)).to(torch.bfloat16)
    narrow, wide = copy.deepcopy(wide), wide.float()
    x = torch.randn(2, 8, 40).bfloat16()
    (value, index, _), (want, want_index, _) = narrow(x), wide(x.float())
    assert value.dtype == torch.bfloat16
    assert_bitwise_equal(index, want_index)
    assert_bitwise_equal(value.float(), want)
    for name, state in wide.state_dict().items():
        assert_bitwise_equal(narrow.state_dict()[name], state.bfloat16())


def test_memory_is_not_vectors_times_codes() -> None:
    setup = """
import torch
from vqkernels.compat.encodec.quantization.core_vq import VectorQuantization
torch.set_num_threads(1)
quantizer = VectorQuantization(8, 4096, kmeans_iters=2)
VectorQuantization(8, 64, kmeans_iters=2)(torch.randn(1, 8, 512))
x = torch.randn(1, 8, 4096, requires_grad=True)
"""
    call = "quantized, _, loss = quantizer(x); (quantized.sum() + loss.sum()).backward()"
    # a byte for each pair of a vector and a code
    assert peak_memory_growth(setup, call) < 4096 * 4096


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"x: expected \[B, dim, N\], got shape \[8, 5\]"):
        VectorQuantization(8, 4)(torch.randn(8, 5))
    with pytest.raises(TypeError, match="x: expected a floating point"):
        VectorQuantization(8, 4)(torch.ones(1, 8, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"q_indices: expected those of at most 2 layers, .*, got shape \[3, 1, 5\]"):
        ResidualVectorQuantization(num_quantizers=2, dim=8, codebook_size=4).decode(torch.zeros(3, 1, 5).long())


def share(step: int, rank: int) -> torch.Tensor:
    """A part of a batch; the second process has nothing in step 1, and neither has any vector in step 2."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    x = torch.randn(1, 4, 0 if (step, rank) == (1, 1) else 60 + rank, generator=generator)
    return x.fill_(torch.nan) if step == 2 else x * 10.0 ** torch.linspace(-3, 3, 4)[:, None]


def train_on_shares(kind: str, *ranks: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    options: dict[str, Any] = {"num_quantizers": 2, "dim": 4, "codebook_size": 8, "kmeans_iters": 5}
    stack = ResidualVectorQuantization(**options, kmeans_init=kind == "fresh")
    if kind == "settled":
        settle(stack)
        for layer in stack.layers:
            # dead: nothing is near them
            layer.codebook[:3] = 1e6
            layer._codebook.embed_avg[:3] = 1e6
            layer._codebook.cluster_size[:3] = 1.0
    # only k-means draws, and need not draw the same on all processes
    torch.manual_seed(ranks[0])
    for step in range(4):
        stack(torch.cat([share(step, rank) for rank in ranks], dim=2))
    return stack.state_dict()


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    calls, all_reduce = [0], dist.all_reduce

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    settled = train_on_shares("settled", rank)
    counts = torch.tensor(calls)
    torch.save({"settled": settled, "fresh": train_on_shares("fresh", rank), "calls": counts}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.multiproc
def test_two_processes_do_what_one_does_with_both_batches(tmp_path: Path) -> None:
    """With dead codes too. After k-means, whose draws differ, the processes stay the same."""
    run_processes(worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    # two for each of two layers in each of four steps
    assert [int(first.pop("calls")), int(second.pop("calls"))] == [16, 16]
    for kind, states in first.items():
        for name, value in states.items():
            assert_bitwise_equal(second[kind][name], value)
            assert bool(value.isfinite().all())
    for name, want in train_on_shares("settled", 0, 1).items():
        assert_bitwise_equal(first["settled"][name], want)
    assert bool(first["fresh"]["layers.0._codebook.embed"].any(dim=1).all())
    assert float(first["settled"]["layers.1._codebook.embed"].abs().max()) < 1e5


@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [pytest.param({}, marks=pytest.mark.slow), {"codebook_dim": 4}], ids=str)
def test_a_training_step_is_one_graph(compiler: str, options: dict[str, Any]) -> None:
    torch._dynamo.reset()  # graphs of other tests count against the limit of this one
    eager = ResidualVectorQuantization(num_quantizers=2, dim=8, codebook_size=8, **options)
    eager(torch.randn(4, 8, 10))  # with its start from data
    compiled = copy.deepcopy(eager)
    graph = torch.compile(compiled, fullgraph=True, backend=compiler)
    for _ in range(2):
        x = torch.randn(4, 8, 10)
        results = []
        for module in (eager, graph):
            given = x.clone().requires_grad_()
            quantized, indices, losses = module(given)
            (quantized.square().sum() + losses.sum()).backward()
            results.append([quantized, indices, losses, given.grad])
        for want, got in zip(*results, strict=True):
            assert_bitwise_equal(got.detach(), want.detach())
    for (name, got), want in zip(compiled.state_dict().items(), eager.state_dict().values(), strict=True):
        assert torch.equal(got, want), name
