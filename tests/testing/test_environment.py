"""The memory measurement, the backend list, and what ``conftest.py`` promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import vqkernels
from vqkernels.ops.nearest_code import reference
from vqkernels.testing import peak_memory_growth, usable_backends

MIB = 1 << 20


def test_a_transient_allocation_is_seen_and_the_setup_is_not() -> None:
    growth = peak_memory_growth("big = b'x' * (96 << 20)\ndel big", "data = b'x' * (32 << 20)\ndel data")
    assert 31 * MIB < growth < 34 * MIB  # the kernel counts pages in batches


def test_a_call_that_needs_nothing_grows_by_little() -> None:
    assert peak_memory_growth("data = b'x' * (32 << 20)", "size = len(data)") < 2 * MIB


def test_the_environment_reaches_the_program() -> None:
    assert peak_memory_growth("import os", "assert os.environ['VQK_TEST'] == '1'", env={"VQK_TEST": "1"}) < 2 * MIB


def test_a_failing_program_is_reported() -> None:
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        peak_memory_growth("", "1 / 0")


def test_usable_backends_serve_every_op_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    served = {"a": ["triton", "cpu", "reference"], "b": ["cpu", "reference"]}

    def explain(op: str) -> tuple[vqkernels.Choice, ...]:
        names = ("triton", "cuda", "cpu", "reference")
        return tuple(vqkernels.Choice(n, () if n in served[op] else ("absent",), False) for n in names)

    monkeypatch.setattr("vqkernels.testing.backends.explain", explain)
    assert usable_backends("a") == ["triton", "cpu", "reference"]
    assert usable_backends("a", "b") == usable_backends("b", "a") == ["cpu", "reference"]
    monkeypatch.undo()
    with pytest.raises(ValueError, match="got 'nothing'"):
        usable_backends("nothing")


@pytest.mark.parametrize(
    ("allocate", "dtype"),
    [
        ("torch.empty(3)", torch.float32),
        ("torch.empty(3, dtype=torch.bfloat16)", torch.bfloat16),
        ("torch.empty_like(torch.ones(3))", torch.float32),
        ("torch.ones(3).new_empty(3, dtype=torch.int64)", torch.int64),
        ("torch.empty_strided((3,), (2,), dtype=torch.float64)", torch.float64),
    ],
)
def test_uninitialised_memory_of_the_package_is_poisoned(allocate: str, dtype: torch.dtype) -> None:
    inside = eval(allocate, {"torch": torch, "__name__": "vqkernels.ops.anything"})
    assert inside.dtype == dtype
    assert bool(inside.isnan().all() if dtype.is_floating_point else (inside > 2**40).all())


def test_an_output_left_unwritten_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that forgets its last row is caught through the fixture, whatever lay in memory."""

    def forgetful(run: Callable[..., tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., tuple[torch.Tensor, ...]]:
        program = "def allocate(t): return torch.empty_like(t)"
        namespace = {"torch": torch, "__name__": "vqkernels.ops.nearest_code.forgetful"}
        exec(program, namespace)

        def wrapper(*args: object) -> tuple[torch.Tensor, ...]:
            outputs = tuple(namespace["allocate"](t) for t in run(*args))  # type: ignore[operator]
            for output, value in zip(outputs, run(*args), strict=True):
                output[:-1] = value[:-1]
            return outputs

        return wrapper

    monkeypatch.setattr(reference, "run", forgetful(reference.run))
    result = vqkernels.nearest_code(torch.zeros(3, 2), torch.zeros(1, 2), backend="reference")
    assert result.distance.isnan().tolist() == [False, False, True]
    assert int(result.indices[-1]) > 1


def test_every_test_starts_with_one_thread_and_the_same_seed() -> None:
    assert torch.get_num_threads() == 1
    first = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(first, torch.rand(1))
