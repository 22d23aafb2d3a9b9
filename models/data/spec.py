"""The part of a spec that sets numbers: ``length=1000,seed=3``."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, TypeVar

from models.errors import UserError

Size = tuple[int, int]  # height, width
T = TypeVar("T")


def read_options(kind: str, text: str, options: type[T]) -> T:
    """An options dataclass with the values that a spec sets.

    Numbers are whole, from 1 on where the default is not 0. Where it is a size, ``256`` means square and ``288x512``
    height and width.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if name not in defaults:
            raise UserError(f"data: expected an option of {kind} ({', '.join(sorted(defaults))}), got {part!r}")
        is_size, least = isinstance(defaults[name], tuple), 0 if defaults[name] == 0 else 1
        numbers = re.fullmatch(r"(\d+)(?:x(\d+))?" if is_size else r"(\d+)", value, re.ASCII)
        if numbers is None or any(int(number) < least for number in numbers.groups() if number):
            wanted = "256 or 288x512" if is_size else "a whole number" + (" from 1 on" if least else "")
            raise UserError(f"data: {kind}: expected {name}={wanted}, got {part!r}")
        whole = [int(number) for number in numbers.groups() if number]
        values[name] = (whole[0], whole[-1]) if is_size else whole[0]
    return options(**values)
