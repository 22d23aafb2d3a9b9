"""Adapters in every precision: cast as a whole, under autocast, with parts that do not train."""

from __future__ import annotations

import pytest
import torch
from zoo import ADAPTERS, call, example, make

import vqkernels.compat.vector_quantize_pytorch as vqp
from vqkernels.compat import taming
from vqkernels.compat.encodec.quantization import core_vq

DTYPES = (torch.float64, torch.float16, torch.bfloat16)
# parameters of this size make losses beyond 16 bits, and their optimizer belongs to the caller
_TRAINED_ON_VALUES = ("FSP", "LatentQuantize")


def assert_finite_state(module: torch.nn.Module) -> None:
    for key, tensor in module.state_dict().items():
        assert bool(tensor.isfinite().all()), key


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ADAPTERS)
def test_a_module_that_is_cast_trains(name: str, dtype: torch.dtype) -> None:
    module = make(name).to(dtype)
    for _ in range(2):
        x = example(name).to(dtype).requires_grad_()
        quantized, loss = call(module, name, x)
        assert bool(quantized.isfinite().all())
        assert quantized.dtype == dtype
        if quantized.requires_grad:
            (quantized.float().square().sum() + loss).backward()
            assert bool(x.grad.isfinite().all())
    assert_finite_state(module)


@pytest.mark.parametrize("name", ADAPTERS)
def test_training_under_autocast(name: str) -> None:
    module, x = make(name), example(name).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        quantized, loss = call(module, name, x)
    assert bool(quantized.isfinite().all())
    if quantized.requires_grad:
        (quantized.float().square().sum() + loss).backward()
        assert bool(x.grad.isfinite().all())
    assert_finite_state(module)


@pytest.mark.parametrize("of_module", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ADAPTERS)
def test_autocast_leaves_float64_alone(name: str, of_module: torch.dtype) -> None:
    """So that it meets no projection of another type, which is told before anything else."""
    module = make(name).to(of_module)
    x = example(name).to(torch.float32 if of_module == torch.float64 else torch.float64)
    message = ""
    with torch.autocast("cpu", torch.bfloat16):
        try:
            call(module, name, x)
        except TypeError as error:
            message = str(error)
    told = f"expected {of_module} as that of the projection, got {x.dtype}"
    assert message in ("", f"x: {told}", f"z: {told}")


@pytest.mark.parametrize("size", [300.0, 65504.0])
@pytest.mark.parametrize("name", [name for name in ADAPTERS if not name.startswith(_TRAINED_ON_VALUES)])
def test_statistics_that_float16_does_not_hold_change_no_code(name: str, size: float) -> None:
    module = make(name).half()
    for _ in range(3):
        x = example(name)
        with torch.no_grad():
            call(module, name, (x * size).clamp(-size, size).half())
        assert_finite_state(module)


def test_codes_put_on_vectors_are_as_they_are_and_count_what_float16_holds() -> None:
    """Oracle: exact numbers. 300 vectors of size 400 have a sum that it does not hold."""
    codebook = core_vq.EuclideanCodebook(dim=2, codebook_size=2, kmeans_init=True, threshold_ema_dead_code=0).half()
    near, far = torch.full((300, 2), 400.0), torch.full((3, 2), -8.0)
    codebook.train()
    codebook(torch.cat([near, far])[None].half())
    (many,) = (codebook.embed[:, 0] > 0).nonzero().tolist()
    (few,) = (codebook.embed[:, 0] < 0).nonzero().tolist()
    assert_finite_state(codebook)
    assert codebook.embed[many[0]].tolist() == [400, 400]
    assert codebook.embed[few[0]].tolist() == [-8, -8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_implicit_codes_are_decoded_in_the_precision_of_their_network(dtype: torch.dtype) -> None:
    name = "ResidualVQ-implicit"
    module, x = make(name).to(dtype).eval(), example(name)
    for given in (torch.float32, dtype):
        quantized, indices, _ = module(x.to(given))
        torch.testing.assert_close(module.get_output_from_indices(indices).to(given), quantized, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("frozen", ["proj", "embed", ""])
def test_gumbel_trains_what_is_left_to_train(frozen: str) -> None:
    quantizer = taming.GumbelQuantize(8, 6, 16, kl_weight=0.1)
    for name, parameter in quantizer.named_parameters():
        parameter.requires_grad_(not frozen or not name.startswith(frozen))
    z_q, loss, _ = quantizer(torch.randn(2, 8, 3, 4))
    (z_q.square().sum() + loss).backward()
    for parameter in quantizer.parameters():
        assert (parameter.grad is not None and bool(parameter.grad.any())) == parameter.requires_grad


def test_an_optimizer_of_its_own_finds_frozen_values() -> None:
    quantizer = vqp.LatentQuantize(
        levels=[5, 4], dim=2, in_place_codebook_optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)
    )
    for parameter in quantizer.parameters():
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in quantizer.parameters()]
    quantizer(torch.randn(3, 2, 4))
    assert all(torch.equal(new, old) for new, old in zip(quantizer.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_first_step_in_inference_mode_is_one_of_training(name: str) -> None:
    modules = [make(name), make(name)]
    x = example(name)
    with torch.inference_mode():
        call(modules[0], name, x)
    call(modules[1], name, x)
    for module in modules:
        call(module, name, x)
    states = [module.state_dict() for module in modules]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key])
