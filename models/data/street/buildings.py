"""Buildings: the wall along the street, the wall that faces us, a roof. C columns, R rows."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from models.data.permutation import KeyedRandom
from models.data.street.canvas import Canvas, Patch
from models.data.street.classes import BUILDING, VEGETATION, WINDOW
from models.data.street.dice import Dice, modulo, noise, sample
from models.data.street.light import Light
from models.data.street.weather import srgb
from models.data.street.world import Building, Street

_DEPTH = 14.0
_GROUND_FLOOR = 3.7
_LIT = ((255, 214, 140), (255, 196, 110), (236, 226, 196), (190, 210, 240))
_AWNINGS = (srgb(150, 44, 40), srgb(36, 84, 66), srgb(40, 58, 110), srgb(190, 140, 60), srgb(90, 84, 80))


def draw_building(canvas: Canvas, street: Street, building: Building, light: Light) -> None:
    side, front = building.side, building.front
    back = side * (front + _DEPTH)
    left, right = min(side * front, back), max(side * front, back)
    rise = 3.4 if building.roof else 0.0
    if building.roof is not None:
        _draw_roof(canvas, building, light)
    facing = canvas.wall(building.near, left, right, 0.0, building.height + rise)
    if facing is not None:
        middle = (left + right) / 2
        gable = None
        if rise:
            gable = facing.up < building.height + rise * (1 - np.abs(facing.across - middle) / (_DEPTH / 2))
        along = np.abs(facing.across - side * front)
        _facade(canvas, street, building, facing, along, _DEPTH, gable, light.ahead(facing.up))
    wall = canvas.side_wall(side * front, building.near, building.far, 0.0, building.height)
    if wall is not None:
        along = wall.across - building.near
        lit = light.side_wall(side, front, wall.across, wall.up)
        _facade(canvas, street, building, wall, along, building.far - building.near, None, lit)


def _facade(
    canvas: Canvas,
    street: Street,
    building: Building,
    patch: Patch,
    along: np.ndarray,  # [C] metres from its near edge
    length: float,
    mask: np.ndarray | None,
    lit: np.ndarray,
) -> None:
    up, dark = patch.up, street.weather.dark
    if len(along) < 5:  # so narrow that nothing on it shows
        canvas.paint(patch, mask, canvas.make(BUILDING, building.colour), 0.9, lit)
        return
    chance = _panes(building.number)
    plain = canvas.make(BUILDING, building.colour)
    trim = canvas.make(BUILDING, building.trim)
    glass = canvas.make(WINDOW, srgb(58, 74, 92) if not dark else srgb(30, 36, 48))
    glow = _LIT[building.number % len(_LIT)]
    lamp = canvas.make(WINDOW, srgb(*glow), tuple(0.75 * value for value in srgb(*glow)))  # type: ignore[arg-type]
    shops = building.ground == "shops"
    base = _GROUND_FLOOR if shops else 0.5

    bays = along / building.bay
    bay = bays.astype(np.int32)
    beside = np.abs(bays - bay - 0.5)  # [C] from the middle of a window
    storeys = (up - base) / building.storey
    storey = np.floor(storeys)
    over = storeys - storey  # [R, C]
    wide, high = building.window
    low = 0.5 - 0.42 * high
    fits = (along < int(length / building.bay + 0.01) * building.bay)[None]
    top = building.height - (0.9 if building.roof is None else 0.1)
    inside = (storey >= 0) & (up < top - 0.2) & fits
    frame = inside & (beside < wide / 2 + 0.04) & (over > low - 0.05) & (over < low + high + 0.03)
    pane = frame & (beside < wide / 2) & (over > low) & (over < low + high)
    bar = 0.045 if wide < 0.6 else 0.0
    pane &= (beside > bar / 2) | (bar == 0)
    seen = np.take(chance, (storey.astype(np.int32) & 15) * 16 + (bay & 15))  # [R, C] in [0, 1)
    bright = seen > (0.62 if shops else 0.7) if dark else np.zeros((1, 1), bool)

    shade = 1 + np.float32(0.05) * sample(noise(5, 4), along, up, 5.0)
    if float(patch.distance.min()) < canvas.focal / 25:
        courses = np.maximum(np.minimum(1.2 - patch.distance * (30 / canvas.focal), 1), 0)
        shade -= np.float32(0.07) * courses * (modulo(up, 0.3) < 0.045)
    shade *= 0.86 + 0.14 * np.minimum(up * np.float32(1 / 3), 1)
    sky = 0.55 + 0.9 * seen + 0.25 * over  # what a pane mirrors
    material = np.where(frame, np.uint16(trim), np.uint16(plain))
    if building.roof is None:
        cornice = up > top
        np.copyto(material, trim, where=cornice)
        shade *= 1 - 0.3 * ((up > top - 0.22) & (up <= top))
    np.copyto(material, np.where(bright, np.uint16(lamp), np.uint16(glass)), where=pane)
    np.copyto(shade, np.where(bright, 0.4 + 0.8 * seen, sky), where=pane)
    if shops:
        _shops(canvas, building, up, along, length, material, shade, dark)
    else:
        _door(canvas, building, up, along, length, material)
    canvas.paint(patch, mask, material, shade, lit)


def _shops(
    canvas: Canvas,
    building: Building,
    up: np.ndarray,
    along: np.ndarray,
    length: float,
    material: np.ndarray,
    shade: np.ndarray,
    dark: bool,
) -> None:
    dice = Dice(building.number, 1)
    below = up < _GROUND_FLOOR
    wall = canvas.make(BUILDING, dice.one_of((srgb(60, 58, 60), srgb(120, 108, 96), srgb(86, 60, 48))))
    awning = canvas.make(BUILDING, dice.one_of(_AWNINGS))
    warm = tuple(0.8 * value for value in srgb(255, 220, 160))
    glass = canvas.make(WINDOW, srgb(66, 76, 84), warm if dark and dice.happens(0.7) else (0.0, 0.0, 0.0))  # type: ignore[arg-type]
    count = max(1, round(length / dice.between(4, 6)))
    share = along / length * count
    beside = np.abs(share - np.floor(share) - 0.5)[None]
    np.copyto(material, wall, where=below)
    window = below & (beside < 0.42) & (up > 0.45) & (up < 2.75)
    np.copyto(material, glass, where=window)
    np.copyto(shade, 0.75 + 0.35 * np.sin(9 * along)[None] * 0.4 + 0.12 * up, where=window)
    band = below & (up > 2.85) & (up < 3.5)
    np.copyto(material, awning, where=band)
    np.copyto(shade, 0.8 + 0.3 * (np.floor(along / 0.45) % 2)[None], where=band)


def _door(
    canvas: Canvas, building: Building, up: np.ndarray, along: np.ndarray, length: float, material: np.ndarray
) -> None:
    dice = Dice(building.number, 2)
    door = canvas.make(
        BUILDING, dice.one_of((srgb(96, 52, 36), srgb(46, 60, 84), srgb(52, 80, 60), srgb(130, 40, 36)))
    )
    beside = np.abs(along - length * dice.between(0.4, 0.6))[None]
    np.copyto(material, canvas.make(BUILDING, building.trim), where=(beside < 0.75) & (up < 2.5))
    np.copyto(material, door, where=(beside < 0.55) & (up < 2.3))


def _draw_roof(canvas: Canvas, building: Building, light: Light) -> None:
    """The slope above the wall along the street, seen from below its ridge."""
    assert building.roof is not None
    side, middle = building.side, building.front + _DEPTH / 2
    # what shows of the ridge passes the wall nearer to us
    ahead = (building.near - canvas.camera.z) * building.front / middle
    near = canvas.camera.z + min(ahead, building.near - canvas.camera.z) - 2
    slope = canvas.side_wall(side * building.front, near, building.far, building.height - 0.3, building.height + 6)
    if slope is None:
        return
    rows, columns = slope.at
    # height above the wall over distance from it is the same everywhere on the slope
    tilt = 3.4 / (_DEPTH / 2)
    dx, dy = canvas.dx[columns][None] * side, canvas.dy[rows][:, None]
    rise = canvas.camera.y - building.height - tilt * (canvas.camera.x * side - building.front)
    meets = tilt * dx - dy
    distance = rise / np.where(np.abs(meets) < 1e-4, 1e-4, meets)
    x = canvas.camera.x * side + distance * dx
    z = canvas.camera.z + distance * canvas.dz[columns]
    mask = (
        (x > building.front - 0.5)
        & (x < middle)
        & (z > building.near - 0.3)
        & (z < building.far + 0.3)
        & (distance > 1)
    )
    tiles = 1 + 0.10 * (modulo(x - building.front, 0.6) < 0.12) - 0.08 * sample(noise(5, 4), z, x, 12.0)
    lit = 0.0 if light.dark else 0.45
    canvas.paint(
        slope._replace(distance=distance, inside=None), mask, canvas.make(BUILDING, building.roof), tiles, lit
    )


def draw_hedges(canvas: Canvas, street: Street, near: float, far: float, light: Light) -> None:
    """Between gardens and sidewalk, with gaps at the crossings."""
    leaves = canvas.make(VEGETATION, srgb(58, 92, 42))
    for side in (-1, 1):
        wall = canvas.side_wall(side * (street.walk + 0.3), near, far, 0.0, 1.5)
        if wall is None:
            continue
        z, up = wall.across, wall.up
        block, lot = z % street.block, np.floor(z / 11).astype(np.int64)
        grown = ((lot * 2654435761 >> 7) & 3) > 1
        open_ = (block < street.crossing + 2) | (block > street.block - 2) | (np.abs(modulo(z, 11) - 5.5) < 1.2)
        bumps = noise(4, 5)[0][(z * 20).astype(np.int32) & 255]
        mask = up < np.where(grown & ~open_, 1.05 + 0.06 * bumps, -1)[None]
        texture = 0.8 + 0.25 * np.clip(up, 0, 1) + 0.3 * sample(noise(6, 6), z, up, 26.0)
        canvas.paint(wall, mask, leaves, np.maximum(texture, 0.2), light.side_wall(side, street.walk, z, up))


@lru_cache(4096)
def _panes(number: int) -> np.ndarray:  # [16 * 16] of storey and bay
    return KeyedRandom().at(number).random(256, np.float32)
