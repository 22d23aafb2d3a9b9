"""What the original gets wrong, and the adapters do not; see ``vqkernels/compat/README.md``.

Oracles: plain torch in float64, exact arithmetic, or the adapter itself under conditions that must not matter.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rounding import farthest, in_their_last_bits
from torch.nn import functional as F

from vqkernels.compat.vector_quantize_pytorch import (
    GroupedResidualVQ,
    HierarchicalVQ,
    ResidualSimVQ,
    ResidualVQ,
    SimVQ,
    VectorQuantize,
)
from vqkernels.testing import assert_bitwise_equal, assert_exact_lookup, assert_within_budget, peak_memory_growth

LEARNED: dict[str, Any] = {"learnable_codebook": True, "ema_update": False}


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("cosine", [False, True])
def test_batches_that_are_not_finite_are_no_steps(cosine: bool) -> None:
    """Oracle: the 45 clean steps alone."""
    torch.manual_seed(0)
    clean, disturbed = (VectorQuantize(8, 64, use_cosine_sim=cosine) for _ in range(2))
    disturbed.load_state_dict(clean.state_dict())
    for step in range(50):
        x = torch.randn(4, 30, 8)
        if step % 10 == 7:
            bad = torch.full_like(x, [torch.nan, torch.inf][step // 10 % 2]).requires_grad_()
            quantized, _, loss = disturbed(bad)
            (quantized.sum() + loss).backward()
            assert loss.item() == 0
            assert bad.grad is not None
            assert not bad.grad.any()
            continue
        clean(x)
        disturbed(x)
    for name, value in clean.state_dict().items():
        assert_bitwise_equal(disturbed.state_dict()[name], value)


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    """Oracle: the batch without the row, in numbers whose products and sums are exact in any order."""
    torch.manual_seed(0)
    with_row, without = (VectorQuantize(8, 64, codebook_dim=4) for _ in range(2))
    for exact in (*without.parameters(), without._codebook.embed):
        exact.data.copy_(torch.randint(-4, 5, exact.shape))
    with_row.load_state_dict(without.state_dict())
    x = torch.randint(-4, 5, (1, 30, 8)).float()
    bad = torch.cat([x, torch.full((1, 1, 8), torch.nan)], dim=1)
    quantized, indices, loss = with_row(bad)
    for got, want in zip((quantized[:, :30], indices[:, :30], loss), without(x), strict=True):
        assert_bitwise_equal(got.detach(), want.detach())
    assert indices[0, 30] == 0
    assert_bitwise_equal(state(with_row)["_codebook.embed"], state(without)["_codebook.embed"])


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_lookup_is_exact(offset: float) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantize(16, 500).eval()
    quantizer.codebook = torch.randn(500, 16) + offset
    x = torch.randn(300, 16) + offset
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = quantizer(x[None])[1][0]
    distance = (x.double() - quantizer.codebook[indices].double()).square().sum(1)
    assert_exact_lookup(x, quantizer.codebook, indices, distance.float())


@pytest.mark.parametrize("fmap", [ResidualVQ, GroupedResidualVQ])
def test_residual_maps_of_any_shape(fmap: type[torch.nn.Module]) -> None:
    """Oracle: the same vectors as a sequence."""
    torch.manual_seed(0)
    arguments = {"dim": 8, "num_quantizers": 2, "codebook_size": 16, "codebook_dim": 4}
    maps, sequence = fmap(**arguments, accept_image_fmap=True), fmap(**arguments)
    sequence.load_state_dict(maps.state_dict())
    x = torch.randn(2, 8, 3, 5)
    quantized, indices, losses = maps(x)
    flat, flat_indices, flat_losses = sequence(x.flatten(2).transpose(1, 2))
    assert_bitwise_equal(quantized, flat.transpose(1, 2).reshape(x.shape))
    assert_bitwise_equal(indices.flatten(-3, -2), flat_indices)
    assert_bitwise_equal(losses, flat_losses)


@pytest.mark.parametrize("grouped", [False, True])
def test_cross_entropy_to_given_codes_of_all_layers(grouped: bool) -> None:
    """Oracle: scores in float64, of the residual that each layer really sees."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"dim": 8, "num_quantizers": 3, "codebook_size": 16}
    quantizer = (GroupedResidualVQ(**arguments, groups=1) if grouped else ResidualVQ(**arguments)).eval()
    residual_vq = quantizer.rvqs[0] if grouped else quantizer
    x, target = torch.randn(2, 10, 8), torch.randint(16, (2, 10, 3))
    quantized, loss = quantizer(x, indices=target[None] if grouped else target)

    def wanted(residual: torch.Tensor) -> torch.Tensor:
        total = residual.new_zeros(())
        for layer, index in zip(residual_vq.layers, target.unbind(-1), strict=True):
            codes = layer.codebook.to(residual)
            distance = (residual[:, :, None] - codes).square().sum(-1).clamp(min=1e-8).sqrt()
            total += F.cross_entropy(-distance.flatten(0, 1), index.flatten())
            residual = residual - codes[distance.argmin(-1)]
        return total.detach()

    truth = wanted(x.double())
    plain = farthest(truth, [wanted(moved) for (moved,) in in_their_last_bits([x])])
    assert_within_budget(loss.detach(), truth, plain, factor=4.0)
    assert_bitwise_equal(quantized, quantizer(x)[0])


@pytest.mark.parametrize("training", [False, True])
def test_beams_of_several_sequences_update_every_layer(training: bool) -> None:
    """Oracle: the error of the greedy search; the statistics of the inputs that the layers saw."""
    torch.manual_seed(0)
    quantizer = ResidualVQ(dim=8, num_quantizers=3, codebook_size=16, rotation_trick=False).train(training)
    for layer in quantizer.layers:
        layer.codebook = torch.randn(16, 8)
    before = state(quantizer)
    x = torch.randn(3, 50, 8)
    greedy = quantizer.eval()(x)[0]
    quantized, indices, losses = quantizer.train(training)(x, beam_size=4)
    assert float((quantized - x).square().mean()) < float((greedy - x).square().mean())
    assert losses.shape == (3,)
    residual = x
    for number, index in enumerate(indices.unbind(-1)):
        count = F.one_hot(index, 16).sum((0, 1)).float()
        want = 0.8 * before[f"layers.{number}._codebook.cluster_size"][0] + (1 - 0.8) * count
        if training:
            assert float((quantizer.layers[number]._codebook.cluster_size[0] - want).abs().max()) < 1e-5
        residual = residual - before[f"layers.{number}._codebook.embed"][0][index]
    torch.testing.assert_close(quantized, x - residual, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"codebook_dim": 4},
        {"heads": 2, "codebook_dim": 4},
        {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True},
        {"channel_last": False},
        {"accept_image_fmap": True, "codebook_dim": 4},
        {"use_cosine_sim": True},
    ],
)
def test_a_mask_leaves_out_what_a_shorter_batch_does_not_have(arguments: dict[str, Any]) -> None:
    """Oracle: the batch without the masked vectors, in numbers whose products and sums are exact in any order."""
    torch.manual_seed(0)
    masked, short = (VectorQuantize(8, 32, **arguments) for _ in range(2))
    for exact in (*short.parameters(), *([] if "use_cosine_sim" in arguments else [short._codebook.embed])):
        exact.data.copy_(torch.randint(-4, 5, exact.shape))
    masked.load_state_dict(short.state_dict())
    dim = 1 if "channel_last" in arguments or "accept_image_fmap" in arguments else -1
    x = torch.randint(-4, 5, (2, 3, 3, 8) if "accept_image_fmap" in arguments else (2, 9, 8)).float()
    mask = torch.ones(x.shape[:-1], dtype=torch.bool)
    mask[:, -1] = False
    quantized, indices, loss = masked(x.movedim(-1, dim), mask=mask)
    want, want_indices, want_loss = short(x[:, :-1].movedim(-1, dim))
    assert_bitwise_equal(quantized.movedim(dim, -1)[:, :-1], want.movedim(dim, -1))
    assert_bitwise_equal(indices[:, :-1], want_indices)
    assert bool((indices[:, -1] == -1).all())
    assert not quantized.movedim(dim, -1)[:, -1].any()
    # a mean of squares, of differences of unit vectors under the cosine
    torch.testing.assert_close(loss, want_loss, rtol=(x.numel() + 16) * torch.finfo(x.dtype).eps, atol=0)
    for name, value in state(short).items():
        assert_bitwise_equal(state(masked)[name], value)


@pytest.mark.parametrize("loss", ["commitment", "diversity", "soft"])
def test_losses_on_scores_see_the_codes_of_the_lookup(loss: str) -> None:
    """The codebook moves between forward and backward; oracle: a frozen one, which does not."""
    arguments: dict[str, Any] = {
        "commitment": {"commitment_use_cross_entropy_loss": True},
        "diversity": {"codebook_diversity_loss_weight": 1.0, "codebook_diversity_temperature": 3.0},
        "soft": {"straight_through": True, "route_gradients_to_input": False},
    }[loss]
    torch.manual_seed(0)
    moving, frozen = (VectorQuantize(8, 32, **arguments) for _ in range(2))
    frozen.load_state_dict(moving.state_dict())
    x = torch.randn(2, 20, 8)
    gradients = []
    for quantizer, freeze in ((moving, False), (frozen, True)):
        given = x.clone().requires_grad_()
        quantized, _, total = quantizer(given, freeze_codebook=freeze)
        (quantized.square().sum() + total).backward()
        gradients.append(given.grad)
    assert_bitwise_equal(*gradients)
    assert not torch.equal(moving.codebook, frozen.codebook)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"heads": 2, "codebook_dim": 4},
        {"heads": 2, "codebook_dim": 3, "separate_codebook_per_head": True},
        {"codebook_dim": 4, "channel_last": False},
        {"accept_image_fmap": True, "heads": 4, "codebook_dim": 4},
        {"use_cosine_sim": True},
        {"affine_param": True},
        {"vq_bridge": torch.nn.Linear(8, 8)},
    ],
)
def test_codes_by_index_are_the_values(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantize(8, 32, **arguments)
    x = torch.randn(2, 8, 4, 5) if "accept_image_fmap" in arguments else torch.randn(2, 8, 8)
    quantizer(x)
    quantized, indices, _ = quantizer.eval()(x)
    assert_bitwise_equal(quantizer.get_output_from_indices(indices).detach(), quantized.detach())


def test_masked_codes_by_index_are_zero() -> None:
    quantizer = VectorQuantize(8, 32)
    assert not quantizer.get_codes_from_indices(torch.tensor([[-1, -1]])).any()


def test_kmeans_leaves_no_zero_code_and_waits_for_training() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantize(4, 64, kmeans_init=True)
    points = torch.randn(8, 4)[torch.randint(8, (200,))]
    before = state(quantizer)
    quantizer.eval()(points)
    for name, value in before.items():
        assert_bitwise_equal(state(quantizer)[name], value)
    quantizer.train()(torch.full_like(points, torch.nan))
    assert not quantizer._codebook.initted
    quantizer(points)
    assert bool(quantizer._codebook.initted)
    assert float(quantizer.codebook.norm(dim=1).min()) > 0.1
    # every code is at one of the points, and every point has one
    distance = torch.cdist(quantizer.codebook, points)
    assert float(distance.amin(0).max()) < 1e-2
    resumed = VectorQuantize(4, 64, kmeans_init=True)
    resumed.load_state_dict(quantizer.state_dict())
    resumed.eval()
    resumed.train()(points)
    quantizer(points)
    assert_bitwise_equal(resumed.codebook, quantizer.codebook)


def test_kmeans_does_lloyds_iterations() -> None:
    """Oracle: Lloyd's algorithm in float64 from the means that it started with."""
    torch.manual_seed(0)
    x = torch.randn(300, 4)
    quantizer = VectorQuantize(4, 8, kmeans_init=True, kmeans_iters=4)
    book = quantizer._codebook
    start: list[torch.Tensor] = []
    winners = book._winners

    def recorded(*args: Any, **kwargs: Any) -> Any:
        result = winners(*args, **kwargs)
        start.append(result[0])
        return result

    book._winners = recorded  # type: ignore[method-assign]
    book.init_embed_(x[:, None], torch.zeros(300, 1, dtype=torch.int64))
    books = {}
    for dtype in (torch.float64, torch.float32):
        means, rows = start[0][0].to(dtype), x.to(dtype)
        for _ in range(4):
            nearest = torch.cdist(rows.double(), means.double()).argmin(1)
            count = F.one_hot(nearest, 8).to(dtype)
            means = count.T @ rows / count.sum(0)[:, None]
        size = count.sum(0)
        books[dtype] = means * size[:, None] / ((size + 1e-5) / (300 + 8e-5) * 300)[:, None]
    assert_within_budget(quantizer.codebook, books[torch.float64], books[torch.float32])


def test_dead_codes_move_to_different_vectors() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantize(4, 64, threshold_ema_dead_code=1, decay=0.5)
    quantizer.codebook = torch.randn(64, 4) + 50
    quantizer._codebook.cluster_size.fill_(0.5)
    x = torch.randn(1, 16, 4)
    quantizer(x)
    replaced = (quantizer.codebook[:, None] == x[0]).all(-1)
    # each vector at most once
    assert 8 < replaced.any(1).sum() <= 16
    assert bool((replaced.sum(0) <= 1).all())
    codes = quantizer.codebook[replaced.any(1)]
    assert_bitwise_equal(quantizer._codebook.embed_avg[0][replaced.any(1)], codes)
    assert bool((quantizer._codebook.cluster_size[0][replaced.any(1)] == 1).all())


def test_affine_statistics_resume_and_rest_in_evaluation() -> None:
    torch.manual_seed(0)
    quantizer = VectorQuantize(8, 32, affine_param=True)
    for _ in range(3):
        quantizer(torch.randn(40, 8) * 3 + 1)
    resumed = VectorQuantize(8, 32, affine_param=True)
    resumed.load_state_dict(quantizer.state_dict())
    before = state(quantizer)
    quantizer.eval()(torch.randn(40, 8))
    for name, value in before.items():
        assert_bitwise_equal(state(quantizer)[name], value)
    x = torch.randn(40, 8)
    for got, want in zip(resumed(x), quantizer.train()(x), strict=True):
        assert_bitwise_equal(got.detach(), want.detach())


def test_affine_codes_like_the_original() -> None:
    from vqp_oracle import assert_trains_alike, original

    torch.manual_seed(3)
    theirs, ours = (kind(8, 32, affine_param=True) for kind in (original.VectorQuantize, VectorQuantize))

    # the last step is the evaluation in which the original goes on
    def moved(name: str) -> bool:
        return name == "3 0" or "batch_" in name

    with pytest.raises(RuntimeError, match="Missing key"):
        ours.load_state_dict({})
    assert_trains_alike(theirs, ours, (2, 20, 8), skip=moved)


def test_orthogonal_loss_of_zero_codes_is_theirs() -> None:
    """Oracle: ``|C C^T - I|^2 / K^2`` in float64."""
    from vqkernels.compat.vector_quantize_pytorch._rows import orthogonal_loss_fn

    torch.manual_seed(0)
    codes = torch.randn(1, 50, 6)
    codes[0, :10] = 0

    def wanted(rows: torch.Tensor) -> torch.Tensor:
        unit = F.normalize(rows[0], dim=1)
        return (unit @ unit.T - torch.eye(50)).square().mean()

    truth = wanted(codes.double())
    plain = farthest(truth, [wanted(moved) for (moved,) in in_their_last_bits([codes])])
    assert_within_budget(orthogonal_loss_fn(codes), truth, plain, factor=4.0)
    assert orthogonal_loss_fn(torch.zeros(1, 4, 3)).item() == 0.25


def test_layers_of_a_shared_codebook_share_an_in_place_optimizer() -> None:
    torch.manual_seed(0)
    quantizer = ResidualVQ(
        dim=4,
        num_quantizers=2,
        codebook_size=8,
        shared_codebook=True,
        in_place_codebook_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1.0),
        **LEARNED,
    )
    before = quantizer.codebooks.clone()
    quantizer(torch.randn(30, 4))
    assert not torch.equal(quantizer.codebooks, before)


def test_simvq_takes_bfloat16() -> None:
    torch.manual_seed(0)
    quantizer = SimVQ(dim=8, codebook_size=16).bfloat16()
    quantized, indices, _ = quantizer(torch.randn(2, 5, 8, dtype=torch.bfloat16))
    assert quantized.dtype == torch.bfloat16
    assert_bitwise_equal(quantized.detach(), quantizer.indices_to_codes(indices).detach())


def test_residual_simvq_drops_layers_of_any_shape() -> None:
    quantizer = ResidualSimVQ(dim=8, num_quantizers=3, codebook_size=16, quantize_dropout=True)
    assert quantizer(torch.randn(2, 3, 5, 8), rand_quantize_dropout_fixed_seed=1)[1].shape == (2, 3, 5, 3)


def test_a_masked_hierarchy_is_that_of_the_valid_part() -> None:
    """Oracle: the batch cut off where the mask ends, for the level that has one cell per position."""
    torch.manual_seed(0)
    quantizer = HierarchicalVQ(dim=4, codebook_size=16, scales=(1, 6), kmeans_init=False).eval()
    x = torch.randn(2, 4, 6)
    quantized, indices, _ = quantizer(x, lens=torch.tensor([6, 4]))
    assert indices[1][1].tolist()[4:] == [-1, -1]
    assert not quantized[1, :, 4:].any()
    mean = x[1, :, :4].mean(1)
    assert indices[0][1].item() == torch.cdist(mean[None], quantizer.vq.codebook).argmin().item()


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        pytest.param("commitment_use_cross_entropy_loss=True", marks=pytest.mark.slow),
        pytest.param("codebook_diversity_loss_weight=0.1", marks=pytest.mark.slow),
        "stochastic_sample_codes=True, straight_through=True, route_gradients_to_input=False",
    ],
)
def test_a_training_step_makes_no_matrix_of_all_pairs(arguments: str) -> None:
    """4096 x 8192 float32 numbers are 134 MB, of which the original holds six at a time."""
    setup = f"""
import torch, vqkernels
torch.set_num_threads(1)
def step(n, k):
    quantizer = vqkernels.VectorQuantize(8, k, {arguments})
    x = torch.randn(8, n // 8, 8, requires_grad=True)
    quantized, _, loss = quantizer(x)
    (quantized.sum() + loss).backward()
step(64, 128)
"""
    # blocks go back to the system when they are freed: counted is what is alive, not what the heap keeps
    growth = peak_memory_growth(setup, "step(4096, 8192)", env={"MALLOC_MMAP_THRESHOLD_": "1000000"})
    # chunks of 4 MB, some of int64, a dozen of them alive in a backward
    assert growth < 100e6
