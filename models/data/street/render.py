"""One frame of a street: picture and label map."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from models.data.street import finish
from models.data.street.buildings import draw_building, draw_hedges
from models.data.street.canvas import Camera, Canvas, Colour
from models.data.street.ground import draw_ground
from models.data.street.light import Light
from models.data.street.living import draw_plant, draw_walker
from models.data.street.posts import draw_post, lamp_of
from models.data.street.vehicles import draw_vehicle, lamps_of
from models.data.street.world import SIGHT, Plant, Post, Street, Vehicle, Walker, draw_street

FRAMES_PER_SECOND = 12
_FINE = 512  # samples along the longer side, at least
_WARM: Colour = (1.2, 0.75, 0.34)
_HEADLIGHT: Colour = (1.1, 1.05, 0.9)
_TAIL: Colour = (0.5, 0.03, 0.02)


class Picture(NamedTuple):
    """What one frame shows."""

    image: np.ndarray  # [H, W, 3] uint8
    map: np.ndarray  # [H, W] uint8, numbers of classes.CLASSES


def render(seed: int, frame: int, size: tuple[int, int]) -> Picture:
    """Frame ``frame`` of street ``seed`` at ``size`` (height, width) pixels; nothing else matters.

    The image is the mean of several samples a pixel; the map has the class of most of them, an early one in a tie.
    """
    height, width = size
    if min(height, width) < 1:
        raise ValueError(f"size: expected at least 1 x 1 pixels, got {height} x {width}")
    fine = min(4, max(2, math.ceil(_FINE / max(height, width))))
    street, time = draw_street(seed), frame / FRAMES_PER_SECOND
    camera = street.camera(time)
    canvas = Canvas(height * fine, width * fine, camera)
    buildings = list(street.buildings(camera.z - 60, camera.z + SIGHT))
    light = Light(street, camera, buildings)
    things = _things(street, time, camera)

    finish.draw_backdrop(canvas, street)
    draw_ground(canvas, street, light)
    for building in sorted(buildings, key=lambda building: -building.near):
        draw_building(canvas, street, building, light)
    behind = [thing for thing in things if isinstance(thing, Plant) and abs(thing.x) > street.walk]
    for plant in sorted(behind, key=lambda thing: -thing.z):
        draw_plant(canvas, street, plant, light)
    if street.kind == "suburb":
        draw_hedges(canvas, street, camera.z, camera.z + 150, light)
    shining = list[tuple[tuple[float, float, float], Colour, float]]()
    for thing in sorted((thing for thing in things if thing not in behind), key=lambda thing: -thing.z):
        if isinstance(thing, Vehicle):
            draw_vehicle(canvas, street, thing, light)
            colour, reach = (_HEADLIGHT, 1.4) if thing.oncoming else (_TAIL, 0.8)
            shining += [(lamp, colour, reach) for lamp in lamps_of(thing)]
        elif isinstance(thing, Walker):
            draw_walker(canvas, thing, light)
        elif isinstance(thing, Plant):
            draw_plant(canvas, street, thing, light)
        else:
            draw_post(canvas, thing, light, time)
            if thing.kind == "lamp":
                shining.append((lamp_of(thing), _WARM, 2.6))

    picture, classes = finish.colours(canvas, street, time, fine), _most(canvas.classes(), fine)
    if street.weather.wet:
        finish.mirror(picture, canvas, classes, street.weather, fine)
    if light.dark:
        finish.dazzle(picture, canvas, shining, fine)
    return Picture(finish.expose(picture, street.weather), classes)


def _things(street: Street, time: float, camera: Camera) -> list[Vehicle | Walker | Plant | Post]:
    things: list[Vehicle | Walker | Plant | Post] = [*street.plants(camera.z, camera.z + 110)]
    things += street.posts(camera.z, camera.z + 120)
    things += street.vehicles(time, camera)
    things += street.walkers(time, camera)
    return things


def _most(classes: np.ndarray, fine: int) -> np.ndarray:  # [H * fine, W * fine] -> [H, W]
    parts = [classes[i::fine, j::fine] for i in range(fine) for j in range(fine)]
    best, votes = parts[0].copy(), np.zeros(parts[0].shape, np.uint8)
    for number, part in enumerate(parts):
        count = np.zeros_like(votes)
        for other in parts[number:]:
            count += part == other
        better = count > votes
        np.copyto(best, part, where=better)
        np.copyto(votes, count, where=better)
    return best
