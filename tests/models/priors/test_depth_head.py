"""Depth heads: what each group may know, both structures, parallel layers, agreement of training and sampling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from models.networks.depth_head import DepthHead, DepthHeadConfig

STRUCTURES = ["groups", "residual", "parallel"]


def head(structure: str, groups: int = 4) -> DepthHead:
    return DepthHead(DepthHeadConfig(structure=structure), width=16, num_codes=7, groups=groups)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_group_knows_the_earlier_ones_only(structure: str, awake: Callable[[DepthHead], DepthHead]) -> None:
    network = awake(head(structure))
    vectors, codes = torch.randn(3, 16, dtype=torch.float64), torch.randint(7, (3, 4))
    before = network(vectors, codes[:, :-1])
    assert before.shape == (3, 4, 16)
    changed = codes.clone()
    changed[:, 1] = (codes[:, 1] + 1) % 7
    after = network(vectors, changed[:, :-1])
    assert torch.equal(before[:, :2], after[:, :2])
    knows = (before[:, 2:] != after[:, 2:]).any(dim=2)
    assert not knows.any() if structure == "parallel" else knows.all()
    assert (network(vectors + 1, codes[:, :-1]) != before).any(dim=2).all()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_sampling_sees_what_training_saw(structure: str, awake: Callable[[DepthHead], DepthHead]) -> None:
    network = awake(head(structure))
    vectors, codes = torch.randn(3, 16, dtype=torch.float64), torch.randint(7, (3, 4))
    features = network(vectors, codes[:, :-1])
    for group in range(4):
        expected = features[:, group] @ network.output_weight(group).T
        torch.testing.assert_close(network.next_logits(vectors, codes[:, :group]), expected)


def test_residual_levels_are_summed(awake: Callable[[DepthHead], DepthHead]) -> None:
    """RQ-Transformer: a level sees the vector so far, so the order of the levels before it does not matter."""
    network = awake(head("residual"))
    network.blocks = torch.nn.ModuleList()  # what attention sees one by one, it would tell apart
    vectors = torch.randn(1, 16, dtype=torch.float64)
    a = network(vectors, torch.tensor([[2, 5]]))[:, -1]
    b = network(vectors, torch.tensor([[5, 2]]))[:, -1]
    torch.testing.assert_close(a, b)
    assert not torch.allclose(a, network(vectors, torch.tensor([[5, 3]]))[:, -1])


def test_size_is_mgvqs() -> None:
    """Two blocks of 16 W^2, a table and an output of K W, G + 1 positions, the start, norms."""
    with torch.device("meta"):
        network = DepthHead(DepthHeadConfig(), width=1536, num_codes=8192, groups=4)
    count = sum(parameter.numel() for parameter in network.parameters())
    norms = 2 * (2 * 1536 + 2 * 1536 // 4) + 2 * 1536
    assert count == 2 * 16 * 1536**2 + 2 * 8192 * 1536 + 6 * 1536 + norms


def test_checkpointing_gives_the_same_gradients() -> None:
    network = head("groups").double()
    vectors, codes = torch.randn(3, 16, dtype=torch.float64), torch.randint(7, (3, 3))

    def gradients() -> list[torch.Tensor]:
        used = [parameter for parameter in network.parameters() if parameter is not network.output.weight]
        return list(torch.autograd.grad(network(vectors, codes).square().sum(), used))

    plain = gradients()
    network.gradient_checkpointing = True
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match=r"^width: expected a multiple of 3 heads, got 16$"):
        head("groups", groups=3)
    with pytest.raises(ValueError, match=r"^layers: expected at least 1, got 0$"):
        DepthHeadConfig(layers=0)
    with pytest.raises(ValueError, match=r"^heads: expected at least 1, or none for one per group, got 0$"):
        DepthHeadConfig(heads=0)
