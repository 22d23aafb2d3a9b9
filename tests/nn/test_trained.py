"""Whatever can change the output of a quantizer is trained: by every combination of parts.

Oracle: a parameter is moved, and the output moves or not.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from covering import covering
from nn_oracle import KINDS

from vqkernels import FullCodebook, Regularizer, ResidualQuantizer, VectorQuantizer
from vqkernels.nn import EntropyLoss
from vqkernels.testing import assert_bitwise_equal

REGULARIZERS = [Regularizer(name="entropy", loss=EntropyLoss(temperature=0.5), weight=0.1)]
BY_GRADIENT = ("learned", "online-closest", "online-random", "online-drawn", "frozen", "matched")


def combinations(kind: str, stack: bool) -> list[tuple[Any, ...]]:
    """Estimator, metric, code width and groups, regularizers; stages of a stack have no estimator of their own."""
    estimators = ("none",) if stack else ("ste", "rotation", "none")
    full = (FullCodebook(),) if kind in BY_GRADIENT else ()
    widths = ((None, 1), (4, 2))
    return list(
        itertools.product((*estimators, *full), ("l2", "cosine"), widths, ((),) if stack else ((), REGULARIZERS))
    )


def assert_all_trained(module: torch.nn.Module, x: torch.Tensor) -> None:
    """Assert that every parameter that the output depends on has a gradient that is a number and not zero."""
    module.zero_grad()
    state, generator = copy.deepcopy(module), torch.Generator().manual_seed(4)
    out = module(x.clone().requires_grad_())
    (out.quantized * torch.randn(out.quantized.shape, generator=generator)).sum().add(out.loss).backward()
    for name, parameter in module.named_parameters():
        if not _matters(state, name, x, out.quantized):
            continue
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is no number"
        assert bool(parameter.grad.any()), f"the gradient of {name} is zero"


def _matters(module: torch.nn.Module, name: str, x: torch.Tensor, output: torch.Tensor) -> bool:
    other = copy.deepcopy(module)
    parameter = other.get_parameter(name)
    with torch.no_grad():
        parameter.mul_(1.5).add_(torch.randn(parameter.shape))
    return not torch.equal(other(x).quantized, output)


def quantizer(kind: str, gradient: Any, metric: str, width: tuple[int | None, int], regularizers: Any) -> Any:
    torch.manual_seed(7)
    made = VectorQuantizer(
        8,
        16,
        codebook=KINDS[kind](16),
        gradient=gradient,
        metric=metric,
        code_dim=width[0],
        groups=width[1],
        regularizers=regularizers,
    )
    if kind == "matched":
        made.fit_codebook(torch.randn(200, 8))
    return made


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["pairs", "all"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", [None, "ste", "rotation", "none"])  # of a stack, None = no stack
def test_every_parameter_that_matters_gets_a_gradient(kind: str, estimator: str | None, every: bool) -> None:
    failures = []
    # by default any two parts meet, in combinations that differ from kind to kind
    grid = {
        f"{kind} {estimator} {number}": dict(zip("abcd", combination, strict=True))
        for number, combination in enumerate(combinations(kind, stack=estimator is not None))
    }
    for name in grid if every else sorted(covering(grid, together=2)):
        combination = tuple(grid[name].values())
        stages = [quantizer(kind, *combination) for _ in range(2 if estimator else 1)]
        module = stages[0] if estimator is None else ResidualQuantizer(stages, gradient=estimator)
        try:
            assert_all_trained(module, torch.randn(20, 8))
        except (AssertionError, RuntimeError) as error:
            failures.append(f"{combination}: {str(error).splitlines()[0]}")
    assert not failures, "\n".join(failures)


def test_a_stack_gives_the_input_its_gradient_once() -> None:
    """Whatever estimator its stages came with; with FullCodebook that of every stage besides."""
    torch.manual_seed(0)
    x = torch.randn(40, 8, requires_grad=True)
    stages = [VectorQuantizer(8, 16, code_dim=4, gradient=gradient) for gradient in ("ste", "rotation", "none")]
    (gradient,) = torch.autograd.grad(ResidualQuantizer(stages)(x).quantized.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))
    stages = [VectorQuantizer(8, 16, gradient=FullCodebook()) for _ in range(2)]
    (gradient,) = torch.autograd.grad(ResidualQuantizer(stages, gradient="none")(x).quantized.sum(), x)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [("ema", "ste"), ("online-closest", "ste"), ("online-closest", FullCodebook(temperature=0.5))],
)
def test_a_step_that_writes_codes_leaves_the_backward_those_of_the_lookup(kind: str, gradient: object) -> None:
    """Oracle: the same step by a quantizer whose codebook stays."""
    moves = quantizer(kind, gradient, "l2", (None, 1), REGULARIZERS)
    stays = copy.deepcopy(moves)
    stays.table.update = lambda x, indices: torch.zeros(1, 16)
    x = torch.randn(40, 8)
    gradients = []
    for module in (moves, stays):
        given = x.clone().requires_grad_()
        out = module(given)
        (out.quantized.square().sum() + out.loss).backward()
        gradients.append([given.grad, *(p.grad for p in module.parameters())])
    assert not torch.equal(moves.codebook, stays.codebook)
    for got, want in zip(*gradients, strict=True):
        assert_bitwise_equal(got, want)
