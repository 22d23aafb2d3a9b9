"""GPT: published sizes, both styles, positions, what sees what, the cache, inputs, errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch

from models.networks import gpt as published
from models.networks.code_embedding import CodeEmbedding, CodeVectors
from models.networks.code_shape import CodeShape
from models.networks.gpt import GPT, GPTConfig, rotate, rotations

TINY = GPTConfig(layers=2, heads=2, width=16, dropout=0.0, embedding_dropout=0.0)
STYLES = {
    "mingpt": dataclasses.replace(TINY, style="mingpt", positions="learned"),
    "llamagen": TINY,
    "released": dataclasses.replace(TINY, prefix_rotation="zero"),
    "learned": dataclasses.replace(TINY, positions="learned"),
}
CODES = CodeShape(num_codes=11, grid=(3, 4), num_classes=5)


def millions(config: GPTConfig, codes: CodeShape) -> float:
    with torch.device("meta"):
        network = GPT(config, codes)
    return sum(parameter.numel() for parameter in network.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "printed"), [("llamagen_b", 111), ("llamagen_l", 343), ("llamagen_xl", 775), ("llamagen_xxl", 1411)]
)
def test_llamagen_has_its_published_size(name: str, printed: int) -> None:
    """(1.4 B is printed of the last.)"""
    codes = CodeShape(num_codes=16384, grid=(16, 16), num_classes=1000)
    assert round(millions(getattr(published, name)(), codes)) == printed


@pytest.mark.parametrize(("name", "printed"), [("seq_base", 172), ("seq_large", 305)])
@pytest.mark.parametrize("causal", [True, False])
def test_seq_gan_has_its_published_size(name: str, printed: int, causal: bool) -> None:
    """Without classes; the thousand of ImageNet add 1,001 vectors."""
    config = dataclasses.replace(getattr(published, name)(), causal=causal)
    codes = CodeShape(num_codes=1024, grid=(16, 16))
    assert round(millions(config, codes)) == printed
    more = millions(config, dataclasses.replace(codes, num_classes=1000)) - millions(config, codes)
    assert round(more * 1e6) == 1000 * config.width


def test_the_404_million_of_vqgan_lc() -> None:
    """They are the matrices of the blocks and one of the two code tables; both tables make it 508."""
    codes = CodeShape(num_codes=100_000, grid=(16, 16), num_classes=1000)
    with torch.device("meta"):
        network = GPT(published.vqgan_lc(), codes)
    blocks = sum(parameter.numel() for parameter in network.blocks.parameters() if parameter.ndim == 2)
    assert network.head is not None
    assert math.floor((blocks + network.head.weight.numel()) / 1e6) == 404
    assert round(millions(published.vqgan_lc(), codes)) == 508


@pytest.mark.parametrize("style", STYLES)
def test_a_causal_network_sees_no_later_code(style: str, awake: Callable[[GPT], GPT]) -> None:
    network = awake(GPT(STYLES[style], CODES))
    codes, labels = torch.randint(11, (2, 11)), torch.tensor([0, 5])
    changed = codes.clone()
    changed[:, 6] = (codes[:, 6] + 1) % 11
    before, after = network(codes, labels), network(changed, labels)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 7:] != after[:, 7:]).any(dim=2).all()


def test_a_bidirectional_network_sees_every_code(awake: Callable[[GPT], GPT]) -> None:
    network = awake(GPT(dataclasses.replace(TINY, causal=False), CODES))
    codes, labels = torch.randint(11, (1, 12)), torch.tensor([0])
    changed = codes.clone()
    changed[:, 6] = 11  # the mask
    assert (network(codes, labels) != network(changed, labels)).any(dim=2).all()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("frames", [1, 3])
def test_the_cache_changes_nothing(style: str, frames: int, awake: Callable[[GPT], GPT]) -> None:
    shape = dataclasses.replace(CODES, frames=frames)
    network = awake(GPT(STYLES[style], shape))
    codes, labels = torch.randint(11, (2, shape.length - 1)), torch.tensor([0, 5])
    whole = network(codes, labels)
    cache = network.new_cache()
    for pieces in ((0, 1, 1, 4, shape.length - 7), (shape.length - 1,)):
        parts = [network(part, labels, cache) for part in codes.split(pieces, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-12, atol=1e-12)
        cache.clear()


@pytest.mark.parametrize("style", STYLES)
def test_every_position_counts(style: str, awake: Callable[[GPT], GPT]) -> None:
    """Equal codes at two places tell the next ones apart: by frame, row and column."""
    shape = dataclasses.replace(CODES, frames=2)
    out = awake(GPT(STYLES[style], shape))(torch.zeros(1, 23, dtype=torch.int64), torch.tensor([0]))[0]
    distances = torch.cdist(out, out) + 1e3 * torch.eye(24)
    assert distances.min() > 1e-3


def test_rotations_are_those_of_row_and_column() -> None:
    shape = CodeShape(num_codes=2, grid=(2, 3))
    table = rotations(8, shape, "none")
    assert table.shape == (7, 4, 2)
    assert torch.equal(table[0], torch.tensor([[1.0, 0.0]] * 4))
    assert not rotations(8, shape, "zero")[0].any()
    angles = [1.0, 10000**-0.5, 2.0, 2 * 10000**-0.5]  # row 1, column 2
    torch.testing.assert_close(table[6, :, 0], torch.tensor([math.cos(a) for a in angles]))
    torch.testing.assert_close(table[6, :, 1], torch.tensor([math.sin(a) for a in angles]))


def test_rotation_makes_scores_depend_on_differences() -> None:
    """Query at (r, c), key at (r', c'): the product is that of any other pair as far apart."""
    shape = CodeShape(num_codes=2, grid=(4, 5))
    table = rotations(8, shape, "none").double()
    query, key = torch.randn(2, 8, dtype=torch.float64)
    turned = [rotate(x.expand(1, 1, 21, 8), table)[0, 0, 1:].view(4, 5, 8) for x in (query, key)]
    near = turned[0][1, 2] @ turned[1][0, 0]
    torch.testing.assert_close(near, turned[0][3, 4] @ turned[1][2, 2], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(turned[0].norm(dim=2), query.norm().expand(4, 5), rtol=1e-6, atol=1e-6)


def test_weights_start_as_published() -> None:
    for style in ("mingpt", "llamagen"):
        network = GPT(dataclasses.replace(STYLES[style], width=64), dataclasses.replace(CODES, num_codes=500))
        assert network.head is not None
        assert network.head.weight.any() == (style == "mingpt")
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                assert not parameter.any()
            elif parameter.ndim == 2 and parameter.numel() > 4000 and name != "head.weight":
                assert 0.018 < parameter.std() < 0.022, name


def test_checkpointing_gives_the_same_gradients() -> None:
    network = GPT(dataclasses.replace(TINY, dropout=0.2), CODES).double()
    codes, labels = torch.randint(11, (2, 11)), torch.tensor([0, 5])

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(1)
        used = [parameter for parameter in network.parameters() if parameter is not network.head.weight]
        return list(torch.autograd.grad(network(codes, labels).square().sum(), used))

    plain = gradients()
    network.gradient_checkpointing = True
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def test_groups_have_tables_of_their_own() -> None:
    embed = CodeEmbedding(5, 3, 8)
    codes = torch.tensor([[[0, 1, 2], [1, 0, 2]]])
    out = embed(codes)
    rows = embed.table.weight.view(3, 5, 8)
    torch.testing.assert_close(out[0, 0], rows[0, 0] + rows[1, 1] + rows[2, 2])
    assert not torch.allclose(out[0, 0], out[0, 1])


def test_code_vectors_are_the_tokenizers() -> None:
    embed = CodeVectors(5, 3, 12, 16)
    codes = torch.tensor([[[0, 1, 2], [4, 0, 2]]])
    with pytest.raises(ValueError, match=r"^codes: expected the tokenizer's codes before the first batch, got none$"):
        embed(codes)
    table = torch.randn(3, 5, 4)
    embed.set_codes(table)
    expected = torch.cat([table[0, 4], table[1, 0], table[2, 2]])
    torch.testing.assert_close(embed(codes)[0, 1], embed.mlp(expected))
    again = CodeVectors(5, 3, 12, 16)
    again.load_state_dict(embed.state_dict())
    assert torch.equal(again(codes), embed(codes))
    assert not any(parameter.shape == table.shape for parameter in embed.parameters())
    with pytest.raises(ValueError, match=r"^codes: expected \(3, 5, 4\), got \(5, 12\)$"):
        embed.set_codes(torch.zeros(5, 12))


def test_errors_name_the_argument() -> None:
    network = GPT(TINY, CODES)
    codes, labels = torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0])
    with pytest.raises(ValueError, match=r"^labels: expected one class per sample, got none$"):
        network(codes)
    with pytest.raises(ValueError, match=r"^codes: expected at most 12, got 13$"):
        network(torch.zeros(1, 13, dtype=torch.int64), labels)
    cache = network.new_cache()
    network(codes, labels, cache)
    with pytest.raises(ValueError, match=r"^batch: expected 1 as in the cache, got 2$"):
        network(torch.zeros(2, 1, dtype=torch.int64), torch.tensor([0, 1]), cache)
    with pytest.raises(ValueError, match=r"^labels: expected none from an unconditional network, got \(1,\)$"):
        GPT(TINY, dataclasses.replace(CODES, num_classes=0))(codes, labels)
    with pytest.raises(ValueError, match=r"^cache: expected a causal network, got a bidirectional one$"):
        GPT(dataclasses.replace(TINY, causal=False), CODES).new_cache()
    with pytest.raises(ValueError, match=r"^width: expected a multiple of 8 for 2 heads, got 12$"):
        dataclasses.replace(TINY, width=12)
    with pytest.raises(ValueError, match=r"^dropout: expected a share in \[0, 1\), got 1$"):
        dataclasses.replace(TINY, dropout=1)
    with pytest.raises(ValueError, match=r"^inputs: expected 'indices' for a network with a mask token"):
        dataclasses.replace(TINY, causal=False, inputs="vectors")
    with pytest.raises(ValueError, match=r"^code_dim: expected the width of a code for inputs 'vectors', got 0$"):
        GPT(dataclasses.replace(TINY, inputs="vectors"), CODES)
    with pytest.raises(ValueError, match=r"^num_codes: expected at least 1 for inputs 'indices', got 0$"):
        GPT(TINY, CodeShape(num_codes=0, grid=(1, 2), code_dim=3))
    with pytest.raises(ValueError, match=r"^groups: expected 1 for a network with a mask token, got 2$"):
        GPT(dataclasses.replace(TINY, causal=False), dataclasses.replace(CODES, groups=2))
    with pytest.raises(ValueError, match=r"^grid: expected rows and columns of at least 1, got \(0, 4\)$"):
        dataclasses.replace(CODES, grid=(0, 4))
    with pytest.raises(ValueError, match=r"^code_dim: expected a multiple of the 3 groups, got 4$"):
        dataclasses.replace(CODES, groups=3, code_dim=4)
