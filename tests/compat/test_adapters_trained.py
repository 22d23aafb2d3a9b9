"""Whatever can change the output of an adapter is trained. Oracle: moving a parameter moves the output or not."""

from __future__ import annotations

import copy

import pytest
import torch
from zoo import ADAPTERS, call, example, make


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "EuclideanCodebook"])
def test_every_parameter_that_matters_gets_a_gradient(name: str) -> None:
    module, x = make(name), example(name)
    call(module, name, x)  # past any initialisation by data
    before = copy.deepcopy(module)
    quantized, loss = call(module, name, x.clone().requires_grad_())
    generator = torch.Generator().manual_seed(4)
    (quantized * torch.randn(quantized.shape, generator=generator)).sum().add(loss).backward()
    for path, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        moved = copy.deepcopy(before)
        with torch.no_grad():
            moved.get_parameter(path).mul_(1.5).add_(torch.randn(parameter.shape))
        if torch.equal(call(moved, name, x)[0], quantized):
            continue
        assert parameter.grad is not None, f"{path} gets no gradient"
        assert bool(parameter.grad.isfinite().all()), f"the gradient of {path} is no number"
        assert bool(parameter.grad.any()), f"the gradient of {path} is zero"
