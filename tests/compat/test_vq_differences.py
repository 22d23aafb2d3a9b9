"""The rows of ``vqkernels/compat/README.md`` on vector quantizers that ``test_vq_defects.py`` does not see.

Oracles: plain torch in float64, distributions, the adapter itself under conditions that must not matter.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vqkernels.compat.vector_quantize_pytorch import VectorQuantize
from vqkernels.compat.vector_quantize_pytorch._options import CONFLICTS as MESSAGES
from vqkernels.testing import assert_bitwise_equal


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("threshold", [0, 2])
def test_a_batch_without_a_valid_vector_is_no_step(threshold: float) -> None:
    quantizer = VectorQuantize(8, 16, threshold_ema_dead_code=threshold)
    quantizer(torch.randn(2, 5, 8))
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(2, 5, 8), mask=torch.zeros(2, 5, dtype=torch.bool))
    for name, value in quantizer.state_dict().items():
        assert_bitwise_equal(value, before[name])


@pytest.mark.parametrize("estimator", [{}, {"rotation_trick": False}])
def test_the_value_in_training_is_the_code_to_the_bit(estimator: dict[str, Any]) -> None:
    quantizer = VectorQuantize(8, 16, freeze_codebook=True, **estimator)
    x = torch.randn(1, 40, 8)
    x[0, 3] = 0
    quantized, indices, _ = quantizer(x.requires_grad_())
    assert_bitwise_equal(quantized.detach(), quantizer.codebook[indices])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_are_float32(dtype: torch.dtype) -> None:
    quantizer = VectorQuantize(8, 16)
    codes = quantizer.codebook.clone()
    x = torch.randn(1, 300, 8).to(dtype)
    quantized, indices, loss = quantizer(x)
    assert loss.dtype == torch.float32
    assert quantized.dtype == dtype
    truth = (x[0].double() - codes[indices[0]].double()).square().mean()
    # each term rounded three times, the sum of them once per term, and its mean
    assert abs(loss.item() - truth) <= (x.numel() + 4) * torch.finfo(torch.float32).eps / 2 * truth


def test_given_codes_leave_the_value_as_it_is() -> None:
    quantizer = VectorQuantize(8, 16, codebook_dim=4, heads=2, freeze_codebook=True)
    x = torch.randn(2, 5, 8)
    quantized, indices, _ = quantizer(x)
    again, cross_entropy = quantizer(x, indices=indices)
    assert_bitwise_equal(again, quantized)
    assert cross_entropy.shape == ()


def test_an_assigned_codebook_stays() -> None:
    quantizer = VectorQuantize(4, 16, decay=0.5)
    quantizer(torch.randn(1, 50, 4))
    codes = torch.randn(16, 4) + 30
    codes[0] = 0
    quantizer.codebook = codes
    quantizer(torch.randn(1, 50, 4) * 0.01)  # all to the first code
    torch.testing.assert_close(quantizer.codebook[1:], codes[1:], rtol=1e-3, atol=0)


def test_dead_codes_ask_for_no_value() -> None:
    # a fake tensor has none: .item(), bool(), nonzero() on one raise
    with FakeTensorMode(allow_non_fake_inputs=True):
        quantizer = VectorQuantize(8, 32, threshold_ema_dead_code=2)
        x = torch.randn(2, 9, 8, requires_grad=True)
        quantized, _, loss = quantizer(x, mask=torch.rand(2, 9) > 0.5)
        (quantized.sum() + loss).backward()


def test_dead_codes_are_a_function_of_the_state_and_the_batch() -> None:
    first = VectorQuantize(4, 64, threshold_ema_dead_code=1, decay=0.5)
    second = VectorQuantize(4, 64, threshold_ema_dead_code=1, decay=0.5)
    second.load_state_dict(first.state_dict())
    for seed in range(4):
        x = torch.randn(1, 30, 4)
        for quantizer, order in ((first, torch.arange(30)), (second, torch.randperm(30))):
            torch.manual_seed(seed if quantizer is first else 77)
            quantizer(x[:, order])
        for name, value in first.state_dict().items():
            assert_bitwise_equal(second.state_dict()[name], value)


def test_straight_through_alone_turns_the_rotation_off() -> None:
    assert not VectorQuantize(8, 16, straight_through=True).rotation_trick
    assert VectorQuantize(8, 16).rotation_trick


@pytest.mark.parametrize("heads", [1, 2])
def test_codes_that_were_assigned_are_not_initialised_again(heads: int) -> None:
    """Neither by the first batch nor after a state was loaded. Oracle: a quantizer that has no initialisation."""
    options: dict[str, Any] = {"heads": heads, "codebook_dim": 4, "separate_codebook_per_head": heads > 1}
    quantizer = VectorQuantize(8, 16, kmeans_init=True, **options)
    plain = VectorQuantize(8, 16, **options)
    plain.load_state_dict(quantizer.state_dict() | {"_codebook.initted": torch.tensor(True)})
    codes = torch.randn(quantizer.codebook.shape)
    quantizer.codebook = plain.codebook = codes
    x = torch.randn(1, 100, 8)
    for got, want in zip(quantizer(x), plain(x), strict=True):
        assert_bitwise_equal(got, want)
    assert quantizer.state_dict()["_codebook.initted"]
    assert_bitwise_equal(quantizer.codebook, plain.codebook)


def test_sampled_codes_have_the_distribution_of_their_scores() -> None:
    quantizer = VectorQuantize(3, 6, stochastic_sample_codes=True, sample_codebook_temp=0.7, freeze_codebook=True)
    quantizer.codebook = torch.randn(6, 3)
    x = torch.randn(3)
    indices = quantizer(x.expand(1, 4000, 3))[1]
    logits = -torch.linalg.vector_norm(quantizer.codebook.double() - x.double(), dim=1) / 0.7
    expected = 4000 * logits.softmax(0)
    # chi-squared with 5 degrees of freedom exceeds 36 with a probability of 1e-6
    assert float(((indices.flatten().bincount(minlength=6) - expected) ** 2 / expected).sum()) < 36


CONFLICTS: dict[str, dict[str, Any]] = {
    "exclusive": {"straight_through": True, "rotation_trick": True},
    "cosine_learnable": {"use_cosine_sim": True, "learnable_codebook": True, "ema_update": False},
    "soft_learnable": {"straight_through": True, "learnable_codebook": True, "ema_update": False},
    "ema_learnable": {"learnable_codebook": True, "ema_update": True},
    "bridge_fixed": {"vq_bridge": torch.nn.Identity(), "learnable_codebook": False},
    "diveq_dead": {"directional_reparam": True},
    "sync_update_range": {"sync_update_v": 2.0, "learnable_codebook": True, "ema_update": False},
    "sync_update_fixed": {"sync_update_v": 0.5},
    "affine_cosine": {"affine_param": True, "use_cosine_sim": True},
}


@pytest.mark.parametrize("conflict", MESSAGES)
def test_options_that_exclude_each_other_are_named(conflict: str) -> None:
    with pytest.raises(ValueError) as error:
        VectorQuantize(8, 16, **CONFLICTS[conflict])
    assert str(error.value) == MESSAGES[conflict]


def test_diveq_adds_no_noise_in_evaluation() -> None:
    quantizer = VectorQuantize(8, 16, directional_reparam=True, threshold_ema_dead_code=1e-9)
    x = torch.randn(1, 20, 8)
    noisy = quantizer(x.clone().requires_grad_())[0]
    quantized, indices, _ = quantizer.eval()(x)
    assert not torch.equal(noisy, quantized)
    assert_bitwise_equal(quantized.detach(), quantizer.codebook[indices].detach())
