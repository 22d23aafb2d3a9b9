"""Every registered op as torch sees it: schema, fake tensors, autograd, ``torch.compile`` and ``torch.export``.

Oracles: torch's own ``opcheck`` for the registration, the eager call for compiled and exported programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from vqkernels import (
    code_stats,
    ema_update_,
    gather_codes,
    multilevel_nearest_code,
    nearest_code,
    quantize,
    top_codes,
)
from vqkernels._core.backend import registered_ops
from vqkernels.testing import assert_bitwise_equal, assert_within_budget, lookup_problem, usable_backends

X, CODEBOOK = lookup_problem("gaussian", 12, 7, 4, groups=2)
INDICES = torch.randint(-1, 7, (12, 2))

Arguments = tuple[Any, ...]
OPCHECKS: dict[str, list[Callable[[], Arguments]]] = {
    "nearest_code": [
        lambda: (X, CODEBOOK, "l2"),
        lambda: (X.half(), CODEBOOK, "cosine"),
        lambda: (X[:0], CODEBOOK, "dot"),
    ],
    "top_codes": [
        lambda: (X, CODEBOOK, 3, "l2"),
        lambda: (X.bfloat16(), CODEBOOK, 7, "cosine"),
        lambda: (X[:0], CODEBOOK, 1, "dot"),
    ],
    "multilevel_nearest_code": [
        lambda: ([X[:, 0], X[:, 1, :3]], [CODEBOOK[0], CODEBOOK[1, :, :3]], [1.0, 0.5], False),
        lambda: ([X[:, 0].double()], [CODEBOOK[0].half()], [2.0], True),
        lambda: ([X[:0, 0]], [CODEBOOK[0]], [1.0], False),
    ],
    "code_stats": [
        lambda: (X, INDICES, 7, None, None, True, True),
        lambda: (X.double(), INDICES, 7, torch.rand(12, 2), None, True, False),
        lambda: (X, INDICES, 7, None, torch.tensor([[[3, 1, 24, 0]] * 7] * 2), True, True),
        lambda: (X, INDICES, 7, None, None, False, True),
    ],
    "code_range": [
        lambda: (X, INDICES, 7, None, True),
        lambda: (X.half(), INDICES, 7, torch.rand(12, 2), False),
    ],
    "gather_codes": [
        lambda: (CODEBOOK.clone().requires_grad_(), INDICES),
        lambda: (CODEBOOK.bfloat16(), INDICES[:0]),
    ],
    "soft_assignment_entropy": [
        lambda: (
            X.clone().requires_grad_(),
            CODEBOOK.clone().requires_grad_(),
            torch.rand(12, 2).double(),
            torch.tensor(0.5, dtype=torch.float64, requires_grad=True),
            "l2",
            -math.inf,
            True,
        ),
        lambda: (X.half(), CODEBOOK, torch.ones(12, 2).double(), torch.ones(()).double(), "euclidean", -3.0, False),
        lambda: (
            torch.ones(12, 2, 100).requires_grad_(),  # long enough for distances to be remembered
            torch.randn(2, 9, 100),
            torch.ones(12, 2).double(),
            torch.ones(()).double(),
            "l2",
            -math.inf,
            True,
        ),
    ],
    "draw_rows": [
        lambda: ([CODEBOOK[0]], [X[:, 0]], [1.0], "cosine", INDICES[:, 0] >= 0, torch.tensor(3)),
        lambda: (
            [CODEBOOK[0], CODEBOOK[1, :, :3]],
            [X[:, 0], X[:, 1, :3]],
            [1.0, 0.5],
            "levels",
            INDICES[:, 0] >= 0,
            torch.tensor(3),
        ),
        lambda: ([CODEBOOK[0]], [X[:0, 0]], [1.0], "l2", INDICES[:0, 0] >= 0, torch.tensor(3)),
    ],
    "ema_update_": [
        lambda: (*(torch.rand(2, 7, *tail) for tail in ((4,), (), (4,), (), (4,))), 0.9, 1e-5, True),
    ],
}


# ops of other modules have their own tests; the first ones must not lose theirs
@pytest.mark.parametrize("op", OPCHECKS)
def test_every_case_is_a_registered_op(op: str) -> None:
    assert op in registered_ops()


@pytest.mark.parametrize(
    ("op", "case", "backend"),
    [
        pytest.param(op, case, backend, id=f"{op}-{number}-{backend}")
        for op, cases in OPCHECKS.items()
        for number, case in enumerate(cases)
        for backend in usable_backends(op)
    ],
)
def test_opcheck(op: str, case: Callable[[], Arguments], backend: str) -> None:
    # gradients and tracing are registered once for all backends; what a backend returns is its own
    checks: dict[str, Any] = (
        {} if backend == usable_backends(op)[0] else {"test_utils": ("test_schema", "test_faketensor")}
    )
    torch.library.opcheck(getattr(torch.ops.vqkernels, op).default, (*case(), backend), **checks)


def training_loss(x: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both estimators in one loss, and the chosen codes."""
    straight, indices, _ = quantize(x, codebook, gradient="ste")
    rotated, _, _ = quantize(x, codebook, gradient="rotation")
    return (straight.square() * rotated * torch.arange(4)).sum(), indices


def training_step(
    loss: Callable[..., tuple[torch.Tensor, torch.Tensor]], x: torch.Tensor, codebook: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    x, codebook = (t.detach().requires_grad_() for t in (x, codebook))
    value, indices = loss(x, codebook)
    return indices, *torch.autograd.grad(value, (x, codebook))


# what inductor makes of a quantizer is in tests/nn/test_graphs.py
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_training_step_is_reused_at_another_n(compiler: str) -> None:
    """One graph without a break, forward and backward, for every N, as accurate as the eager step."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)
    compiled = torch.compile(training_loss, fullgraph=True, dynamic=True, backend=counter)
    for n in (24, 57):
        x, codebook = lookup_problem("gaussian", n, 9, 4)
        indices, *gradients = training_step(compiled, x, codebook)
        eager_indices, *eager = training_step(training_loss, x, codebook)
        _, *truth = training_step(training_loss, x.double(), codebook.double())
        assert_bitwise_equal(indices, eager_indices)
        for actual, exact, reference in zip(gradients, truth, eager, strict=True):
            assert_within_budget(actual, exact, reference)
    assert counter.frame_count == 1


class Tokenizer(torch.nn.Module):
    """What is exported: lookup, straight-through value, statistics, and an in-place update."""

    def __init__(self, codebook: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("codebook", codebook)
        self.register_buffer("size", torch.ones(codebook.shape[0]))
        self.register_buffer("total", codebook.clone())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # [N, D]
        quantized, indices, distance = quantize(x, self.codebook)
        count, total = code_stats(x, indices, self.codebook.shape[0])
        ema_update_(self.codebook, self.size, self.total, count, total, decay=0.9)
        return quantized, indices, distance, self.codebook.clone()


def test_export_with_dynamic_n() -> None:
    x, codebook = lookup_problem("gaussian", 10, 6, 4)
    program = torch.export.export(
        Tokenizer(codebook.clone()).eval(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("n", min=2)}}
    )
    graphs = [module.graph for module in program.graph_module.modules()]  # no_grad blocks are modules of it
    called = {node.target for graph in graphs for node in graph.nodes}
    assert torch.ops.vqkernels.nearest_code.default in called
    assert torch.ops.vqkernels.ema_update_.default in called
    eager, exported = Tokenizer(codebook.clone()), program.module()
    for n in (10, 3, 40):
        x = torch.randn(n, 4)
        for actual, expected in zip(exported(x), eager(x), strict=True):
            assert_bitwise_equal(actual, expected)


class Neighbours(torch.nn.Module):
    """Mean of the three nearest codes."""

    def __init__(self, codebook: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("codebook", codebook)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # [N, D]
        indices, distance = top_codes(x, self.codebook, 3)
        return self.codebook[indices].mean(1), indices, distance


def test_top_codes_compile_and_export_with_dynamic_n() -> None:
    x, codebook = lookup_problem("gaussian", 10, 6, 4)
    eager = Neighbours(codebook)
    compiled = torch.compile(eager, fullgraph=True, dynamic=True, backend="aot_eager")
    dynamic = {"x": {0: torch.export.Dim("n", min=2)}}
    exported = torch.export.export(eager, (x,), dynamic_shapes=dynamic).module()
    for n in (10, 3, 40):
        x = torch.randn(n, 4)
        for program in (compiled, exported):
            for actual, expected in zip(program(x), eager(x), strict=True):
                assert_bitwise_equal(actual, expected)


class Levels(torch.nn.Module):
    """A lookup in the two halves of every vector, and the codes it finds."""

    def __init__(self, codebook: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("codebook", codebook)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:  # [N, D]
        half = x.shape[1] // 2
        levels, codebooks = [x[:, :half], x[:, half:]], [self.codebook[:, :half], self.codebook[:, half:]]
        indices, distance = multilevel_nearest_code(levels, codebooks, (1.0, 0.5))
        return gather_codes(self.codebook, indices), indices, distance


def test_multilevel_lookup_compiles_and_exports_with_dynamic_n() -> None:
    _, codebook = lookup_problem("gaussian", 0, 6, 4)
    eager = Levels(codebook)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(eager, fullgraph=True, dynamic=True, backend=counter)
    shapes = {"x": {0: torch.export.Dim("n", min=2)}}
    exported = torch.export.export(eager, (torch.randn(10, 4),), dynamic_shapes=shapes).module()
    for n in (10, 3, 40):
        x = torch.randn(n, 4)
        for program in (compiled, exported):
            for actual, expected in zip(program(x), eager(x), strict=True):
                assert_bitwise_equal(actual, expected)
    assert counter.frame_count == 1


@pytest.mark.parametrize(("lookup", "tail"), [(nearest_code, ()), (partial(top_codes, m=3), (3,))])
def test_fake_tensors_run_no_kernel(lookup: Callable[..., Any], tail: tuple[int, ...]) -> None:
    with torch._subclasses.FakeTensorMode() as mode:
        x, codebook = mode.from_tensor(X), mode.from_tensor(CODEBOOK)
        result = lookup(x, codebook)
    assert isinstance(result.indices, torch._subclasses.FakeTensor)
    assert result.indices.shape == result.distance.shape == (12, 2, *tail)
    assert (result.indices.dtype, result.distance.dtype) == (torch.int64, torch.float32)
