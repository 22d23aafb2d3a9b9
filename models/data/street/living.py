"""People and trees. C columns, R rows."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from models.data.street.canvas import Canvas, Colour
from models.data.street.classes import PEDESTRIAN, VEGETATION
from models.data.street.dice import Dice, noise
from models.data.street.ground import draw_shadow
from models.data.street.light import Light
from models.data.street.weather import srgb
from models.data.street.world import CLOTHES, HAIRS, SKINS, Plant, Street, Walker

_LEAVES = (srgb(74, 110, 50), srgb(92, 122, 52), srgb(60, 98, 52), srgb(112, 128, 56), srgb(150, 120, 50))
_FIR = (srgb(44, 78, 50), srgb(54, 86, 58))
_BARK = srgb(86, 70, 56)
_SPRITE = 256  # pixels of the largest picture of a crown


def draw_walker(canvas: Canvas, walker: Walker, light: Light) -> None:
    scale = walker.height / 1.8
    patch = canvas.wall(walker.z, walker.x - 0.55, walker.x + 0.55, 0.0, walker.height + 0.05)
    if patch is None:
        return
    draw_shadow(canvas, walker.x, walker.z, 0.4, 0.3, 0.5)
    dice = Dice(walker.number, 7)
    coat, legs = dice.one_of(CLOTHES), dice.one_of(CLOTHES[:4] + CLOTHES[-2:-1])
    skin, hair = dice.one_of(SKINS), dice.one_of(HAIRS)
    lit = light.thing(walker.x, walker.z) * 1.15
    x, y = (patch.across - walker.x)[None] / scale, patch.up / scale
    swing = math.sin(walker.phase)
    stride = 0.26 * swing if walker.sideways else 0.05 * swing
    reach = 0.22 * swing if walker.sideways else 0.04 * swing
    lift = 0.06 * max(0.0, math.cos(walker.phase)), 0.06 * max(0.0, -math.cos(walker.phase))
    shade = np.float32(0.95) - np.float32(0.35 if light.street.sun[0] < 0 else -0.35) * np.clip(x * 4, -1, 1)
    material, texture = np.zeros(y.shape, np.uint16), np.broadcast_to(shade, y.shape).copy()

    def part(of_colour: Colour, mask: np.ndarray, darker: float = 1.0) -> None:
        np.copyto(material, np.uint16(canvas.make(PEDESTRIAN, of_colour)), where=mask)
        if darker < 1:
            np.copyto(texture, shade * np.float32(darker), where=mask)

    for way, darker in ((-1, 0.8), (1, 0.99)):
        hip = 0.085 * way * (0.4 if walker.sideways else 1)
        lifted = lift[0 if way < 0 else 1]
        leg = _limb(x, y, hip, 0.86, hip + stride * way, 0.08 + lifted, 0.085)
        part(legs, leg, darker)
        part(srgb(34, 30, 30), leg & (y < 0.10 + lifted), darker)
        shoulder = 0.19 * way * (0.2 if walker.sideways else 1)
        part(coat, _limb(x, y, shoulder, 1.40, shoulder + 0.05 * way - reach * way, 0.84, 0.06), darker * 0.9)
    wide = 0.14 if walker.sideways else 0.20
    part(coat, (np.abs(x) < wide - 0.10 * np.square(y - 1.2)) & (y > 0.78) & (y < 1.50))
    part(skin, np.square(x) + np.square(y - 1.66) < 0.115**2)
    part(hair, (np.square(x) + np.square(y - 1.68) < 0.125**2) & (y > (1.68 if dice.happens(0.5) else 1.60)))
    canvas.paint(patch, material > 0, material, texture, lit)


def _limb(x: np.ndarray, y: np.ndarray, x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    """Whether a point is within ``radius`` of the line from one point to another."""
    dx, dy = x1 - x0, y1 - y0
    share = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
    return np.square(x - x0 - share * dx) + np.square(y - y0 - share * dy) < radius * radius


def draw_plant(canvas: Canvas, street: Street, plant: Plant, light: Light) -> None:
    wide = {"round": 0.42, "tall": 0.24, "fir": 0.25}[plant.kind] * plant.height
    foot = {"round": 0.26, "tall": 0.14, "fir": 0.08}[plant.kind] * plant.height
    lit = light.thing(plant.x, plant.z)
    draw_shadow(canvas, plant.x, plant.z, wide * 0.9, wide * 0.8, 0.45)
    trunk = canvas.wall(plant.z, plant.x - 0.3, plant.x + 0.3, 0.0, plant.height * 0.6)
    if trunk is not None:
        beside = (trunk.across - plant.x)[None]
        mask = np.abs(beside) < 0.10 + 0.02 * plant.height * (1 - np.clip(trunk.up / plant.height, 0, 1)) * 0.5
        canvas.paint(trunk, mask, canvas.make(VEGETATION, _BARK), 0.9 - 1.4 * beside, lit * 0.7)
    patch = canvas.wall(plant.z, plant.x - wide, plant.x + wide, foot, plant.height)
    if patch is None:
        return
    sprites = _crown(plant.kind, plant.number)
    pixels = canvas.focal * 2 * wide / max(float(patch.distance.min()), 1.0)
    sprite = sprites[min(len(sprites) - 1, max(0, int(math.log2(max(1.0, _SPRITE / pixels)))))]
    size = len(sprite.solid)
    middle = patch.up[:, patch.up.shape[1] // 2]  # turned so little that a row of pixels is a row of leaves
    columns = np.clip(((patch.across - plant.x + wide) / (2 * wide) * size).astype(np.int32), 0, size - 1)
    rows = np.clip(((plant.height - middle) / (plant.height - foot) * size).astype(np.int32), 0, size - 1)
    if street.sun[0] > 0:  # sprites are lit from the left
        columns = size - 1 - columns
    leaves = (_FIR if plant.kind == "fir" else _LEAVES)[plant.number % (2 if plant.kind == "fir" else 5)]
    at = rows[:, None] * size + columns
    shade = np.take(sprite.shade.reshape(-1), at)
    solid = np.take(sprite.solid.reshape(-1), at)
    canvas.paint(patch, solid, canvas.make(VEGETATION, leaves), shade, np.float32(1.2 * lit) * shade * shade)


class _Sprite(NamedTuple):
    solid: np.ndarray  # [S, S] bool
    shade: np.ndarray  # [S, S] float32


@lru_cache(64)
def _crown(kind: str, number: int) -> tuple[_Sprite, ...]:
    """Leaves in clumps, lit from above and left; each sprite has half the pixels of the one before."""
    dice = Dice(number, 11, len(kind))
    place = ((np.arange(_SPRITE) + 0.5) / _SPRITE * 2 - 1).astype(np.float32)
    bulge, solid = np.full((_SPRITE, _SPRITE), -1, np.float32), np.zeros((_SPRITE, _SPRITE), bool)
    shade = np.zeros((_SPRITE, _SPRITE), np.float32)
    fir = kind == "fir"
    bumps = (noise(6, 7) * 0.10 + noise(7, 8) * 0.06).astype(np.float32)
    for _ in range(150 if fir else 190):
        angle, reach = dice.between(0, 2 * math.pi), math.sqrt(dice.unit()) * 0.84
        x, y, radius = reach * math.cos(angle), reach * math.sin(angle), dice.between(0.07, 0.17)
        if fir:
            y = dice.between(-0.92, 0.86)
            x = (y + 1) * 0.42 * dice.between(-1, 1)
            radius = 0.06 + 0.06 * (y + 1)
        forward = dice.between(0, 0.6) - 0.3 * reach
        # rough edges reach no farther
        rows, columns = (
            slice(*np.searchsorted(place, (middle - 2 * radius, middle + 2 * radius))) for middle in (y, x)
        )
        rough = bumps[rows, columns]
        beside, below = (place[columns] - x) / radius, (place[rows, None] - y) / radius * (1.5 if fir else 1)
        inside = 1 - beside * beside - below * below + (1.5 if fir else 4) * rough
        height = np.sqrt(np.maximum(inside, 0)) * radius + forward
        front = (inside > 0) & (height > bulge[rows, columns])
        np.copyto(bulge[rows, columns], height, where=front)
        tone = 0.60 - 0.20 * beside - 0.26 * below - 0.34 * y - 0.16 * x + 1.7 * rough
        np.copyto(shade[rows, columns], tone, where=front)
        solid[rows, columns] |= front
    shade = np.clip(shade, 0.16, 1.5)
    cover, weighted = solid.astype(np.float32), shade * solid
    sprites = [_Sprite(solid, shade)]
    while len(cover) > 8:
        cover, weighted = (part.reshape(len(part) // 2, 2, -1, 2).mean((1, 3)) for part in (cover, weighted))
        sprites.append(_Sprite(cover > 0.5, weighted / np.maximum(cover, 1e-3)))
    return tuple(sprites)
