"""What a benchmark is made of: a case, the implementations that compete in it, the verdict on them."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Setting = Mapping[str, Any]
Call = Callable[[], Any]


@dataclass(frozen=True)
class Work:
    """What a case cannot do without: comparisons, arithmetic, inputs read once, outputs written once."""

    pairs: int
    flops: int
    bytes: int


@dataclass(frozen=True)
class Verdict:
    """The answers of one implementation held against the float64 truth."""

    checked: int  # answers compared
    different: int  # not the index of the truth
    wrong: int  # different, and farther than float32 rounding explains
    beaten: int  # answers, among all given, to which some implementation found a better one
    passed: bool

    def __str__(self) -> str:
        if self.passed and not self.different:
            return "exact"
        if self.passed:
            return f"{self.different / self.checked:.2%} differ by rounding"
        return f"WRONG {max(self.wrong, self.different) / self.checked:.2%}, beaten {self.beaten}"


@dataclass(frozen=True)
class Implementation:
    """One contestant: ``prepare(problem, **setting)`` does what needs no clock and returns the call."""

    name: str
    module: str  # import name of the package it measures
    prepare: Callable[..., Call]
    settings: tuple[Setting, ...] = ({},)  # the fastest on the case is the one measured
    ours: bool = False
    flag: str = ""  # takes part only with this command line flag
    note: str = ""

    def missing(self) -> str:
        """Why it cannot run here, or the empty string."""
        return "" if importlib.util.find_spec(self.module) else f"package {self.module} is not installed"

    def version(self) -> str:
        version = getattr(importlib.import_module(self.module), "__version__", None)
        return str(version or importlib.metadata.version(self.module))


@dataclass(frozen=True)
class OpCase:
    """One problem of one op, at sizes some model really has."""

    op: str
    name: str
    sizes: Mapping[str, int]  # by the package's letters
    inputs: Callable[[Mapping[str, int], int], Any]  # (sizes, seed) -> problem
    implementations: tuple[Implementation, ...]
    verify: Callable[[Any, Mapping[str, Any], str], dict[str, Verdict]]  # (problem, answers, name of ours)
    work: Callable[[Mapping[str, int]], Work]
    smoke_sizes: Mapping[str, int]
    true_sizes: Mapping[str, int] = field(default_factory=dict)  # where they differ from `sizes`
    note: str = ""

    def smoke(self) -> OpCase:
        """The same case, small enough to run in a moment."""
        return replace(self, sizes={**self.sizes, **self.smoke_sizes})
