"""Configurations are frozen dataclasses; here they become JSON and are read back, strictly."""

from __future__ import annotations

import dataclasses
import json
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

T = TypeVar("T")
Hidden = Annotated[T, tyro.conf.Suppress]  # part of the config, not of the command line


def to_json(config: Any) -> str:
    """A config dataclass as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def differing_fields(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two configs differ, with both values."""
    if type(a) is not type(b) or not dataclasses.is_dataclass(a):
        return [] if a == b else [f"{prefix} {a!r} / {b!r}"]
    lines = []
    for field in dataclasses.fields(a):
        name = f"{prefix}.{field.name}" if prefix else field.name
        lines += differing_fields(getattr(a, field.name), getattr(b, field.name), name)
    return lines


def parse(kind: Any, value: Any, name: str) -> Any:
    """A JSON value as the annotated type: dataclass, union, literal, tuple, number, string or boolean."""
    origin, args = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            got = sorted(value) if isinstance(value, dict) else value
            raise ValueError(f"{name}: expected the fields {sorted(hints)}, got {got}")
        return kind(**{key: parse(hints[key], value[key], f"{name}.{key}") for key in hints})
    if origin in (Union, UnionType):
        for option in args:
            try:
                return parse(option, value, name)
            except ValueError:
                continue
        raise ValueError(f"{name}: expected one of {args}, got {value!r}")
    if origin is tuple and isinstance(value, list):
        return tuple(parse(args[0], item, name) for item in value)
    if origin is Literal and value in args:
        return value
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{name}: expected {kind}, got {value!r}")
