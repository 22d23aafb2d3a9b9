"""Annotations that are checked: what a constructor takes is said once, to readers, type checkers and callers.

@checked
def __init__(self, dim: Size, decay: Share = 0.99, code_dim: Size | None = None) -> None: ...
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

from vqkernels._core.backend import BACKENDS
from vqkernels._core.checks import (
    LARGEST,
    METRICS,
    SMALLEST,
    as_float,
    interval,
    is_flag,
    is_integer,
    is_number,
    is_within,
)
from vqkernels._core.shown import is_dense, kind_of, shown
from vqkernels._core.usable import LONGEST

P = ParamSpec("P")
T = TypeVar("T")


class Within(NamedTuple):
    """Bounds of a number, ends included but for those that it has to be ``without``."""

    low: float = -math.inf
    high: float = math.inf
    without: tuple[float, ...] = ()


class OneOf(NamedTuple):
    """The strings that are known."""

    choices: tuple[str, ...]


Size = Annotated[int, Within(1, (1 << 31) - 1)]  # of a table
Count = Annotated[int, Within(0, (1 << 63) - 1)]
Times = Annotated[int, Within(0, (1 << 31) - 1)]  # of something that takes time
Integer = Annotated[int, Within(-(1 << 63), (1 << 63) - 1)]
Share = Annotated[float, Within(0, 1)]
# what meets float32 tensors is neither infinite there nor, as a divisor, 0
NonNegative = Annotated[float, Within(0, LARGEST)]
Positive = Annotated[float, Within(SMALLEST, LARGEST)]
# of vectors: their squares are float32 numbers
Magnitude = Annotated[float, Within(SMALLEST, LONGEST)]
Threshold = Annotated[float, Within(-(1 << 31), 1 << 31)]  # of a count; none is below 0
Metric = Annotated[str, OneOf(METRICS)]
Backend = Annotated[str, OneOf(BACKENDS)] | None


class Rule(NamedTuple):
    """What an annotation says, in words and as tests."""

    kind: str  # a value of the right type
    range: str  # one in range
    is_kind: Callable[[Any], bool]
    fits: Callable[[Any], bool] = lambda value: True
    plain: Callable[[Any], Any] = lambda value: value  # a number as one of Python, a large integer as a float

    def check(self, name: str, value: Any) -> Any:
        """The value as it is to be kept, or a one-line error."""
        if not self.is_kind(value):
            raise TypeError(f"{name}: expected {self.kind}, got {kind_of(value)}")
        if not self.fits(value):
            raise ValueError(f"{name}: expected {self.range}, got {shown(value)}")
        return self.plain(value)


def checked(function: Callable[P, T]) -> Callable[P, T]:
    """Check the arguments of every call against their annotations; NumPy's numbers arrive as Python's.

    A graph is not checked: what is traced has been, or is told by what it runs into.
    """
    known = inspect.signature(function).parameters.values()
    places = [p.name for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [*places, *(p.name for p in known if p.kind == p.KEYWORD_ONLY)]

    @functools.cache
    def rules() -> dict[str, Rule]:
        # not before the first call: annotations may name what is defined further down
        hints = typing.get_type_hints(function, include_extras=True)
        return _rules({name: hints[name] for name in named if name in hints})

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        of = rules()
        # too many and too few are told by the call itself
        given: Any = [_checked(of, name, value) for name, value in zip(places, args, strict=False)]
        return function(*given, *args[len(given) :], **{n: _checked(of, n, v) for n, v in kwargs.items()})  # type: ignore[arg-type]

    return wrapper


def _checked(rules: dict[str, Rule], name: str, value: Any) -> Any:
    return rules[name].check(name, value) if name in rules else value


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass against their annotations."""
    kind: type = type(instance)
    for name, rule in _field_rules(kind).items():
        rule.check(name, getattr(instance, name))


@functools.cache
def _field_rules(kind: type) -> dict[str, Rule]:
    hints = typing.get_type_hints(kind, include_extras=True)
    return _rules({field.name: hints[field.name] for field in dataclasses.fields(kind)})


def _rules(annotations: dict[str, Any]) -> dict[str, Rule]:
    found = {name: rule_of(annotation) for name, annotation in annotations.items()}
    return {name: rule for name, rule in found.items() if rule is not None}


def rule_of(annotation: Any) -> Rule | None:
    """The rule of an annotation; None if it allows anything."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _restricted(*inner)
    if origin in (typing.Union, types.UnionType):
        return _any_of([rule_of(alternative) for alternative in inner])
    if origin in (list, tuple, collections.abc.Sequence):
        return _sequence(origin, rule_of(inner[0]))
    if origin is collections.abc.Callable or getattr(annotation, "_is_protocol", False):
        return Rule("a callable", "a callable", callable)
    kind = annotation if origin is None else origin
    if kind in _RULES or not isinstance(kind, type) or kind is Any:
        return _RULES.get(kind)
    return Rule(kind.__name__, kind.__name__, lambda value: isinstance(value, kind))


def _restricted(base: type, limit: Within | OneOf) -> Rule:
    if isinstance(limit, OneOf):
        words = f"one of {', '.join(limit.choices)}"
        # a value of another type is told like a string that is not known
        return Rule(words, words, lambda value: True, lambda value: isinstance(value, str) and value in limit.choices)
    if base is int:
        low, high, _ = limit
        return Rule(
            "an integer", f"an integer in {_bounds(limit)}", is_integer, lambda value: low <= value <= high, _plain
        )
    return Rule("a number", interval(*limit), is_number, lambda value: is_within(value, *limit), as_float)


def _bounds(limit: Within) -> str:
    return f"[{_power(int(limit.low))}, {_power(int(limit.high) + 1)})"


def _power(value: int) -> str:
    exponent = abs(value).bit_length() - 1
    return str(value) if exponent < 31 else f"{'-' if value < 0 else ''}2^{exponent}"


def _any_of(rules: Sequence[Rule | None]) -> Rule | None:
    known = [rule for rule in rules if rule is not None]
    if len(known) < len(rules):
        return None
    # as in all messages, None comes first
    known.sort(key=lambda rule: rule.kind != "None")

    def first(value: Any) -> Rule | None:
        return next((rule for rule in known if rule.is_kind(value) and rule.fits(value)), None)

    def plain(value: Any) -> Any:
        rule = first(value)
        return value if rule is None else rule.plain(value)

    return Rule(
        " or ".join(dict.fromkeys(rule.kind for rule in known)),
        " or ".join(dict.fromkeys(rule.range for rule in known)),
        lambda value: any(rule.is_kind(value) for rule in known),
        lambda value: first(value) is not None,
        plain,
    )


def _sequence(kind: type, rule: Rule | None) -> Rule:
    name = "a sequence" if kind is collections.abc.Sequence else f"a {kind.__name__}"

    def is_sequence(value: Any) -> bool:
        # a string is a sequence of strings, and never meant
        return isinstance(value, kind) and not isinstance(value, (str, bytes))

    if rule is None:
        return Rule(name, name, is_sequence)
    return Rule(
        f"{name}, each {rule.kind}",
        f"{name}, each {rule.range}",
        lambda value: is_sequence(value) and all(map(rule.is_kind, value)),
        lambda value: all(map(rule.fits, value)),
        # a sequence of another kind may be what somebody else goes on with
        lambda value: type(value)(map(rule.plain, value)) if type(value) in (list, tuple) else value,
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and is_dense(value)


_RULES: dict[Any, Rule] = {
    types.NoneType: Rule("None", "None", lambda value: value is None),
    # 0 and 1 are taken for flags, and are not False and True to `is`
    bool: Rule("True or False", "True or False", is_flag, plain=bool),
    int: _restricted(int, Within(-(1 << 63), (1 << 63) - 1)),
    float: _restricted(float, Within(-LARGEST, LARGEST)),
    str: Rule("a string", "a string", lambda value: isinstance(value, str)),
    torch.Tensor: Rule("a torch.Tensor", "a torch.Tensor", _is_tensor),
}
