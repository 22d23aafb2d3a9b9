"""Which implementation of an op runs, and why.

An op registers the modules that implement it. Each module offers ``run(*args)`` and
``unsupported_reasons(*args) -> list[str]``; selection is nothing but asking in order. A backend asked for by
name runs or raises with its reasons; it is never replaced by another.

A module may also offer ``by_name_only_reasons(*args) -> list[str]``: why, though it can run, it waits to be asked
for by name (it is interpreted, or not measured to be faster here).
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

from vqkernels._core.devices import first_device, on_the_cpu, unserved_device
from vqkernels._core.shown import shown

BACKENDS = ("cuda", "triton", "cpu", "reference")  # order of preference


class BackendModule(Protocol):
    """The two functions a backend module must define; ``by_name_only_reasons`` may join them."""

    def unsupported_reasons(self, *args: Any) -> list[str]: ...

    def run(self, *args: Any) -> Any: ...


@dataclass(frozen=True)
class Choice:
    """One line of :func:`explain`: a backend, what keeps it from running (empty = it can), and what keeps it,
    though it can run, from being chosen unless it is asked for by name."""

    backend: str
    reasons: tuple[str, ...]
    selected: bool
    by_name_only: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        if self.reasons:
            return "; ".join(self.reasons)
        if self.selected or not self.by_name_only:
            return "selected" if self.selected else "usable"
        return f"usable by name only ({'; '.join(self.by_name_only)})"

    def __str__(self) -> str:
        return f"{self.backend}: {self.state}"


_MODULES: dict[str, dict[str, str]] = {}  # op -> backend -> module path, imported on first use
_override: ContextVar[str | None] = ContextVar("vqkernels_backend", default=None)
_warned: set[tuple[str, str]] = set()


def register_backends(op: str, **modules: str) -> None:
    """Declare the modules that implement ``op``; called once by each op's ``op.py``."""
    unknown = set(modules) - set(BACKENDS)
    if unknown or op in _MODULES:
        raise ValueError(f"op {op!r}: unknown backends {sorted(unknown)} or registered twice")
    _MODULES[op] = modules


def registered_ops() -> tuple[str, ...]:
    """Names of all ops, in registration order."""
    return tuple(_MODULES)


def registered_backends(op: str) -> tuple[str, ...]:
    """Backends that implement ``op``, in order of preference."""
    if not isinstance(op, str) or op not in _MODULES:
        raise ValueError(f"op: expected one of {', '.join(_MODULES)}, got {shown(op)}")
    return tuple(name for name in BACKENDS if name in _MODULES[op])


def check_backend(backend: object) -> None:
    if backend is not None and not (isinstance(backend, str) and backend in BACKENDS):
        raise ValueError(f"backend: expected None or one of {', '.join(BACKENDS)}, got {shown(backend)}")


def requested_backend(backend: str | None) -> str | None:
    """What a call asks for by name, itself or by the scope that it is in."""
    return backend or _override.get()


def _module(op: str, backend: str) -> BackendModule:
    path = _MODULES[op][backend]
    module = sys.modules.get(path)
    # one that another thread is importing is among them already, in part; an import waits for it
    if module is None or getattr(module.__spec__, "_initializing", False):
        module = importlib.import_module(path)
    return cast(BackendModule, module)


def _by_name_only(module: BackendModule, args: tuple[Any, ...]) -> tuple[str, ...]:
    declines = getattr(module, "by_name_only_reasons", None)
    return tuple(declines(*args)) if declines is not None else ()


def _choices(op: str, requested: str | None, args: tuple[Any, ...]) -> list[Choice]:
    choices: list[Choice] = []
    chosen = False
    for name in registered_backends(op):
        module = _module(op, name)
        reasons = tuple(module.unsupported_reasons(*args))
        by_name_only = () if reasons else _by_name_only(module, args)
        wanted = name == requested if requested is not None else not by_name_only
        selected = wanted and not reasons and not chosen
        chosen = chosen or selected
        choices.append(Choice(name, reasons, selected, by_name_only))
    return choices


def select(op: str, requested: str | None, *args: Any) -> BackendModule:
    """The module that will run ``op`` on ``args``.

    Raises ``ValueError`` for a backend that does not exist and ``NotImplementedError`` for one that exists but
    cannot run these arguments, naming every reason.
    """
    requested = requested_backend(requested)
    check_backend(requested)
    if requested is not None:
        # asked by name: no other backend is even looked at
        if requested not in _MODULES[op]:
            have = ", ".join(registered_backends(op))
            raise NotImplementedError(f"{op}: backend {requested!r} does not exist yet; available: {have}")
        module = _module(op, requested)
        if reasons := module.unsupported_reasons(*args):
            raise NotImplementedError(f"{op}: backend {requested!r} cannot run: {'; '.join(reasons)}")
        return module
    if "cpu" in _MODULES[op] and first_device(args) == "cpu":
        # what goes before it never chooses itself there: not asked, which would take longer than a small call
        module = _module(op, "cpu")
        if not (module.unsupported_reasons(*args) or _by_name_only(module, args)):
            return module
    passed_over: list[str] = []
    for name in registered_backends(op):
        module = _module(op, name)
        reasons = module.unsupported_reasons(*args) or list(_by_name_only(module, args))
        if not reasons:
            if name == "reference":
                _warn_reference(op, passed_over)
            return module
        passed_over.append(f"{name}: {'; '.join(reasons)}")
    raise NotImplementedError(f"{op}: no backend can run this call. " + " | ".join(passed_over))


def _warn_reference(op: str, passed_over: list[str]) -> None:
    reason = " | ".join(passed_over) or "no other backend exists"
    if (op, reason) not in _warned:
        _warned.add((op, reason))
        warnings.warn(f"vqkernels.{op}: running the slow reference backend ({reason})", stacklevel=3)


def explain(op: str, *args: Any, backend: str | None = None) -> tuple[Choice, ...]:
    """Say which backend would run an op and what keeps the others from running.

    Args:
        op: name of a registered op, for example ``"nearest_code"``.
        *args: the arguments the op's backends receive: its tensors in canonical layout (``x [N, G, D]``,
            ``codebook [G, K, D]``, ...) and plain values. Without arguments only the general reasons
            (build, device support) are told.
        backend: what would be asked for by name. Without that, tensors on a device that no backend is for are
            taken for the copies on the CPU that an op then works on.

    Returns:
        One :class:`Choice` per backend, in order of preference; printing one gives a readable line.

    Raises:
        ValueError: if the op or the backend does not exist.

    Example:
        >>> import torch, vqkernels
        >>> x, codebook = torch.zeros(4, 1, 8), torch.zeros(1, 16, 8)
        >>> [choice.backend for choice in vqkernels.explain("nearest_code", x, codebook, "l2")][-1]
        'reference'
    """
    check_backend(backend)
    registered_backends(op)
    requested = requested_backend(backend)
    if requested is None and unserved_device(args) is not None:
        args = on_the_cpu(args)
    return tuple(_choices(op, requested, args))


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Ask for one backend by name in every op called inside the ``with`` block.

    Args:
        backend: ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"reference"``. An op's own ``backend=`` goes before it.

    Raises:
        ValueError: if the backend does not exist.

    Example:
        >>> import torch, vqkernels
        >>> with vqkernels.use_backend("reference"):
        ...     vqkernels.nearest_code(torch.zeros(2, 4), torch.eye(4)).indices
        tensor([0, 0])
    """
    check_backend(backend)
    token = _override.set(backend)
    try:
        yield
    finally:
        _override.reset(token)
