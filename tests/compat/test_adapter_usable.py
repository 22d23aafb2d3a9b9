"""Vectors that are not finite, or very long, among good ones. Oracle: the same without them.

Gradients are numbers, good vectors are quantized as they are, and whatever an adapter keeps stays finite.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from zoo import ADAPTERS, SEQUENCE, call, example, make

import vqkernels.compat.vector_quantize_pytorch as vqp
from vqkernels.testing import assert_bitwise_equal

BAD = (torch.nan, torch.inf, 2.0**62.01, 3e38)
# its vectors are means of those of the map
_POOLED = ("HierarchicalVQ",)


def channels(name: str) -> int:
    return -1 if ADAPTERS[name].shape == SEQUENCE else 1


def spoilt(name: str, x: torch.Tensor, value: float, every: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of which some are bad, and which are good."""
    last = x.clone().movedim(channels(name), -1)
    good = torch.rand(last.shape[:-1], generator=torch.Generator().manual_seed(2)) < 0.6
    last[..., slice(None) if every else slice(3, 4)][~good] = value
    return last.movedim(-1, channels(name)), good


@pytest.mark.covering(2)
@pytest.mark.parametrize("every", [False, True])
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_and_state_are_numbers(name: str, value: float, every: bool) -> None:
    if name == "FSP" and value < 1e38:
        value *= 2.0**-32  # its loss squares variances
    module, clean = make(name), example(name)
    call(module, name, clean)  # past any start from data
    for _ in range(2):
        x, good = spoilt(name, example(name), value, every)
        x.requires_grad_()
        quantized, loss = call(module, name, x)
        objective = quantized.movedim(channels(name), -1)[good].square().sum() + loss
        if not objective.requires_grad:
            continue
        module.zero_grad()
        objective.backward()
        assert bool(objective.isfinite())
        gradient = x.grad.movedim(channels(name), -1)
        assert bool(gradient[good].isfinite().all())
        assert not bool(gradient[~good].isnan().any())
        if not value < 1e38 or name.startswith(("Vector", "Residual", "taming", "llama", "diff", "enc", "Sim")):
            assert bool(gradient.isfinite().all())
        for key, parameter in module.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), f"gradient of {key}"
    for key, tensor in module.state_dict().items():
        assert bool(tensor.isfinite().all()), key


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in _POOLED])
def test_good_vectors_are_quantized_as_without_them(name: str, value: float) -> None:
    module = make(name)
    call(module, name, example(name))
    module.eval()
    x = example(name)
    bad, good = spoilt(name, x, value, every=True)
    (got, _), (want, _) = call(module, name, bad), call(module, name, x)
    rows = [t.detach().movedim(channels(name), -1)[good] for t in (got, want)]
    if "sampled" in name or "Gumbel" in name:
        return
    torch.testing.assert_close(*rows)


def test_entries_of_a_scalar_quantizer_stand_alone() -> None:
    """Without projections: the other entries of the vector keep their values, the index has level 0 there."""
    for module, x in (
        (vqp.FSQ(levels=[5] * 8), torch.randn(4, 10, 8)),
        (vqp.ResidualFSQ(levels=[5] * 8, num_quantizers=2), torch.randn(4, 10, 8)),
    ):
        module.eval()
        want, _ = module(x)
        bad = x.clone()
        bad[1, 2, 3] = torch.nan
        given = bad.requires_grad_()
        got, _ = module(given)
        assert bool(got[1, 2, 3].isnan())
        keep = torch.ones_like(x, dtype=torch.bool)
        keep[1, 2, 3] = False
        assert_bitwise_equal(got[keep].detach(), want[keep])
        got[keep].sum().backward()
        assert bool(given.grad.isfinite().all())


def test_lost_vectors_have_a_defined_value_and_index() -> None:
    x = torch.randn(2, 6, 8)
    x[0, 1] = torch.nan
    options: dict[str, Any] = {"dim": 8}
    for module, nan in (
        (vqp.FSQ(levels=[5, 5, 4], **options), True),
        (vqp.ResidualFSQ(levels=[5, 5, 4], num_quantizers=2, **options), True),
        (vqp.LFQ(codebook_size=16, **options), False),
        (vqp.ResidualLFQ(codebook_size=16, num_quantizers=2, **options), False),
        (vqp.FSP(levels=[5, 5, 4], **options), True),
    ):
        for training in (False, True):
            quantized, indices, *_ = module.train(training)(x)
            assert bool(quantized[0, 1].isnan().all()) == nan
            assert not bool(indices[0, 1].any())
            keep = torch.ones(2, 6, dtype=torch.bool)
            keep[0, 1] = False
            assert bool(quantized[keep].isfinite().all())
    image, lost = torch.randn(2, 8, 3, 3), vqp.LatentQuantize(levels=[5, 5, 4], dim=8)
    image[1, :, 2, 0] = torch.inf
    quantized, indices, loss = lost(image)
    assert bool(quantized[1, :, 2, 0].isnan().all())
    assert indices[1, 2, 0] == 0
    assert bool(loss.isfinite())


def test_bits_whose_logits_are_no_numbers() -> None:
    logits = torch.tensor([[torch.nan, 2.0], [torch.inf, -torch.inf], [1.0, -1.0]], requires_grad=True)
    one_hot, loss = vqp.BinaryMapper(bits=2)(logits)
    assert one_hot[1].argmax() == 1
    (one_hot.square().sum() + loss).backward()
    assert bool(logits.grad.isfinite().all())
