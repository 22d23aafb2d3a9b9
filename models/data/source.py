"""Sources by name: ``open_source("embedded", "train")``."""

from __future__ import annotations

from pathlib import Path

from models.data.embedded import EmbeddedSource
from models.data.folder import FolderSource
from models.data.sample import Sample, Source, SplitName
from models.data.scenes import SceneSource

__all__ = ["Sample", "Source", "open_source"]


def open_source(spec: str, split: SplitName) -> Source:
    """One side of what a spec names.

    Args:
        spec: ``"embedded"``: photographs; ``"scenes"`` or ``"scenes:length=1000,seed=3,size=288x512,frames=8"``:
            street scenes; else a folder of images.
        split: ``"train"`` or ``"val"``.
    """
    kind, _, rest = spec.partition(":")
    if spec == "embedded":
        return EmbeddedSource(split)
    if kind == "scenes":
        return SceneSource(split, rest)
    return FolderSource(Path(spec), split)
