"""What a benchmark is made of: a case, the implementations that compete in it, the verdict on them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

Setting = Mapping[str, Any]
Call = Callable[[], Any]

DEVICES = ("cpu", "cuda")


def always(_: str) -> str:
    """No reason against running."""
    return ""


def needed(module: str) -> str:
    """Why a package cannot be used, or the empty string."""
    return "" if importlib.util.find_spec(module) else f"package {module} is not installed"


def needs_cuda(_: str) -> str:
    """Why code that launches CUDA kernels cannot run here, or the empty string."""
    return "" if torch.cuda.is_available() else "needs a CUDA device"


@dataclass(frozen=True)
class Work:
    """What a case cannot do without: comparisons, arithmetic, exponentials, inputs read and outputs written once."""

    pairs: int
    flops: int
    bytes: int
    exps: int = 0


@dataclass(frozen=True)
class Verdict:
    """The answers of one implementation held against the float64 truth."""

    answers: int  # all that were given
    checked: int  # those whose truth was computed
    different: int  # checked, and not the index of the truth
    wrong: int  # different, and farther than float32 rounding explains
    beaten: int  # answers, among all given, to which some implementation found a better one
    passed: bool
    # where the value of a solution is judged, not indices: by how much it is above the least of all, as a share
    excess: float | None = None
    # of such a solution: share of its own assignments that are not to the nearest, beyond float32 rounding
    misassigned: float | None = None

    @property
    def share(self) -> float:
        """Share of answers that are not the truth, by the sample or, where that tells more, by all answers."""
        return max(self.different / max(1, self.checked), self.beaten / max(1, self.answers))

    def __str__(self) -> str:
        if self.excess is not None:
            told = f"{'' if self.passed else 'WRONG '}+{self.excess:.3%}"
            return told if self.misassigned is None else f"{told}, {self.misassigned:.3%} misassigned"
        if self.passed and not self.different:
            return "exact"
        return f"{self.share:.2%} differ by rounding" if self.passed else f"WRONG {self.share:.2%}"


@dataclass(frozen=True)
class Implementation:
    """One contestant: ``prepare(problem, **setting)`` does what needs no clock and returns the call."""

    name: str
    module: str  # import name of the package it measures
    prepare: Callable[..., Call]
    settings: tuple[Setting, ...] = ({},)  # the fastest on the case is the one measured
    cuda_settings: tuple[Setting, ...] = ()  # in their place on a GPU, where others are worth trying
    ours: bool = False
    flag: str = ""  # takes part only with this command line flag
    note: str = ""
    devices: tuple[str, ...] = ("cpu",)
    arithmetic: str = "fp32"  # the unit that does most of the work; "% peak" is of its measured rate
    obstacle: Callable[[str], str] = always  # device -> why an installed package cannot run there
    describe: Callable[[Any], Setting] = lambda _: {}  # problem -> facts to record, `arithmetic` among them
    own_memory: bool = False  # allocates device memory past torch, where its peak is not seen

    def missing(self, device: str = "cpu") -> str:
        """Why it cannot run here, or the empty string."""
        return needed(self.module) or self.obstacle(device)

    def version(self) -> str:
        version = getattr(importlib.import_module(self.module), "__version__", None)
        return str(version or importlib.metadata.version(self.module))


@dataclass(frozen=True)
class OpCase:
    """One problem of one op, at sizes some model really has."""

    op: str
    name: str
    sizes: Mapping[str, int]  # by the package's letters, for two cores
    inputs: Callable[[Mapping[str, int], int], Any]  # (sizes, seed) -> problem
    implementations: tuple[Implementation, ...]
    # (problem, answers, names of ours) -> verdict on each answer
    verify: Callable[[Any, Mapping[str, Any], frozenset[str]], dict[str, Verdict]]
    work: Callable[[Mapping[str, int]], Work]
    smoke_sizes: Mapping[str, int]
    true_sizes: Mapping[str, int] = field(default_factory=dict)  # where they differ from `sizes`
    cuda_sizes: Mapping[str, int] = field(default_factory=dict)  # where a GPU cannot take the true ones either
    devices: tuple[str, ...] = DEVICES  # where it is measured
    needs: str = ""  # import name of a package that the inputs come from
    adverse: bool = False  # there to hurt: the summary of what models do leaves it out
    note: str = ""

    def missing(self) -> str:
        """Why the inputs cannot be made here, or the empty string."""
        return needed(self.needs) if self.needs else ""

    def on(self, device: str) -> OpCase:
        """The case for one kind of device: its contestants there, and full sizes on a GPU."""
        able = tuple(i for i in self.implementations if device in i.devices)
        if device == "cpu":
            return replace(self, implementations=able)
        able = tuple(replace(i, settings=i.cuda_settings or i.settings) for i in able)
        sizes = {**self.sizes, **self.true_sizes, **self.cuda_sizes}
        still = {letter: size for letter, size in self.true_sizes.items() if size != sizes[letter]}
        return replace(self, implementations=able, sizes=sizes, true_sizes=still)

    def smoke(self) -> OpCase:
        """The same case, small enough to run in a moment."""
        return replace(self, sizes={**self.sizes, **self.smoke_sizes})
