"""Our side of every benchmark: the default backend, and on a GPU each one by name."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import vqkernels
from bench.case import Call, Implementation, Setting

KEPT_MIB = "VQKERNELS_KEPT_MIB"  # 0 in a benchmark: the codes of a training step come once
OURS = "vqkernels"  # the default backend: what a user gets, and what the headline figures are about
# backend -> the arithmetic that does most of its work, for "% peak"
_ARITHMETIC = {"triton": "fp16", "cuda": "fp32", "cpu": "fp32", "reference": "fp32"}
_GPU_BACKENDS = ("cuda", "triton")
# what is no op itself -> the ops it is made of, the one that does most of its work first
_MADE_OF = {
    "clients": ("nearest_code",),
    "kmeans": ("nearest_code", "code_stats"),
    "train_step": ("nearest_code", "gather_codes", "code_stats", "ema_update_"),
}


def ours(
    op: str,
    canonical: Callable[[Any], Sequence[Any]],
    prepare: Callable[[str | None, Any], Call] | None = None,
) -> tuple[Implementation, ...]:
    """The contestants of an op.

    Args:
        op: name of a public function whose positional arguments are the fields of the problem, or of what is made of
            several.
        canonical: problem -> what the backends of the op (of its first part) receive, for :func:`vqkernels.explain`.
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


def made_of(op: str) -> tuple[str, ...]:
    """The registered ops that do the work of what is benchmarked under this name."""
    return _MADE_OF.get(op, (op,))


def op_obstacle(op: str, _: str = "") -> str:
    """Why an op cannot run at all, or the empty string."""
    return "; ".join(f"vqkernels.{part} does not exist yet" for part in made_of(op) if not hasattr(vqkernels, part))


def backend_obstacle(op: str, backend: str, _: str = "") -> str:
    """Why a backend of an op cannot run on this machine, or the empty string."""
    if obstacle := op_obstacle(op):
        return obstacle
    reasons: list[str] = []
    for part in made_of(op):
        choices = {choice.backend: choice.reasons for choice in vqkernels.explain(part)}
        reasons += choices.get(backend, [f"vqkernels.{part} has no backend {backend!r} yet"])
    return "; ".join(dict.fromkeys(reasons))


def _prepare(op: str, backend: str | None, problem: Any) -> Call:
    function, more = getattr(vqkernels, op), options(problem)
    return lambda: function(*problem, **more, backend=backend).indices


def options(problem: Any) -> dict[str, Any]:
    """What the op of a problem is told besides its tensors."""
    return dict(getattr(problem, "options", {}))


def at_inference(op: str, contestants: Sequence[Implementation]) -> tuple[Implementation, ...]:
    """The same where codes come again: ours as it comes, which keeps what it made of them, and ours without that."""
    default, *others = contestants
    kept = replace(
        default,
        prepare=partial(_prepare_kept, op),
        note="the same codes in call after call: compared inside the clock, prepared before",
    )
    return kept, replace(default, name=f"{OURS} new codes", devices=("cpu",)), *others


def _prepare_kept(op: str, problem: Any) -> Call:
    return kept(_prepare(op, None, problem))


def kept(lookup: Call) -> Call:
    """A call that keeps what it made of its codes from one time to the next, after some times."""

    def call() -> Any:
        os.environ[KEPT_MIB] = "64"
        try:
            return lookup()
        finally:
            os.environ[KEPT_MIB] = "0"

    warm = time.monotonic() + 0.2
    while time.monotonic() < warm:
        call()
    return call


def chosen(op: str, canonical: Callable[[Any], Sequence[Any]], problem: Any) -> Setting:
    """The backend that the default one of an op is, for what does most of the work."""
    choices = vqkernels.explain(made_of(op)[0], *canonical(problem))
    backend = next(choice.backend for choice in choices if choice.selected)
    return {"backend": backend, "arithmetic": _ARITHMETIC[backend]}
