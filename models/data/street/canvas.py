"""A picture that remembers what every pixel shows, and the flat things that are drawn on it.

Metres: x to the right, y up, z ahead. The camera looks along z, turned a little to a side, never tilted: so upright
planes across and along the street and level planes are all that is needed, and where they meet the rays of a row and
a column is known from one number a row and one a column.

Every pixel holds a material (class, colour, glow), how much light falls on it, its texture and its distance; colours
come last, from these. R rows, C columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from models.data.street.classes import SKY

Colour = tuple[float, float, float]
FAR = 1000.0  # metres
NEAR = 0.6
_BLACK: Colour = (0.0, 0.0, 0.0)
_Mask = np.ndarray | None  # None: all of it


@dataclass(frozen=True)
class Camera:
    """Where it is and where it looks."""

    x: float
    y: float
    z: float
    yaw: float  # radians to the right
    focal: float  # in longer sides of the picture
    horizon: float  # share of the height above it


class Patch(NamedTuple):
    """The part of the picture in which a plane may show."""

    rows: slice
    columns: slice
    across: np.ndarray  # [C] along the plane: z of a side wall, x of a wall ahead; [R, C] x of a floor
    up: np.ndarray  # [R, C] y of a wall, z of a floor
    distance: np.ndarray  # [1, C] of a wall, [R, 1] of a floor
    inside: _Mask  # [R, C] where it does show

    @property
    def at(self) -> tuple[slice, slice]:
        return self.rows, self.columns


class Canvas:
    """Draw from far to near: what comes later covers what was there."""

    def __init__(self, height: int, width: int, camera: Camera) -> None:
        self.height, self.width, self.camera = height, width, camera
        focal = camera.focal * max(height, width)
        self.focal = focal
        column = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / focal
        sine, cosine = math.sin(camera.yaw), math.cos(camera.yaw)
        self.dx = (cosine * column + sine).astype(np.float32)  # [C] per metre ahead
        self.dz = (cosine - sine * column).astype(np.float32)
        self.horizon_row = camera.horizon * height
        self.dy = ((self.horizon_row - np.arange(height, dtype=np.float32) - 0.5) / focal).astype(np.float32)  # [R]
        shape = (height, width)
        self.material = np.zeros(shape, np.uint16)
        self.light = np.zeros(shape, np.float32)
        self.texture = np.ones(shape, np.float32)
        self.depth = np.full(shape, FAR, np.float32)
        self._classes, self._colours, self._glows = [SKY], [_BLACK], [_BLACK]
        self._known: dict[tuple[int, Colour, Colour], int] = {}

    def make(self, of_class: int, colour: Colour, glow: Colour = _BLACK) -> int:
        """A material."""
        key = (of_class, colour, glow)
        if key not in self._known:
            self._known[key] = len(self._classes)
            self._classes.append(of_class)
            self._colours.append(colour)
            self._glows.append(glow)
        return self._known[key]

    def classes(self) -> np.ndarray:  # [R, C] uint8
        return np.take(np.asarray(self._classes, np.uint8), self.material)

    def palette(self) -> tuple[np.ndarray, np.ndarray]:
        """Colours and glows of the materials, each [3, M]."""
        return np.asarray(self._colours, np.float32).T.copy(), np.asarray(self._glows, np.float32).T.copy()

    # where planes show

    def side_wall(self, x: float, near: float, far: float, low: float, high: float) -> Patch | None:
        """An upright plane along the street, from z ``near`` to ``far``."""
        away, near, far = x - self.camera.x, near - self.camera.z, min(far - self.camera.z, FAR)
        near = max(near, NEAR)
        if near >= far or abs(away) < 1e-3:
            return None
        columns = self._columns(self._column(away, near), self._column(away, far))
        if columns is None:
            return None
        dx = self.dx[columns] * math.copysign(1, away)
        distance = abs(away) / np.maximum(dx, 1e-6)
        along = distance * self.dz[columns]
        inside = (dx > 1e-6) & (along >= near) & (along <= far)
        return self._upright(columns, inside, distance, along + self.camera.z, low, high)

    def wall(self, z: float, left: float, right: float, low: float, high: float) -> Patch | None:
        """An upright plane across the street."""
        away = z - self.camera.z
        if away < NEAR:
            return None
        columns = self._columns(self._column(left - self.camera.x, away), self._column(right - self.camera.x, away))
        if columns is None:
            return None
        distance = away / self.dz[columns]
        x = self.camera.x + distance * self.dx[columns]
        return self._upright(columns, (x >= left) & (x <= right), distance, x, low, high)

    def floor(self, y: float, left: float, right: float, near: float, far: float) -> Patch | None:
        """A level plane below the camera."""
        below = self.camera.y - y
        if below <= 0.02 or far - self.camera.z < NEAR:
            return None
        top = math.floor(self.horizon_row + self.focal * below / (far - self.camera.z + 1e-3) - 2)
        ahead = near - self.camera.z
        bottom = math.ceil(self.horizon_row + self.focal * below / ahead + 2) if ahead > NEAR else self.height
        first = max(top, math.floor(self.horizon_row) + 1, 0)
        rows = slice(first, min(bottom, self.height))
        if rows.start >= rows.stop:
            return None
        distance = below / np.maximum(-self.dy[rows], 1e-4)  # [R]
        widest, nearest = distance[0], distance[-1]
        edges = [self._column(side - self.camera.x, float(d)) for side in (left, right) for d in (widest, nearest)]
        columns = self._columns(min(edges), max(edges))
        if columns is None:
            return None
        distance = distance[:, None]
        x = self.camera.x + distance * self.dx[columns]
        return Patch(rows, columns, x, self.camera.z + distance * self.dz[columns], distance, None)

    def _column(self, x: float, ahead: float) -> float:
        """Where a point shows, seen from the camera at (0, 0)."""
        sine, cosine = math.sin(self.camera.yaw), math.cos(self.camera.yaw)
        slope = x / ahead
        return self.width / 2 + self.focal * (slope * cosine - sine) / max(0.1, cosine + slope * sine)

    def _columns(self, one: float, other: float) -> slice | None:
        """The columns of the picture between two places and one more on each side."""
        start = max(0, math.floor(min(one, other)) - 1)
        stop = min(self.width, math.ceil(max(one, other)) + 1)
        return slice(start, stop) if start < stop else None

    def _upright(
        self, columns: slice, inside: np.ndarray, distance: np.ndarray, across: np.ndarray, low: float, high: float
    ) -> Patch | None:
        hit = np.flatnonzero(inside)
        if not len(hit):
            return None
        first, last = int(hit[0]), int(hit[-1]) + 1
        distance = distance[first:last]
        columns = slice(columns.start + first, columns.start + last)
        ends = float(distance[0]), float(distance[-1])
        top = min(self.horizon_row - self.focal * (high - self.camera.y) / end for end in ends)
        bottom = max(self.horizon_row - self.focal * (low - self.camera.y) / end for end in ends)
        rows = slice(max(0, math.floor(top)), min(self.height, math.ceil(bottom) + 1))
        if rows.start >= rows.stop:
            return None
        up = self.camera.y + self.dy[rows, None] * distance
        return Patch(rows, columns, across[first:last], up, distance[None], (up >= low) & (up <= high))

    # drawing

    def paint(
        self,
        patch: Patch,
        mask: _Mask,
        material: int | np.ndarray,
        texture: float | np.ndarray = 1.0,
        light: float | np.ndarray = 0.0,
    ) -> None:
        """Set everything of the pixels in ``mask``; arrays broadcast to the patch."""
        where: bool | np.ndarray = True
        if patch.inside is not None:
            where = patch.inside if mask is None else patch.inside & mask
        elif mask is not None:
            where = mask
        np.copyto(self.material[patch.at], np.asarray(material, np.uint16), where=where)
        np.copyto(self.texture[patch.at], texture, where=where)
        np.copyto(self.light[patch.at], light, where=where)
        np.copyto(self.depth[patch.at], patch.distance, where=where)

    def darken(self, patch: Patch, factor: np.ndarray) -> None:
        """Shade what is there already."""
        self.texture[patch.at] *= factor

    def spot(self, x: float, y: float, z: float) -> tuple[float, float, float] | None:
        """Row, column and pixels per metre of a point; None behind the camera."""
        sine, cosine = math.sin(self.camera.yaw), math.cos(self.camera.yaw)
        x, z = x - self.camera.x, z - self.camera.z
        ahead, beside = z * cosine + x * sine, x * cosine - z * sine
        if ahead < NEAR:
            return None
        scale = self.focal / ahead
        return self.horizon_row - (y - self.camera.y) * scale, self.width / 2 + beside * scale, scale
