"""The error of every program here that its user can put right, and what is asked of a file before it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_LONGEST = 200  # characters of what a library says


class UserError(Exception):
    """Something the user can put right; the message is one line."""


def first_line(error: Exception) -> str:
    """What an error of a library says, on one line."""
    line = str(error).strip().partition("\n")[0] or type(error).__name__
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


def check_file(path: Path) -> None:
    """Raise for what is there and no file: to read a pipe waits for somebody who writes into it."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: expected a file, got {'a folder' if path.is_dir() else 'a pipe or device'}")


def read_object(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in a file that is to be ``what``.

    Raises:
        UserError: in one line, if it is none.
        FileNotFoundError: if there is no file.
    """
    check_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSON and encoding errors are ValueErrors
        raise UserError(f"{path}: not {what} ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not {what} (expected an object, got {type(content).__name__})")
    return content
