"""Sources by name: ``open_source("embedded", "train")``."""

from __future__ import annotations

from pathlib import Path

from models.data.embedded import EmbeddedSource
from models.data.folder import FolderSource
from models.data.sample import Sample, Source, SplitName

__all__ = ["Sample", "Source", "open_source"]


def open_source(spec: str, split: SplitName) -> Source:
    """One side of what a spec names.

    Args:
        spec: ``"embedded"``: photographs; or a folder of images.
        split: ``"train"`` or ``"val"``.
    """
    if spec == "embedded":
        return EmbeddedSource(split)
    return FolderSource(Path(spec), split)
