"""Command lines: what is wrong with one is told in a line."""

from __future__ import annotations

import argparse
import math
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

_LONGEST = 299  # characters


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        line = " ".join(f"error: {message}".split())
        self.exit(2, (line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "...") + "\n")


def integer(low: int, high: int) -> Callable[[str], int]:
    """A type of argument: integers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        expected = f"expected an integer from {low} to {high}, got {text!r}"
        try:
            number = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(expected) from None
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(expected)
        return number

    return parse


def seconds(text: str) -> float:
    """A type of argument: a finite number, at least 0."""
    expected = f"expected a number of seconds, at least 0, got {text!r}"
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(expected) from None
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(expected)
    return number


def file_to_write(text: str) -> Path:
    """A type of argument: a file, there or not, in a folder that is there."""
    path = Path(text)
    try:
        fits = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        fits = path.parent.is_dir()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise argparse.ArgumentTypeError(f"expected the name of a file, got {text!r} ({error})") from None
    if not fits:
        raise argparse.ArgumentTypeError(f"expected a file in an existing folder, got {text!r}")
    return path
