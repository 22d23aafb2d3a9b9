"""Images with a label map each: ``maps:DIR`` of ADE20K, COCO-stuff, Cityscapes, or ``images/`` beside ``maps/``.

    ADE20K      images/{training,validation}/X.jpg          annotations/{training,validation}/X.png
    COCO-stuff  [images/]{train2017,val2017}/X.jpg          {annotations,stuffthingmaps}/{train2017,val2017}/X.png
    Cityscapes  leftImg8bit/{train,val}/C/X_leftImg8bit.png gtFine/{train,val}/C/X_gtFine_{labelTrainIds,labelIds}.png
    plain       images/[{train,val}/]X.*                    {maps,annotations,labels,masks}/[{train,val}/]X.png

Void is -1: ADE's 0 (its classes 1 to 150 become 0 to 149), 255 of the others (65535 of sixteen bits), and of
Cityscapes whatever is none of the 19 classes of its benchmark. Without folders for both splits every tenth image is
held out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from models.data.folder import folder_index, path_of
from models.data.images import read_image, read_map
from models.data.index import Index
from models.data.sample import Sample, Source, SplitName, printable, split_of
from models.errors import UserError

Layout = Literal["ade", "coco", "cityscapes", "plain"]
_IMAGES = (b"images", b"leftImg8bit", b"train2017", b"val2017")
_MAPS = (b"annotations", b"stuffthingmaps", b"gtFine", b"maps", b"labels", b"masks")
_SPLITS: dict[bytes, SplitName] = {
    **dict.fromkeys((b"train", b"training", b"train2017"), "train"),
    **dict.fromkeys((b"val", b"validation", b"val2017"), "val"),
}
_CITYSCAPES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
_VOID = -1


class MapSource(Source):
    """The images of one side that have a map."""

    def __init__(self, root: Path | str, split: SplitName, index: Index | None = None) -> None:
        self._root, self._split = root, split
        self._index = index if index is not None else folder_index(root)
        self._layout, pairs, alone = _pairs(self._index, split)
        if alone and index is None:
            print(f"{printable(os.fsencode(root))}: left out {alone} images without a map", file=sys.stderr)
        if not len(pairs):
            expected = "images/ and maps/, or ADE20K, COCO-stuff or Cityscapes as they are unpacked"
            raise UserError(f"data: expected {expected} in {root}, got no {split} image with a map")
        self._pairs = pairs
        self.map_labels = tuple(_CITYSCAPES) if self._layout == "cityscapes" else ()

    def __reduce__(self) -> tuple[type[MapSource], tuple[Path | str, SplitName, Index]]:
        return MapSource, (self._root, self._split, self._index)

    @property
    def fingerprint(self) -> str:
        return self._index.fingerprint

    def __len__(self) -> int:
        return len(self._pairs)

    def name(self, index: int) -> str:
        return printable(path_of(self._index, int(self._pairs[index, 0])))

    def read(self, index: int) -> Sample | None:
        image_path, map_path = (path_of(self._index, int(position)) for position in self._pairs[index])
        root = os.fsencode(self._root)
        image, values = read_image(os.path.join(root, image_path)), read_map(os.path.join(root, map_path))
        if image is None or values is None or image.shape[:2] != values.shape:
            return None
        return Sample(printable(image_path), image, map=_classes(values, self._layout, map_path))


class _Role(NamedTuple):
    """What a file is for."""

    is_map: bool
    split: SplitName | None
    key: bytes  # the same for an image and its map
    rank: int  # of several maps of one image the lowest counts


def _role(path: bytes) -> _Role | None:
    parts = path.split(b"/")
    if parts[0] not in _IMAGES + _MAPS or len(parts) < 2:
        return None
    is_map = parts[0] in _MAPS
    inner = parts if parts[0] in _SPLITS else parts[1:]  # coco's images may lie on top
    split = _SPLITS.get(inner[0]) if len(inner) > 1 else None
    key, rank = os.path.splitext(b"/".join(inner))[0], 0
    if parts[0] == b"leftImg8bit":
        key = key.removesuffix(b"_leftImg8bit")
    if parts[0] == b"gtFine":
        kinds = (b"_gtFine_labelTrainIds", b"_gtFine_labelIds")
        rank = next((number for number, kind in enumerate(kinds) if key.endswith(kind)), -1)
        if rank < 0:
            return None
        key = key.removesuffix(kinds[rank])
    return _Role(is_map, split, key, rank)


def _pairs(index: Index, split: SplitName) -> tuple[Layout, np.ndarray, int]:
    """Layout, positions [N, 2] of image and map in the index, and how many images have no map."""
    images: list[tuple[_Role, int]] = []
    maps: dict[bytes, tuple[int, int]] = {}
    for position in range(len(index["folder_of"])):
        role = _role(path_of(index, position))
        if role is None:
            continue
        if role.is_map:
            maps[role.key] = min(maps.get(role.key, (9, 0)), (role.rank, position))
        else:
            images.append((role, position))
    presplit = {role.split for role, _ in images} >= {"train", "val"}
    tops = {folder.split(b"/")[0] for folder in index.names("folders")}
    seconds = {b"/".join(folder.split(b"/")[:2]) for folder in index.names("folders")}
    layout: Layout = "plain"
    if b"leftImg8bit" in tops:
        layout = "cityscapes"
    elif b"annotations/training" in seconds:
        layout = "ade"
    elif {b"train2017", b"val2017"} & {name.split(b"/")[-1] for name in seconds}:
        layout = "coco"
    both = [(role, image, maps[role.key][1]) for role, image in images if role.key in maps]
    if presplit:
        chosen: Sequence[tuple[_Role, int, int]] = [pair for pair in both if pair[0].split == split]
    else:
        chosen = [both[position] for position in split_of(len(both), split)]
    positions = np.asarray([(image, of_map) for _, image, of_map in chosen], np.int32).reshape(-1, 2)
    return layout, positions, len(images) - len(both)


def _classes(values: np.ndarray, layout: Layout, path: bytes) -> np.ndarray:  # [H, W] -> [H, W] int32
    void = 255 if values.dtype == np.uint8 else 65535
    values = values.astype(np.int32)
    if layout == "ade":
        return np.where((values > 150) | (values < 1), _VOID, values - 1)
    if layout == "cityscapes" and b"_labelIds" in path:
        table = np.full(256, _VOID, np.int32)
        table[list(_CITYSCAPES.values())] = np.arange(len(_CITYSCAPES))
        return table[np.clip(values, 0, 255)]
    limit = len(_CITYSCAPES) if layout == "cityscapes" else void
    return np.where((values < 0) | (values >= limit), _VOID, values)
