"""What every source of data offers: samples by number, in any order, from any process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np

SplitName = Literal["train", "val"]
HELD_OUT_EVERY = 10


class Sample(NamedTuple):
    """One image or clip; or the codes or latents of V views (crops) of one."""

    name: str
    image: np.ndarray  # [H, W, 3] uint8, [T, H, W, 3] of a clip; [V, ...] integer codes or float latents
    label: int | None = None
    map: np.ndarray | None = None  # [H, W] integers, -1 = void; [T, H, W] of a clip


class Source(Protocol):
    """Random access by index. Small when pickled: worker processes open files themselves, when they first read."""

    drawn: bool = False  # few images, from which crops are drawn with replacement; else every epoch sees each once
    labels: tuple[str, ...] = ()  # names of the classes that Sample.label counts, () without labels
    map_labels: tuple[str, ...] = ()  # names of the classes in Sample.map, () where they are not known

    @property
    def fingerprint(self) -> str:
        """Of what the samples are: the same in every run until they change."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """How messages call a sample; one printable line."""
        ...

    def read(self, index: int) -> Sample | None:
        """The sample, None if it is unreadable."""
        ...


def split_of(count: int, split: SplitName) -> Sequence[int]:
    """Positions of one side of a split of ``count`` things: every tenth is held out, of fewer the last."""
    if split == "val":
        return range(HELD_OUT_EVERY - 1, count, HELD_OUT_EVERY) or range(count)[-1:]
    return _AllButEveryTenth(count) if count >= HELD_OUT_EVERY else range(count)[:-1]


class _AllButEveryTenth(Sequence[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count - self._count // HELD_OUT_EVERY

    def __getitem__(self, index: int) -> int:  # type: ignore[override]  # no slices
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0 to {len(self) - 1}, got {index}")
        return index + index // (HELD_OUT_EVERY - 1)


def printable(name: bytes | str) -> str:
    """A file name in one line of any terminal: bytes that are no UTF-8 and control characters as escapes."""
    text = name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else name
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
