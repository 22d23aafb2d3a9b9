"""Codes frozen within a codebook, and stacks that are fitted. Oracles: the codes before; k-means in levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vqkernels
from vqkernels.testing import assert_bitwise_equal

KINDS: dict[str, Any] = {
    "learned": vqkernels.Learned(),
    "ema": vqkernels.Ema(decay=0.5, dead_after=2),
    "online": vqkernels.OnlineClustering(decay=0.5),
    "frozen": vqkernels.Frozen(features=torch.randn(12, 5)),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_codes_stay_and_others_train(kind: str, groups: int) -> None:
    """Under weight decay and momentum, too; a resumed module goes on to the same bits."""
    options: dict[str, Any] = {"groups": groups, "codebook": KINDS[kind]}
    quantizer = vqkernels.VectorQuantizer(4, 12, **options)
    mask = torch.arange(12) < 5 if groups == 1 else torch.rand(groups, 12) < 0.5
    quantizer.freeze_codes(mask)
    before, held = quantizer.codebook.clone(), mask.expand(groups, 12)

    def train(module: vqkernels.VectorQuantizer, steps: range) -> None:
        spare = torch.nn.Parameter(torch.zeros(1))  # some have none
        optimizer = torch.optim.AdamW([*module.parameters(), spare], lr=0.1, weight_decay=0.5)
        for step in steps:
            x = torch.randn(64, 4, generator=torch.Generator().manual_seed(step))
            out = module(x.requires_grad_())
            (out.loss + out.quantized.square().sum()).backward()
            optimizer.step()
            optimizer.zero_grad()

    train(quantizer, range(3))
    resumed = vqkernels.VectorQuantizer(4, 12, **options)
    resumed.freeze_codes(torch.zeros(12, dtype=torch.bool))
    resumed.load_state_dict(quantizer.state_dict())
    for module in (quantizer, resumed):
        train(module, range(3, 5))
        assert_bitwise_equal(module.codebook[held], before[held])
        assert (module.codebook[~held] != before[~held]).any()
        x = torch.randn(50, 4)
        assert_bitwise_equal(module.eval().decode(module.encode(x)), module(x).quantized)
        module.train()
    assert_bitwise_equal(resumed.codebook, quantizer.codebook)


def test_a_fit_leaves_frozen_codes_alone() -> None:
    quantizer = vqkernels.VectorQuantizer(3, 6)
    quantizer.freeze_codes(torch.tensor([True, False, False, True, False, False]))
    before = quantizer.codebook.clone()
    quantizer.fit_codebook(torch.randn(40, 3) + 9)
    assert_bitwise_equal(quantizer.codebook[:, [0, 3]], before[:, [0, 3]])
    assert (quantizer.codebook[:, [1, 2, 4, 5]] > 4).all()
    weight = quantizer.table.weight
    quantizer(torch.randn(20, 3)).loss.backward()
    assert not weight.grad[:, [0, 3]].any()
    with pytest.raises(ValueError, match=r"mask: expected .*\[K\].*, got"):
        quantizer.freeze_codes(torch.ones(5, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"mask: expected bool, got torch\.float32"):
        quantizer.freeze_codes(torch.ones(6))


@pytest.mark.parametrize("parts", [1, 3])
def test_a_stack_is_fitted_like_k_means_in_levels(parts: int) -> None:
    x = torch.randn(200, 4)
    x[7] = torch.nan
    stack = vqkernels.ResidualQuantizer.build(3, 4, 8, codebook=vqkernels.Ema())
    stack.fit_codebook(x if parts == 1 else x.chunk(parts), max_iter=6, seed=3)
    want = vqkernels.residual_kmeans(x, [8] * 3, max_iter=6, seed=3)
    for stage, centroids in zip(stack.stages, want.centroids, strict=True):
        assert_bitwise_equal(stage.codebook[0], centroids)
    kept = torch.arange(200) != 7
    assert_bitwise_equal(stack.encode(x)[kept], want.indices[kept])
