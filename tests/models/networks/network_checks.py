"""What every network must do, whatever it computes: learn everywhere, run in bf16 and in channels_last."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


def millions(*modules: nn.Module) -> float:
    return sum(weight.numel() for module in modules for weight in module.parameters()) / 1e6


def disturb(module: nn.Module) -> None:
    """Random weights wherever they start at zero or one, so that nothing is hidden behind a closed gate."""
    with torch.no_grad():
        for weight in module.parameters():
            if weight.numel() > 1 and bool((weight == weight.flatten()[0]).all()):
                weight.add_(torch.randn_like(weight), alpha=0.1)


def assert_learns(run: Callable[[], torch.Tensor], *modules: nn.Module) -> None:
    """Every weight gets a gradient, finite and not all zero, from a loss on all outputs."""
    output = run()
    (output * torch.randn_like(output)).sum().backward()
    for module in modules:
        for name, weight in module.named_parameters():
            assert weight.grad is not None, name
            assert torch.isfinite(weight.grad).all(), name
            assert weight.grad.abs().max() > 0, name
    assert all(module.training for module in modules)


def assert_layout_does_not_matter(module: nn.Module, images: torch.Tensor) -> None:
    """The same in channels_last, as far as float32 sums in another order are the same."""
    with torch.no_grad():
        plain = module(images)
        last = copy.deepcopy(module).to(memory_format=torch.channels_last)
        other = last(images.to(memory_format=torch.channels_last))
    assert_close_to_float64(module, images, plain)
    assert_close_to_float64(module, images, other)


def assert_close_to_float64(module: nn.Module, images: torch.Tensor, output: torch.Tensor) -> None:
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(images.double())
    error = (output - exact).norm() / exact.norm()
    # a hundred layers or fewer, each of which rounds sums of thousands of terms: a wrong layer is off by its size
    assert error < 1e-4, f"relative error {error:.1e}"


def assert_bf16_is_near(module: nn.Module, *inputs: torch.Tensor) -> None:
    """Under autocast forward and backward stay finite, and the output near that of float32."""
    plain = module(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(*inputs)
    output.float().square().mean().backward()
    assert all(torch.isfinite(w.grad).all() for w in module.parameters() if w.grad is not None)
    error = (output.float() - plain).norm() / plain.norm()
    assert 0 < error < 0.1, f"relative error {error:.1e}"  # bf16 keeps 8 bits, tens of layers add up


def assert_checkpointing_changes_nothing(
    module: nn.Module, *inputs: torch.Tensor, run: Callable[..., torch.Tensor] | None = None
) -> None:
    """Same output, gradients and buffers with gradient checkpointing, and fewer tensors kept for backward."""
    module.zero_grad()
    other = copy.deepcopy(module)
    other.gradient_checkpointing = True
    results = []
    for network in (module, other):
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        torch.manual_seed(3)  # drop-path draws
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = network(*inputs) if run is None else run(network, *inputs)
        before = kept
        output.square().mean().backward()
        grads = [weight.grad for weight in network.parameters()]
        results.append((output, grads, dict(network.named_buffers()), before))
    (output, grads, buffers, kept_plain), (output2, grads2, buffers2, kept_checkpointed) = results
    assert kept_checkpointed < kept_plain
    torch.testing.assert_close(output2, output)
    torch.testing.assert_close(grads2, grads)
    torch.testing.assert_close(buffers2, buffers)
