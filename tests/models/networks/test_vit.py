"""Vision transformers. Oracles: the published count, torch's own encoder layer, who may look at whom."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from network_checks import (
    assert_bf16_is_near,
    assert_checkpointing_changes_nothing,
    assert_close_to_float64,
    assert_learns,
    millions,
)
from torch import nn
from torch.nn import functional as F

from models.networks.vit import (
    Block,
    ConceptEncoder,
    ConceptEncoderConfig,
    DropPath,
    ViT,
    ViTConfig,
    concept_encoder_pocket,
    concept_mask,
    layer_of,
    load_mae,
    resized_positions,
    standardized,
    vit_pocket,
)

TINY = ConceptEncoderConfig(image_size=16, patch_size=8, tokens=5, layers=2, width=32, heads=4, drop_path=0.5)
TINY_VIT = ViTConfig(grid=4, layers=3, width=32, heads=4, drop_path=0.5)


def test_numbers_of_weights() -> None:
    with torch.device("meta"):
        images = ViT(ViTConfig(grid=14, patch_size=16), channels=3, num_classes=1000)
        maps = ViT(ViTConfig(), channels=8, num_classes=1000)
        concepts = ConceptEncoder(ConceptEncoderConfig(), 16)
        pockets = ConceptEncoder(concept_encoder_pocket(), 16), ViT(vit_pocket(), channels=8, num_classes=10)
    assert round(millions(images) * 1e6) == 86_567_656  # ViT-B/16 on 1000 classes, as everybody counts it
    # less the embedding of 3 x 16 x 16 pixels, more that of 8 channels, and 60 positions more
    assert round((millions(images) - millions(maps)) * 1e6) == (768 - 8) * 768 - 60 * 768
    # no head; positions and starts of 256 tokens, 60 more patches, and the projection
    more = (256 * 2 + 60) * 768 + (768 + 1) * 16 - (768 + 1) * 1000
    assert round((millions(concepts) - millions(images)) * 1e6) == more
    assert all(0.25 < millions(pocket) < 1 for pocket in pockets)


def test_a_block_is_the_encoder_layer_of_torch() -> None:
    block = Block(32, 4, 0.0).double()
    theirs = nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(std=0.3)
            prefix = next(prefix for prefix in names if name.startswith(prefix))
            block.get_parameter(names[prefix] + name.removeprefix(prefix)).copy_(weight)
    x, mask = torch.randn(2, 7, 32, dtype=torch.float64), concept_mask(3, 4)
    torch.testing.assert_close(block(x), theirs(x))
    torch.testing.assert_close(block(x, mask), theirs(x, src_mask=~mask))


def test_who_looks_at_whom() -> None:
    expected = [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert concept_mask(2, 3).int().tolist() == expected


def test_a_token_depends_on_itself_the_tokens_before_it_and_all_patches() -> None:
    encoder = ConceptEncoder(TINY, 6).eval()
    for token in range(5):
        images = torch.randn(1, 3, 16, 16, requires_grad=True)
        encoder.zero_grad()
        encoder(images)[0, token, 0].backward()
        starts = encoder.concept_tokens.grad[0].abs().amax(dim=1) > 0
        assert starts.tolist() == [other <= token for other in range(5)]
        patches = F.max_pool2d(images.grad.abs().amax(dim=1), 8)
        assert (patches > 0).all()


def test_the_first_tokens_are_the_same_however_many_follow() -> None:
    encoder = ConceptEncoder(TINY, 6).eval()
    shorter = ConceptEncoder(dataclasses.replace(TINY, tokens=2), 6).eval()
    weights = encoder.state_dict()
    weights["concept_tokens"] = weights["concept_tokens"][:, :2]
    weights["pos_embed"] = weights["pos_embed"][:, : 1 + 4 + 2]
    shorter.load_state_dict(weights)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(shorter(images), encoder(images)[:, :2])


def test_tokens_leave_standardized() -> None:
    encoder = ConceptEncoder(TINY, 6).eval()
    images = torch.randn(2, 3, 16, 16)
    tokens = encoder(images)
    assert tokens.shape == (2, 5, 6)
    assert tokens.mean(dim=2).abs().max() < 1e-5
    assert (tokens.std(dim=2) - 1).abs().max() < 1e-3
    plain = ConceptEncoder(dataclasses.replace(TINY, standardize=False), 6).eval()
    plain.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(standardized(plain(images)), tokens)
    assert torch.isfinite(standardized(torch.ones(2, 4))).all()


def test_drop_path_skips_whole_samples_and_keeps_the_mean() -> None:
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    dropped = drop(x)
    values, counts = dropped[:, 0, 0].unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 4 / 3]))
    assert (dropped == dropped[:, :1, :1]).all()
    # 4000 draws: a standard deviation of 0.7 % about the share
    assert counts[0].item() / 4000 == pytest.approx(0.25, abs=0.035)
    assert drop.eval()(x) is x


def test_drop_path_grows_linearly() -> None:
    assert [block.drop_path.probability for block in ViT(TINY_VIT, channels=2, num_classes=3).blocks] == [
        0,
        0.25,
        0.5,
    ]


def test_both_learn_in_every_precision_and_with_checkpointing() -> None:
    no_drop = dataclasses.replace(TINY, drop_path=0.0), dataclasses.replace(TINY_VIT, drop_path=0.0)
    networks = [
        (ConceptEncoder(no_drop[0], 6), torch.randn(2, 3, 16, 16)),
        (ViT(no_drop[1], channels=2, num_classes=3), torch.randn(2, 2, 4, 4)),
    ]
    for network, x in networks:
        with torch.no_grad():
            assert_close_to_float64(network, x, network(x.to(memory_format=torch.channels_last)))
        assert_learns(lambda network=network, x=x: network(x), network)
        network.zero_grad()
        assert_bf16_is_near(network, x)
    # with drop-path drawn again in the second pass as in the first
    assert_checkpointing_changes_nothing(ConceptEncoder(TINY, 6), torch.randn(4, 3, 16, 16))
    assert_checkpointing_changes_nothing(ViT(TINY_VIT, channels=2, num_classes=3), torch.randn(4, 2, 4, 4))


def mae_weights(config: ViTConfig, channels: int) -> dict[str, torch.Tensor]:
    """What a pretraining of MAE leaves: an encoder with a last norm, a decoder beside it."""
    weights = {
        name: torch.randn_like(weight)
        for name, weight in ViT(config, channels=channels, num_classes=1).state_dict().items()
    }
    kept = {name: weight for name, weight in weights.items() if not name.startswith(("fc_norm", "head"))}
    ends = ("norm.weight", "norm.bias", "mask_token", "decoder_pos_embed", "decoder_blocks.0.norm1.weight")
    return {**kept, **{name: torch.randn(2) for name in ends}}


def test_weights_of_mae() -> None:
    pretrained = mae_weights(dataclasses.replace(TINY_VIT, grid=2, patch_size=8), 3)
    model = ViT(TINY_VIT, channels=2, num_classes=3)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    load_mae(model, pretrained)
    for name, weight in model.state_dict().items():
        if name.startswith(("patch_embed.", "fc_norm.", "head.")):
            assert torch.equal(weight, before[name]), name
        elif name == "pos_embed":
            assert torch.equal(weight, resized_positions(pretrained[name], 4))
        else:
            assert torch.equal(weight, pretrained[name]), name
    image = ViT(dataclasses.replace(TINY_VIT, grid=2, patch_size=8), channels=3, num_classes=3)
    load_mae(image, pretrained, patches=True)
    assert torch.equal(image.patch_embed.proj.weight, pretrained["patch_embed.proj.weight"])
    assert torch.equal(image.pos_embed, pretrained["pos_embed"])


def test_weights_that_are_not_those_of_mae() -> None:
    model = ViT(TINY_VIT, channels=2, num_classes=3)
    weights = mae_weights(TINY_VIT, 2)
    with pytest.raises(
        ValueError, match=r"expected those of an MAE encoder with 3 blocks, got blocks.1.norm1.bias wrong"
    ):
        load_mae(model, {name: weight for name, weight in weights.items() if name != "blocks.1.norm1.bias"})
    with pytest.raises(ValueError, match="got surplus wrong"):
        load_mae(model, {**weights, "surplus": torch.zeros(1)})


def test_resized_positions_keep_their_directions() -> None:
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
    channels = torch.stack([row, column, torch.full((6, 6), 5.0)], dim=-1).flatten(0, 1)  # [36, 3]
    positions = torch.cat([torch.full((1, 3), 7.0), channels])[None]
    resized = resized_positions(positions, 12)
    assert torch.equal(resized[:, 0], positions[:, 0])
    down, across, same = resized[0, 1:].unflatten(0, (12, 12)).unbind(-1)
    torch.testing.assert_close(down, across.mT)
    torch.testing.assert_close(down, down[:, :1].expand(12, 12))
    assert (down[1:, 0] > down[:-1, 0]).all()
    torch.testing.assert_close(same, torch.full((12, 12), 5.0))
    assert resized_positions(positions, 6) is positions
    with pytest.raises(ValueError, match="positions: expected a class token and a square grid, got 8 positions"):
        resized_positions(torch.zeros(1, 8, 2), 3)


def test_layers_for_learning_rates() -> None:
    model = ViT(TINY_VIT, channels=2, num_classes=3)
    depths = {name: layer_of(name, 3) for name, _ in model.named_parameters()}
    assert depths["cls_token"] == depths["pos_embed"] == depths["patch_embed.proj.weight"] == 0
    assert depths["blocks.0.attn.qkv.weight"] == 1
    assert depths["blocks.2.mlp.fc2.bias"] == 3
    assert depths["fc_norm.weight"] == depths["head.weight"] == 4


def test_configs_and_images_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="image_size: expected a multiple of 16 pixels, got 100"):
        ConceptEncoderConfig(image_size=100)
    with pytest.raises(ValueError, match="tokens: expected at least 1, got 0"):
        ConceptEncoderConfig(tokens=0)
    with pytest.raises(ValueError, match="width: expected a multiple of 12 heads, got 100"):
        ViTConfig(width=100)
    with pytest.raises(ValueError, match="drop_path: expected a share below 1, got 1"):
        ViTConfig(drop_path=1)
    with pytest.raises(ValueError, match="width: expected at least 2 channels to standardize over, got 1"):
        ConceptEncoder(TINY, 1)
    with pytest.raises(ValueError, match="images: expected 16x16, got 16x32"):
        ConceptEncoder(TINY, 6)(torch.zeros(1, 3, 16, 32))
    with pytest.raises(ValueError, match="x: expected 4x4, got 8x8"):
        ViT(TINY_VIT, channels=2, num_classes=3)(torch.zeros(1, 2, 8, 8))
