"""Configurations are frozen dataclasses; here they become JSON and are read back.

A field that is missing takes its default, so that runs from before an option still load; a field that is unknown is
an error.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

T = TypeVar("T")
Hidden = Annotated[T, tyro.conf.Suppress]  # part of the config, not of the command line
Flat = Annotated[T, tyro.conf.arg(name="")]  # its fields are options without its name in front


def to_json(config: Any) -> str:
    """A config dataclass as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def differing_fields(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two configs differ, with both values."""
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        pairs = [(str(number), *items) for number, items in enumerate(zip(a, b, strict=True))]
    elif type(a) is type(b) and dataclasses.is_dataclass(a):
        pairs = [(field.name, getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(a)]
    else:
        return [] if a == b else [f"{prefix} {a!r} / {b!r}"]
    return [line for name, *values in pairs for line in differing_fields(*values, f"{prefix}.{name}".lstrip("."))]


def parse(kind: Any, value: Any, name: str) -> Any:
    """A JSON value as the annotated type: dataclass, union, literal, tuple, number, string or boolean."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return parse(args[0], value, name)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(kind, value, name)
    if origin in (Union, UnionType):
        return _parse_union(args, value, name)
    if origin is tuple and isinstance(value, list):
        items = args[:1] * len(value) if args[1:] == (...,) else args
        if len(items) != len(value):
            raise ValueError(f"{name}: expected {len(items)} values, got {len(value)}")
        return tuple(parse(item, one, f"{name}.{i}") for i, (item, one) in enumerate(zip(items, value, strict=True)))
    if origin is Literal and value in args:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{name}: expected {_told(kind)}, got {_told(value)}")


def _parse_dataclass(kind: Any, value: Any, name: str) -> Any:
    hints = _hints(kind)
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected the fields {_told(sorted(hints))}, got {_told(value)}")
    if unknown := sorted(set(value) - set(hints)):
        raise ValueError(f"{name}: expected none but the fields of {kind.__name__}, got {_told(unknown)}")
    missing = dataclasses.MISSING
    needed = {f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing}
    if absent := sorted(needed - set(value)):
        raise ValueError(f"{name}: expected the fields {_told(absent)}, got none")
    return kind(**{key: parse(hints[key], item, f"{name}.{key}") for key, item in value.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _parse_union(options: tuple[Any, ...], value: Any, name: str) -> Any:
    if isinstance(value, dict) and "kind" in value:
        # kinds of one thing tell themselves apart, so that what is wrong inside is said of the right one
        for option in options:
            if dataclasses.is_dataclass(option) and getattr(option, "kind", None) == value["kind"]:
                return parse(option, value, name)
    for option in options:
        try:
            return parse(option, value, name)
        except ValueError:
            continue
    raise ValueError(f"{name}: expected one of {_told(options)}, got {_told(value)}")


def _told(value: Any) -> str:
    """A value of any size in a one-line message."""
    if isinstance(value, type):
        return repr(value)
    text = str([getattr(v, "__name__", v) for v in value]) if isinstance(value, tuple) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
