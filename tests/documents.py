"""Fenced blocks of documents."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Block(NamedTuple):
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [Block(document, text[: fence.start()].count("\n") + 1, fence[1], fence[2]) for fence in fences]
