"""The part of a spec that sets numbers: ``length=1000,seed=3``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from models.errors import UserError

Size = tuple[int, int]  # height, width


def read_options(kind: str, text: str, defaults: Mapping[str, int | Size]) -> dict[str, int | Size]:
    """The values that a spec sets, and the defaults of the others.

    A number is a whole one; where the default is a size, ``256`` means square and ``288x512`` height and width.
    """
    values = dict(defaults)
    for part in text.split(",") if text else []:
        name, _, value = part.partition("=")
        if name not in values:
            raise UserError(f"data: expected an option of {kind!r} ({', '.join(sorted(values))}), got {part!r}")
        pattern = r"\d+(x\d+)?" if isinstance(values[name], tuple) else r"\d+"
        if not re.fullmatch(pattern, value, re.ASCII):
            wanted = "256 or 288x512" if isinstance(values[name], tuple) else "a whole number"
            raise UserError(f"data: {kind}: expected {name}={wanted}, got {part!r}")
        numbers = [int(number) for number in value.split("x")]
        values[name] = (numbers[0], numbers[-1]) if isinstance(values[name], tuple) else numbers[0]
    return values
