"""Parts of a text file that are generated: what stands between two comments."""

from __future__ import annotations

from pathlib import Path


def write_block(path: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name:begin -->`` and ``<!-- name:end -->``, if that changes anything.

    Raises:
        ValueError: if the file does not have each marker once, in this order.
    """
    head, before, tail = _parts(path, name)
    if before != f"\n{text}\n":
        path.write_text(f"{head}<!-- {name}:begin -->\n{text}\n<!-- {name}:end -->{tail}", encoding="utf-8")


def read_block(path: Path, name: str) -> str:
    """What stands there."""
    return _parts(path, name)[1].strip("\n")


def _parts(path: Path, name: str) -> tuple[str, str, str]:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    content = path.read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{path}: expected {begin} and then {end}, once each")
    head, rest = content.split(begin)
    inside, tail = rest.split(end)
    return head, inside, tail
