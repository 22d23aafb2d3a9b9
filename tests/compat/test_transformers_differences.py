"""What the quantizers for transformers do differently, and what they refuse. Oracles are named in each test."""

from __future__ import annotations

import copy

import pytest
import torch
from hf_models import CASES, ask, drawn, ran, replaced_quantizer, set_codes, table
from needs import import_library
from pairs import Largest

from vqkernels.testing import assert_bitwise_equal, assert_exact_lookup

each_name = pytest.mark.parametrize("name", CASES)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("Dac", "Glm"))])
def test_the_lookup_is_exact(name: str) -> None:
    """Far from the origin, under autocast, and for vectors that lie as they come."""
    module = replaced_quantizer(name)
    codes = drawn(*table(module).shape) + (0 if "Apertus" in name else 300)
    set_codes(module, codes)
    rows = torch.randn(200, codes.shape[1]) + 300
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = ask(name, module, rows)
    if "Apertus" in name:
        distance, metric = -(rows.double() * codes[indices].double()).sum(1), "dot"
    else:
        distance, metric = (rows.double() - codes[indices].double()).square().sum(1), "l2"
    assert_exact_lookup(rows, codes, indices, distance.float(), metric=metric)


@each_name
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Oracle: the same vectors and codes in float32."""
    narrow = replaced_quantizer(name).to(dtype)
    set_codes(narrow, table(narrow))
    wide = copy.deepcopy(narrow).float()
    set_codes(wide, table(narrow))
    rows = torch.randn(50, table(narrow).shape[1]).to(dtype)
    assert_bitwise_equal(ask(name, narrow, rows), ask(name, wide, rows.float()))
    if name in ("ChameleonVQVAEVectorQuantizer", "JanusVQVAEVectorQuantizer", "GlmImageVQVAEVectorQuantizer"):
        value, loss, _ = narrow(rows.T[None, :, :, None])
        assert value.dtype == dtype
        assert loss.dtype == torch.float32


MAPS = [name for name in CASES if "VQVAE" in name and "Emu3" not in name]


@pytest.mark.parametrize("name", MAPS)
def test_values_are_the_codes(name: str) -> None:
    """The original adds and subtracts the input."""
    module = replaced_quantizer(name)
    codes = drawn(*table(module).shape)
    set_codes(module, codes)
    if "Glm" in name:
        codes = codes / torch.linalg.vector_norm(codes, dim=1, keepdim=True)
    value, _, indices = module(torch.randn(2, codes.shape[1], 4, 5) * 1000)
    assert_bitwise_equal(value.detach().movedim(1, -1).flatten(0, -2), codes[indices])


@pytest.mark.parametrize("name", MAPS)
def test_a_vector_that_is_not_finite_spoils_no_other(name: str) -> None:
    """Oracle: the batch without it."""
    module = replaced_quantizer(name)
    z = torch.randn(1, table(module).shape[1], 4, 5)
    bad = torch.cat([z, torch.full_like(z[..., :1], torch.nan)], dim=3)
    results = []
    for given in (bad, z):
        module.zero_grad()
        x = given.clone().requires_grad_()
        value, loss, indices = module(x)
        (value[..., :5].square().sum() + loss).backward()
        assert x.grad is not None
        assert not x.grad[..., 5:].any()
        results.append((loss.detach(), x.grad[..., :5], table(module).grad, indices.view(4, -1)[:, :5]))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_a_zero_code_of_dac_is_as_far_as_it_is() -> None:
    """The original takes its squared length with the wrong sign."""
    module = replaced_quantizer("DacVectorQuantize")
    codes = -torch.ones(table(module).shape)
    codes[3] = 0
    set_codes(module, codes)
    theirs = copy.deepcopy(ran("DacVectorQuantize").model.quantizer.quantizers[0])
    set_codes(theirs, codes)
    # at right angles to the other codes: sqrt(2) from them, 1 from zero
    x = torch.tensor([1.0, -1, 1, -1])[None, :, None]
    assert module.decode_latents(x)[1].item() == 3
    assert theirs.decode_latents(x)[1].item() != 3


def test_dac_finds_weights_that_accelerate_keeps_elsewhere() -> None:
    accelerate = import_library("accelerate")
    module = replaced_quantizer("DacVectorQuantize")
    x = torch.randn(2, 16, 20)
    want = module(x)
    accelerate.cpu_offload(module.codebook, execution_device=torch.device("cpu"))
    assert module.codebook.weight.is_meta
    for got, expected in zip(module(x), want, strict=True):
        assert_bitwise_equal(got, expected)
    assert module.codebook.weight.is_meta


@each_name
def test_no_tensor_has_a_number_for_each_vector_and_code(name: str) -> None:
    """The original makes one."""
    theirs, sizes = copy.deepcopy(ran(name).model.get_submodule(CASES[name].replaced[0])), []
    num_codes, dim = table(theirs).shape
    rows = torch.randn(1000, dim)
    for module in (replaced_quantizer(name), theirs):
        with Largest() as largest:
            ask(name, module, rows)
        sizes.append(largest.size)
    ours, original = sizes
    assert ours < 1000 * num_codes <= original
