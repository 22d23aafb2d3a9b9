"""Small networks with something in every weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


@pytest.fixture
def awake() -> Callable[[Module], Module]:
    """Weights spread as 1/sqrt(inputs), in float64: logits well apart, and what starts at zero carries something."""

    def wake(module: Module) -> Module:
        generator = torch.Generator().manual_seed(0)
        module.double()
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                if parameter.ndim > 1:
                    parameter.copy_(1.5 * parameter.shape[1] ** -0.5 * drawn)
                else:
                    parameter.copy_(0.1 * drawn + (0.0 if name.endswith("bias") else 1.0))
        return module.eval()

    return wake
