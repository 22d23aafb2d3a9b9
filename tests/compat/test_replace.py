"""Quantizers of other libraries swapped inside a model. Oracle: the model as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from needs import encodec, import_library
from pairs import assert_same_results
from rounding import farthest, in_their_last_bits
from torch import nn
from vqp_oracle import assert_trains_alike

import vqkernels
import vqkernels.compat.vector_quantize_pytorch as adapters
from vqkernels import VectorQuantize, replace_quantizers
from vqkernels.compat.replace import ReplacedQuantizers
from vqkernels.compat.vector_quantize_pytorch import ResidualVQ
from vqkernels.testing import assert_bitwise_equal, assert_within_budget

diffusers, vector_quantize_pytorch = import_library("diffusers"), import_library("vector_quantize_pytorch")
vae = import_library("diffusers.models.autoencoders.vae")

LEARNED: dict[str, Any] = {"learnable_codebook": True, "ema_update": False}


def vq_model() -> nn.Module:
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(8,),
        norm_num_groups=4,
        num_vq_embeddings=32,
        latent_channels=4,
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        model.quantize.embedding.weight.normal_()
    return model


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_a_vq_model_keeps_its_weights_and_outputs(tmp_path: Path) -> None:
    model = vq_model()
    model.quantize.embedding.weight.requires_grad_(False)
    original, before = copy.deepcopy(model), tensors(model)
    quantizer = model.quantize
    report = replace_quantizers(model)
    name = "diffusers.models.autoencoders.vae.VectorQuantizer"
    assert report == ReplacedQuantizers({"quantize": name}, {})
    assert type(model.quantize) is vqkernels.compat.diffusers.VectorQuantizer
    assert model.quantize is quantizer
    after = tensors(model)
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] for key in before)
    assert not model.quantize.embedding.weight.requires_grad

    x = torch.randn(1, 3, 8, 8)
    got, want = (m.decode(original.encode(x).latents) for m in (model, original))
    latents = original.encode(x).latents
    truth = copy.deepcopy(original).double().decode(latents.double())
    runs = [original.decode(moved) for (moved,) in in_their_last_bits([latents])]
    for key in ("sample", "commit_loss"):
        exact = getattr(truth, key)
        plain = farthest(exact, [getattr(run, key) for run in (want, *runs)])
        assert_within_budget(getattr(got, key), exact, plain, factor=4.0)
    # the code of every latent is the same
    assert_bitwise_equal(model.quantize(latents)[2][2], original.quantize(latents)[2][2])

    for source, target in ((model, original), (original, model)):
        source.save_pretrained(tmp_path)
        loaded = diffusers.VQModel.from_pretrained(tmp_path)
        target.load_state_dict(loaded.state_dict())
        for key, value in loaded.state_dict().items():
            assert_bitwise_equal(value, source.state_dict()[key])


def test_a_vq_model_trains_on_with_its_optimizer() -> None:
    """Oracle: the original in float64, and its own float32."""
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 8, 8) for _ in range(3)]

    def trained(batches: list[torch.Tensor], replaced: bool = False) -> torch.Tensor:
        model = vq_model().to(batches[0].dtype)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        if replaced:
            replace_quantizers(model)
        for x in batches:
            out = model(x)
            ((out.sample - x).square().mean() + out.commit_loss).backward()
            optimizer.step()
            optimizer.zero_grad()
        return torch.cat([value.flatten() for value in model.state_dict().values()])

    truth = trained([x.double() for x in batches])
    runs = [trained(moved) for moved in (batches, *in_their_last_bits(batches))]
    assert_within_budget(trained(batches, replaced=True), truth, farthest(truth, runs), factor=4.0)


def test_a_remapped_quantizer_needs_its_file_no_more(tmp_path: Path) -> None:
    path = tmp_path / "used.npy"
    np.save(path, np.array([3, 1, 15, 7]))
    model = vae.VectorQuantizer(
        16, 8, 0.25, remap=str(path), unknown_index="extra", sane_index_shape=True, legacy=False
    )
    path.unlink()
    original = copy.deepcopy(model)
    replace_quantizers(model)
    z = torch.randn(2, 8, 4, 5)
    (_, loss, (*_, indices)), (_, want_loss, (*_, want)) = model(z), original(z)
    assert_bitwise_equal(indices, want)
    # means of squares, in two orders
    torch.testing.assert_close(loss, want_loss, rtol=(z.numel() + 8) * torch.finfo(z.dtype).eps, atol=0)
    assert (model.remap, model.re_embed, model.unknown_index) == (str(path), 5, 4)


SEQUENCE, MAP = (2, 20, 8), (2, 8, 4, 4)
PLAIN: dict[str, Any] = {"dim": 8, "codebook_size": 32}
STE: dict[str, Any] = {"rotation_trick": False}
SCALES: dict[str, Any] = {
    **PLAIN,
    "scales": (1, 2, 4),
    # neither draws, so that both do the same
    "kmeans_init": False,
    "threshold_ema_dead_code": 0,
}
VQP: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "default": ("VectorQuantize", {}, SEQUENCE),
    "options": ("VectorQuantize", {"decay": 0.9, "eps": 1e-3, "commitment_weight": 0.3, **STE}, SEQUENCE),
    "cosine heads": (
        "VectorQuantize",
        {"heads": 2, "separate_codebook_per_head": True, "use_cosine_sim": True},
        SEQUENCE,
    ),
    "projection": ("VectorQuantize", {"codebook_dim": 4, "layernorm_after_project_in": True}, SEQUENCE),
    "learned": ("VectorQuantize", {**LEARNED, "sync_update_v": 0.3, **STE}, SEQUENCE),
    "in place": (
        "VectorQuantize",
        {**LEARNED, "in_place_codebook_optimizer": lambda p: torch.optim.SGD(p, lr=0.5)},
        SEQUENCE,
    ),
    "orthogonal": ("VectorQuantize", {"orthogonal_reg_weight": 0.5}, SEQUENCE),
    "bridge": ("VectorQuantize", {"vq_bridge": nn.Linear(8, 8)}, SEQUENCE),
    "image": ("VectorQuantize", {"accept_image_fmap": True}, MAP),
    "channel first": ("VectorQuantize", {"channel_last": False}, (2, 8, 20)),
    "soft": (
        "VectorQuantize",
        {"straight_through": True, **STE, "route_gradients_to_input": False, "ema_update": False},
        SEQUENCE,
    ),
    "stack": ("ResidualVQ", {"num_quantizers": 3}, SEQUENCE),
    "stack, projection": (
        "ResidualVQ",
        {"codebook_size": (32, 16), "codebook_dim": 4, "quant_grad_frac": 0.5},
        SEQUENCE,
    ),
    "stack, shared": ("ResidualVQ", {"num_quantizers": 3, "shared_codebook": True}, SEQUENCE),
    "stack, implicit": ("ResidualVQ", {"num_quantizers": 3, "implicit_neural_codebook": True}, SEQUENCE),
    "grouped": ("GroupedResidualVQ", {"groups": 2, "num_quantizers": 2}, SEQUENCE),
    "sim": ("SimVQ", {"frozen_codebook_dim": 6}, SEQUENCE),
    "sim, transform": ("SimVQ", {"codebook_transform": nn.Linear(8, 8), **STE}, SEQUENCE),
    "sim stack": ("ResidualSimVQ", {"num_quantizers": 2}, SEQUENCE),
    "scales": ("HierarchicalVQ", {**SCALES, "accept_image_fmap": True}, MAP),
    "scales, apart": (
        "HierarchicalVQ",
        {**SCALES, "shared_codebook": False, "share_quant_resi": 2, "channel_first": False},
        (2, 4, 8),
    ),
}


@pytest.mark.parametrize("case", VQP)
def test_vector_quantize_pytorch(case: str) -> None:
    """Three steps of training and an evaluation after the swap; oracle: the original in float64."""
    name, options, shape = VQP[case]
    torch.manual_seed(3)
    theirs = getattr(vector_quantize_pytorch, name)(**PLAIN | options)
    # in use before it is swapped
    theirs(torch.randn(*shape))
    theirs.eval()
    ours = copy.deepcopy(theirs)
    before = tensors(ours)
    report = replace_quantizers(ours)
    assert report.left == {}
    assert report.replaced[""] == f"{type(theirs).__module__}.{name}"
    kinds = {type(module).__module__.partition(".")[0] for module in ours.modules()}
    assert kinds <= {"vqkernels", "torch"}
    after = tensors(ours)
    assert all(after[key] is before[key] for key in after.keys() & ours.state_dict().keys())
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert not any(module.training for module in ours.modules())
    assert_trains_alike(theirs, ours, shape)


SCALARS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "fsq": ("FSQ", {"levels": [8, 5, 3], "dim": 6, "num_codebooks": 2}, (2, 7, 6)),
    "fsq, symmetric": ("FSQ", {"levels": [4, 2], "preserve_symmetry": True, "channel_first": True}, (2, 2, 7)),
    "fsq, rotated": ("FSQ", {"levels": [5, 5], "orthogonal_rotation": True}, (2, 7, 2)),
    "fsq stack": ("ResidualFSQ", {"levels": [5, 3], "dim": 6, "num_quantizers": 3}, (2, 7, 6)),
    "fsq stack, soft": (
        "ResidualFSQ",
        {"levels": [5, 3], "num_quantizers": 2, "bound_hard_clamp": False, "soft_clamp_input_value": 2.0},
        (2, 7, 2),
    ),
    "fsq groups": ("GroupedResidualFSQ", {"dim": 8, "groups": 2, "levels": [5, 3], "num_quantizers": 2}, (2, 7, 8)),
    "lfq": ("LFQ", {"codebook_size": 16, "dim": 6, "commitment_loss_weight": 0.3}, (2, 7, 6)),
    "lfq, cosine": ("LFQ", {"codebook_size": 16, "dim": 6, "cosine_sim_project_in": True}, (2, 7, 6)),
    "lfq, options": (
        "LFQ",
        {"codebook_size": 16, "spherical": True, "soft_clamp_input_value": 2.0, "diversity_gamma": 2.0},
        (2, 4, 3, 5),
    ),
    "lfq stack": ("ResidualLFQ", {"dim": 6, "codebook_size": 16, "num_quantizers": 3}, (2, 7, 6)),
    "lfq groups": (
        "GroupedResidualLFQ",
        {"dim": 8, "groups": 2, "codebook_size": 16, "num_quantizers": 2},
        (2, 7, 8),
    ),
}


@pytest.mark.parametrize("case", SCALARS)
@pytest.mark.parametrize("training", [False, True])
def test_scalar_quantizers(case: str, training: bool) -> None:
    """Results and gradients; oracle: the original in float64."""
    name, options, shape = SCALARS[case]
    torch.manual_seed(3)
    theirs = getattr(vector_quantize_pytorch, name)(**options).train(training)
    ours = copy.deepcopy(theirs)
    before = tensors(ours)
    assert replace_quantizers(ours).left == {}
    kinds = {type(module).__module__.partition(".")[0] for module in ours.modules()}
    assert kinds == {"vqkernels", "torch"}
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    assert all(tensors(ours)[key] is before[key] for key in ours.state_dict())
    assert_same_results(ours, theirs, torch.randn(*shape))


def test_indices_past_32_bits_after_a_swap() -> None:
    """Oracle: decoding. In the original place values overflow, which the swap must not take over."""
    model = vector_quantize_pytorch.FSQ(levels=[8] * 12, return_indices=False)
    replace_quantizers(model)
    model.return_indices = True
    code, index = model(torch.randn(1, 20, 12))
    assert int(index.max()) > 2**32
    assert_bitwise_equal(model.indices_to_codes(index), code)


@pytest.mark.parametrize("name", ["GroupedResidualFSQ", "GroupedResidualLFQ"])
def test_groups_of_maps(name: str) -> None:
    """Oracle: an adapter that is built like the original, which fails on maps."""
    codes: dict[str, Any] = {"levels": [5, 3]} if "FSQ" in name else {"codebook_size": 16}
    libraries = vector_quantize_pytorch, adapters
    model, built = (
        getattr(library, name)(dim=8, groups=2, num_quantizers=2, accept_image_fmap=True, **codes)
        for library in libraries
    )
    built.load_state_dict(model.state_dict())
    replace_quantizers(model)
    x = torch.randn(2, 8, 3, 5)
    (value, index, *_), (want, want_index, *_) = model.eval()(x), built.eval()(x)
    assert_bitwise_equal(value, want)
    assert_bitwise_equal(index, want_index)
    assert_bitwise_equal(model.get_output_from_indices(index), value)


@pytest.mark.parametrize("options", [{"accept_image_fmap": True}, {"codebook_dim": 4, "accept_image_fmap": True}])
def test_stacks_of_maps(options: dict[str, Any]) -> None:
    """Oracle: an adapter that loads the original's checkpoint; the original raises on most shapes."""
    torch.manual_seed(0)
    model, loaded = (
        kind(**PLAIN, num_quantizers=2, **options) for kind in (vector_quantize_pytorch.ResidualVQ, ResidualVQ)
    )
    loaded.load_state_dict(model.state_dict())
    replace_quantizers(model)
    x = torch.randn(2, 8, 3, 5)
    for got, want in zip(model(x), loaded(x), strict=True):
        assert_bitwise_equal(got.detach(), want.detach())


def test_random_projections() -> None:
    torch.manual_seed(0)
    model = vector_quantize_pytorch.RandomProjectionQuantizer(
        dim=8, codebook_size=32, codebook_dim=4, num_codebooks=2
    )
    original, x = copy.deepcopy(model), torch.randn(2, 20, 8)
    replace_quantizers(model)
    assert type(model).__module__.startswith("vqkernels.")
    assert_bitwise_equal(model(x), original(x))


def test_running_statistics_of_batches_come_along() -> None:
    """Oracle: an adapter that loads the original's checkpoint."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"affine_param": True, "affine_param_batch_decay": 0.7}
    model, loaded = (kind(**PLAIN, **options) for kind in (vector_quantize_pytorch.VectorQuantize, VectorQuantize))
    model(torch.randn(2, 20, 8))
    loaded.load_state_dict(model.state_dict())
    batch_mean = model._codebook.batch_mean
    replace_quantizers(model)
    assert model._codebook.batch_mean is batch_mean
    x = torch.randn(2, 20, 8)
    for got, want in zip(model(x), loaded(x), strict=True):
        assert_bitwise_equal(got.detach(), want.detach())
    for name, want in loaded.state_dict().items():
        assert_bitwise_equal(model.state_dict()[name], want)


@pytest.mark.parametrize("started", [False, True])
def test_encodec(started: bool) -> None:
    vq = encodec("vq")
    torch.manual_seed(0)
    model = nn.ModuleDict({"quantizer": vq.ResidualVectorQuantizer(dimension=8, n_q=2, bins=16, kmeans_iters=3)})
    x = torch.randn(2, 8, 50)
    if started:
        model["quantizer"](x, 100)
    original = copy.deepcopy(model)
    before = tensors(model)
    report = replace_quantizers(model)
    assert [*report.replaced] == [
        "quantizer",
        "quantizer.vq",
        *(f"quantizer.vq.layers.{n}{part}" for n in range(2) for part in ("", "._codebook")),
    ]
    assert all(tensors(model)[key] is before[key] for key in before)
    if not started:
        # the first training batch does for k-means, as it would have
        model["quantizer"](x, 100)
        assert bool(model["quantizer"].vq.layers[0].codebook.any(dim=1).all())
        return
    got, want = (m.eval()["quantizer"](x, 100) for m in (model, original))
    assert_bitwise_equal(got.codes, want.codes)
    torch.testing.assert_close(got.quantized, want.quantized, rtol=1e-6, atol=1e-6)
    original.load_state_dict(model.state_dict())


def test_a_codebook_starts_over_with_a_checkpoint_that_has_no_codes() -> None:
    core_vq = encodec("core_vq")
    model = core_vq.VectorQuantization(8, 16, kmeans_iters=3)
    fresh = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 8, 50))
    replace_quantizers(model)
    model.load_state_dict(fresh)
    model(torch.randn(2, 8, 50) + 100)
    assert float(model._codebook.inited) == 1
    assert float(model.codebook.min()) > 50


@pytest.mark.parametrize("processes", [1, 2])
def test_whether_processes_synchronise(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """An original that was built alone, or was told not to: with one process nobody knows which."""
    model = vector_quantize_pytorch.VectorQuantize(**PLAIN)
    assert not model._codebook.use_ddp
    monkeypatch.setattr("vqkernels.compat._recipes.world", lambda: (0, processes))
    replace_quantizers(model)
    assert model._codebook.use_ddp is (None if processes == 1 else False)


def test_a_module_in_two_places_is_swapped_once_and_stays_one() -> None:
    shared = vae.VectorQuantizer(16, 8, 0.25)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared])})
    model.elsewhere = [shared]
    report = replace_quantizers(model)
    assert [*report.replaced] == ["a"]
    assert model["a"] is model["b"][0] is model.elsewhere[0] is shared
    assert type(shared) is vqkernels.compat.diffusers.VectorQuantizer


def test_hooks_and_attributes_stay() -> None:
    quantizer = vae.VectorQuantizer(16, 8, 0.25)
    calls: list[str] = []
    handles = [
        quantizer.register_forward_pre_hook(lambda module, args: calls.append("before")),
        quantizer.register_forward_hook(lambda module, args, kwargs, out: calls.append("after"), with_kwargs=True),
        quantizer.register_full_backward_hook(lambda module, *gradients: calls.append("backward")),
    ]
    quantizer.remark = "mine"
    replace_quantizers(quantizer)
    z = torch.randn(1, 8, 2, 2, requires_grad=True)
    quantizer(z)[0].sum().backward()
    assert calls == ["before", "after", "backward"]
    assert quantizer.remark == "mine"
    for handle in handles:
        handle.remove()
    quantizer(z)[0].sum().backward()
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_training_mode_and_random_numbers_stay(dtype: torch.dtype) -> None:
    model = nn.Sequential(vae.VectorQuantizer(16, 8, 0.25), vector_quantize_pytorch.VectorQuantize(8, 16)).to(dtype)
    model[0].eval()
    state = torch.get_rng_state()
    replace_quantizers(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model] == [False, True]
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype, torch.bool}
