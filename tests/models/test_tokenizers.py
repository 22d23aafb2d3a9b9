"""Networks and their wiring. Oracles: shapes, published parameter counts, losses written out."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models.losses.adversarial import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    psnr,
    reconstruction_loss,
)
from models.networks.patch import PatchConfig
from models.networks.vqgan import VQGANConfig, VQGANDecoder, VQGANEncoder
from models.recipes import tokenizers as recipes
from models.tokenizers import Tokenizer, build_tokenizer
from models.tokenizers.config import QuantizerConfig

TINY_VQGAN = VQGANConfig(
    base_channels=32, multipliers=(1, 2), res_blocks=1, attention_levels=(1,), latent_channels=32
)
NETWORKS = {"patch": PatchConfig(hidden=32, blocks=1), "vqgan": TINY_VQGAN}
QUANTIZERS = {
    "learned": QuantizerConfig(codebook="learned", num_codes=16),
    "ema": QuantizerConfig(codebook="ema", num_codes=16, codebook_weight=0.0),
    "online": QuantizerConfig(codebook="online", num_codes=16),
    "frozen": QuantizerConfig(codebook="frozen", num_codes=16),
    "grouped": QuantizerConfig(codebook="online", num_codes=16, groups=4, code_dim=32),
}


def tokenizer(network: str, quantizer: str) -> Tokenizer:
    return build_tokenizer(NETWORKS[network], QUANTIZERS[quantizer], torch.randn(16, 6))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_shapes_and_gradients(network: str, quantizer: str) -> None:
    model = tokenizer(network, quantizer)
    images = torch.rand(2, 3, 16, 32) * 2 - 1
    reconstruction, indices, loss, losses = model(images)
    factor, groups = model.downsample, QUANTIZERS[quantizer].groups
    assert factor == {"patch": 8, "vqgan": 2}[network]
    grid = (2, 16 // factor, 32 // factor)
    assert reconstruction.shape == images.shape
    assert indices.shape == (grid if groups == 1 else (*grid, groups))
    assert loss.shape == ()
    assert set(losses) == ({"commitment"} if quantizer == "ema" else {"commitment", "codebook"})
    (reconstruction.square().mean() + loss).backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert missing == []


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("network", NETWORKS)
@torch.no_grad()
def test_encode_then_decode_is_the_reconstruction(network: str, quantizer: str) -> None:
    model = tokenizer(network, quantizer).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    reconstruction, indices, *_ = model(images)
    assert torch.equal(model.encode(images), indices)
    # forward adds (code - z) to z, which rounds; decode gathers the code: one float32 rounding each way
    torch.testing.assert_close(model.decode(indices), reconstruction)


def test_image_sides_must_be_multiples_of_the_factor() -> None:
    with pytest.raises(ValueError, match="images: expected multiples of 8 pixels, got 16x20"):
        tokenizer("patch", "learned")(torch.zeros(1, 3, 16, 20))


@pytest.mark.parametrize(
    ("recipe", "encoder", "decoder", "total"), [("vqgan_f16", 29.3, 42.5, 71.9), ("vqgan_f8", None, None, 70.1)]
)
def test_vqgan_has_the_published_number_of_weights(
    recipe: str, encoder: float | None, decoder: float | None, total: float
) -> None:
    network = recipes.RECIPES[recipe]().network
    assert isinstance(network, VQGANConfig)
    with torch.device("meta"):
        # the published counts are those with 16384 codes of dimension 8
        parts = VQGANEncoder(network, 8), VQGANDecoder(network, 8)
    sizes = [sum(weight.numel() for weight in part.parameters()) / 1e6 for part in parts]
    assert round(sum(sizes) + 16384 * 8 / 1e6, 1) == total
    if encoder is not None:
        assert [round(size, 1) for size in sizes] == [encoder, decoder]


def test_psnr_and_reconstruction_loss_are_their_formulas() -> None:
    images, wrong = torch.rand(2, 2, 3, 8, 8) * 2 - 1
    error = (images.double() - wrong.double()) / 2  # of images in [0, 1]
    expected = -10 * error.square().mean().log10()
    assert psnr(wrong, images).item() == pytest.approx(expected.item(), rel=1e-6)
    assert reconstruction_loss(wrong, images, "l1").item() == pytest.approx(2 * error.abs().mean().item(), rel=1e-6)
    assert reconstruction_loss(wrong, images, "l2").item() == pytest.approx(
        4 * error.square().mean().item(), rel=1e-6
    )


@pytest.mark.parametrize(("layers", "field"), [(2, 34), (3, 70)])
def test_a_patch_score_sees_its_receptive_field(layers: int, field: int) -> None:
    """34 and 70 pixels are the published receptive fields of PatchGAN with two and three strided layers."""
    discriminator = PatchDiscriminator(layers=layers, channels=8).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    scores = discriminator(images)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(dim=0) > 0
    assert (int(seen.any(dim=0).sum()), int(seen.any(dim=1).sum())) == (field, field)


def test_discriminator_loss_is_the_hinge() -> None:
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-2.0, 0.5])
    assert discriminator_loss(real, fake).item() == 0.5 * (0.25 + 0.75)


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    wanted, given = (3 * weight).sum(), weight[0] * 0.5  # gradients (3, 3) and (0.5, 0)
    assert adaptive_weight(wanted, given, weight).item() == pytest.approx(18**0.5 / (0.5 + 1e-4))
    assert adaptive_weight(1e6 * wanted, 0 * given, weight).item() == 1e4


def test_with_num_codes_divides_the_codes_among_the_groups() -> None:
    config = recipes.with_num_codes(recipes.patch_groups(), 2048)
    assert (config.quantizer.groups, config.quantizer.num_codes) == (4, 512)
    with pytest.raises(ValueError, match="total: expected a multiple of 4 groups, got 30"):
        recipes.with_num_codes(recipes.patch_groups(), 30)


def test_patch_recipes_differ_in_the_quantizer_alone() -> None:
    names = ("patch_fc", "patch_ema", "patch_cvq", "patch_lc", "patch_groups")
    configs = [recipes.RECIPES[name]() for name in names]
    plain = [
        dataclasses.replace(config, recipe="", quantizer=configs[0].quantizer, loss=configs[0].loss)
        for config in configs
    ]
    assert plain == [plain[0]] * 5
    assert {config.quantizer.num_codes * config.quantizer.groups for config in configs} == {4096}
