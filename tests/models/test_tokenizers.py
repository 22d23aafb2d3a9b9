"""Networks and their wiring. Oracle: shapes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from models import recipes
from models.networks.patch import PatchConfig
from models.networks.vqgan import VQGANConfig
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


def test_with_num_codes_divides_the_codes_among_the_groups() -> None:
    config = recipes.with_num_codes(recipes.TOKENIZERS["patch_groups"](), 2048)
    assert (config.quantizer.groups, config.quantizer.num_codes) == (4, 512)
    with pytest.raises(ValueError, match="total: expected a multiple of 4 groups, got 30"):
        recipes.with_num_codes(recipes.TOKENIZERS["patch_groups"](), 30)


def test_patch_recipes_differ_in_the_quantizer_alone() -> None:
    names = ("patch_fc", "patch_ema", "patch_cvq", "patch_lc", "patch_groups")
    configs = [recipes.TOKENIZERS[name]() for name in names]
    plain = [dataclasses.replace(config, recipe="", quantizer=configs[0].quantizer) for config in configs]
    assert plain == [plain[0]] * 5
    assert {config.quantizer.num_codes * config.quantizer.groups for config in configs} == {4096}
