"""Our side of every benchmark: the default backend, and on a GPU each one by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import vqkernels
from bench.case import Call, Implementation, Setting

OURS = "vqkernels"  # the default backend: what a user gets, and what the headline figures are about
# backend -> the arithmetic that does most of its work, for "% peak"
_ARITHMETIC = {"triton": "fp16", "cuda": "fp32", "cpu": "fp32", "reference": "fp32"}
_GPU_BACKENDS = ("cuda", "triton")
# a function that is no op itself -> the op whose backends do its work
_SERVED_BY = {"kmeans": "nearest_code"}


def ours(
    op: str,
    canonical: Callable[[Any], Sequence[Any]],
    prepare: Callable[[str | None, Any], Call] | None = None,
) -> tuple[Implementation, ...]:
    """The contestants of an op.

    Args:
        op: name of a public function whose positional arguments are the fields of the problem.
        canonical: problem -> what the op's backends receive, for :func:`vqkernels.explain`.
        prepare: backend, problem -> the call; without it, of the function by this name, for its indices.
    """
    prepare = prepare or partial(_prepare, op)
    default = Implementation(
        OURS,
        "vqkernels",
        partial(prepare, None),
        ours=True,
        note="the backend chosen by default; everything derived from the codebook inside the clock",
        devices=("cpu", "cuda"),
        obstacle=partial(op_obstacle, op),
        describe=partial(chosen, op, canonical),
    )
    named = (
        Implementation(
            f"{OURS} {backend}",
            "vqkernels",
            partial(prepare, backend),
            ours=True,
            note=f"backend={backend!r}",
            devices=("cuda",),
            arithmetic=_ARITHMETIC[backend],
            obstacle=partial(backend_obstacle, op, backend),
        )
        for backend in _GPU_BACKENDS
    )
    return (default, *named)


def op_obstacle(op: str, _: str = "") -> str:
    """Why an op cannot run at all, or the empty string."""
    return "" if hasattr(vqkernels, op) else f"vqkernels.{op} does not exist yet"


def backend_obstacle(op: str, backend: str, _: str = "") -> str:
    """Why a backend of an op cannot run on this machine, or the empty string."""
    if obstacle := op_obstacle(op):
        return obstacle
    choice = next((choice for choice in vqkernels.explain(_SERVED_BY.get(op, op)) if choice.backend == backend), None)
    if choice is None:
        return f"vqkernels.{op} has no backend {backend!r} yet"
    return "; ".join(choice.reasons)


def _prepare(op: str, backend: str | None, problem: Any) -> Call:
    function = getattr(vqkernels, op)
    return lambda: function(*problem, backend=backend).indices


def chosen(op: str, canonical: Callable[[Any], Sequence[Any]], problem: Any) -> Setting:
    choices = vqkernels.explain(_SERVED_BY.get(op, op), *canonical(problem))
    backend = next(choice.backend for choice in choices if choice.selected)
    return {"backend": backend, "arithmetic": _ARITHMETIC[backend]}
