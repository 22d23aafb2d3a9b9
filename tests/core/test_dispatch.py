"""Backend selection: order, reasons, explicit requests, scopes. Oracle: the rules in ``vqkernels/_core/backend.py``,
tried on an op whose backends are written here, then on the real registry.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from needs import needs_extension

import vqkernels
from vqkernels import explain, nearest_code, use_backend
from vqkernels._core import backend as dispatch
from vqkernels.testing import usable_backends


def fake_backend(name: str, *reasons: str) -> ModuleType:
    """A backend with reasons not to run; one that starts with "declines: " is a reason to be asked by name."""
    module = ModuleType(f"fake_backends.{name}")
    declines = [reason.removeprefix("declines: ") for reason in reasons if reason.startswith("declines: ")]
    refuses = [reason for reason in reasons if not reason.startswith("declines: ")]
    module.unsupported_reasons = lambda *args: refuses  # type: ignore[attr-defined]
    module.run = lambda *args: name  # type: ignore[attr-defined]
    if declines:
        module.by_name_only_reasons = lambda *args: declines  # type: ignore[attr-defined]
    return module


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers the op ``probe`` with the given backends: name -> reasons."""
    monkeypatch.setattr(dispatch, "_MODULES", {})
    monkeypatch.setattr(dispatch, "_warned", set())

    def register(**backends: list[str]) -> None:
        for name, reasons in backends.items():
            module = fake_backend(name, *reasons)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        dispatch.register_backends("probe", **{name: f"fake_backends.{name}" for name in backends})

    return register


def chosen(requested: str | None = None) -> Any:
    return dispatch.select("probe", requested, 1, "l2").run()


def test_the_first_usable_backend_in_the_stated_order(register: Callable[..., None]) -> None:
    register(reference=[], cpu=[], triton=["needs a GPU"], cuda=["not built", "needs a GPU"])
    assert dispatch.registered_backends("probe") == ("cuda", "triton", "cpu", "reference")
    assert chosen() == "cpu"
    lines = [str(choice) for choice in explain("probe")]
    assert lines == [
        "cuda: not built; needs a GPU",
        "triton: needs a GPU",
        "cpu: selected",
        "reference: usable",
    ]


def test_an_explicit_backend_runs_or_raises(register: Callable[..., None]) -> None:
    register(reference=[], cpu=["no compiler", "old processor"])
    assert chosen("reference") == "reference"
    with pytest.raises(NotImplementedError, match=r"^probe: backend 'cpu' cannot run: no compiler; old processor$"):
        chosen("cpu")
    with pytest.raises(NotImplementedError, match=r"^probe: backend 'cuda' does not exist yet; available: cpu,"):
        chosen("cuda")
    with pytest.raises(ValueError, match=r"^backend: expected None or one of .*, reference, got 'gpu'$"):
        chosen("gpu")


def test_an_explicit_backend_asks_no_other(register: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    register(cpu=[], reference=[])
    monkeypatch.delitem(sys.modules, "fake_backends.cpu")  # importing it would fail
    assert chosen("reference") == "reference"


def test_a_backend_that_declines_runs_by_name_only(register: Callable[..., None]) -> None:
    register(
        cuda=["declines: not measured faster"], triton=["needs a GPU", "declines: interpreted"], cpu=[], reference=[]
    )
    assert chosen() == "cpu"
    assert chosen("cuda") == "cuda"
    with use_backend("cuda"):
        assert chosen() == "cuda"
    with pytest.raises(NotImplementedError, match=r"^probe: backend 'triton' cannot run: needs a GPU$"):
        chosen("triton")
    assert [str(choice) for choice in explain("probe")] == [
        "cuda: usable by name only (not measured faster)",
        "triton: needs a GPU",
        "cpu: selected",
        "reference: usable",
    ]
    assert str(explain("probe", backend="cuda")[0]) == "cuda: selected"


def test_declining_backends_alone_run_nothing(register: Callable[..., None]) -> None:
    register(triton=["declines: interpreted"], cpu=["not built"])
    with pytest.raises(NotImplementedError, match=r"no backend .* triton: interpreted \| cpu: not built$"):
        chosen()


def test_no_backend_at_all(register: Callable[..., None]) -> None:
    register(triton=["needs a GPU"], cpu=["not built"])
    with pytest.raises(NotImplementedError, match=r"^probe: no backend .* triton: needs a GPU \| cpu: not built$"):
        chosen()


def test_a_scope_asks_by_name(register: Callable[..., None]) -> None:
    register(cpu=[], reference=[], triton=["needs a GPU"])
    with use_backend("reference"):
        assert chosen() == "reference"
        assert chosen("cpu") == "cpu"  # the argument is nearer than the scope
        with use_backend("cpu"):
            assert chosen() == "cpu"
        assert chosen() == "reference"
        assert [choice.selected for choice in explain("probe")] == [False, False, True]
    assert chosen() == "cpu"
    with use_backend("triton"), pytest.raises(NotImplementedError, match="needs a GPU"):
        chosen()
    with pytest.raises(ZeroDivisionError), use_backend("reference"):
        raise ZeroDivisionError
    assert chosen() == "cpu"
    with pytest.raises(ValueError, match="got 'gpu'"), use_backend("gpu"):
        pass


def test_a_scope_belongs_to_its_thread(register: Callable[..., None]) -> None:
    register(cpu=[], reference=[])
    seen: list[str] = []
    with use_backend("reference"):
        worker = threading.Thread(target=lambda: seen.append(chosen()))
        worker.start()
        worker.join()
    assert seen == ["cpu"]


def test_falling_to_the_reference_warns_once_per_reason(register: Callable[..., None]) -> None:
    register(cpu=["not built"], reference=[])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert chosen() == "reference"
            assert chosen("reference") == "reference"
    assert [str(warning.message) for warning in caught] == [
        "vqkernels.probe: running the slow reference backend (cpu: not built)"
    ]


def test_registration_is_checked(register: Callable[..., None]) -> None:
    register(cpu=[])
    with pytest.raises(ValueError, match="registered twice"):
        dispatch.register_backends("probe", cpu="anything")
    with pytest.raises(ValueError, match=r"unknown backends \['gpu'\]"):
        dispatch.register_backends("other", gpu="anything")
    with pytest.raises(ValueError, match=r"^op: expected one of probe, got 'nothing'$"):
        explain("nothing")
    with pytest.raises(ValueError, match="got 'gpu'"):
        explain("probe", backend="gpu")


@needs_extension
@pytest.mark.parametrize("op", [op for op in dispatch.registered_ops() if "cpu" in dispatch.registered_backends(op)])
def test_the_compiled_backend_is_tested_and_selected(op: str) -> None:
    assert "cpu" in usable_backends(op)
    assert [choice.backend for choice in explain(op) if choice.selected] == ["cpu"]


@pytest.mark.parametrize(
    "op", [op for op in dispatch.registered_ops() if "triton" in dispatch.registered_backends(op)]
)
def test_the_triton_backend_is_tested(op: str) -> None:
    """Without it, tests that run once per backend would be fewer and look green."""
    assert "triton" in usable_backends(op)


@needs_extension
def test_the_compiled_backend_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from vqkernels._core import extension

    loaded, called = extension.extension(), []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            called.append(name)
            return getattr(loaded, name)

    monkeypatch.setattr(extension, "_module", Recorder())
    x, codebook = torch.randn(6, 3), torch.randn(4, 3, requires_grad=True)
    quantized, indices, _ = vqkernels.quantize(x, codebook)
    quantized.sum().backward()
    step = vqkernels.code_stats(x, indices, 4)
    vqkernels.ema_update_(codebook, torch.ones(4), torch.ones(4, 3), *step, decay=0.9)
    assert called == ["nearest_code", "gather_codes", "code_stats", "code_stats", "ema_update"]
    called.clear()
    nearest_code(x, codebook, backend="reference")
    with use_backend("reference"):
        nearest_code(x, codebook)
    assert called == []
