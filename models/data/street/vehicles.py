"""Cars, vans, buses and trucks: boxes with what one knows them by. C columns, R rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from models.data.street.canvas import Canvas, Colour, Patch
from models.data.street.classes import BUS, CAR, TRUCK
from models.data.street.ground import draw_shadow
from models.data.street.light import Light
from models.data.street.weather import srgb
from models.data.street.world import Street, Vehicle

_GLASS, _TYRE, _TRIM = srgb(44, 54, 64), srgb(26, 26, 28), srgb(40, 40, 44)
_SHOULDER = 0.12  # metres from the side of the body to that of the cabin
_SMALL = 9  # samples across: of what is smaller only the end is drawn
_LAMP_OFF = srgb(206, 208, 204)


class _Shape(NamedTuple):
    """Metres; the cabin runs from ``cabin[0]`` to ``cabin[1]`` of the length at its foot, measured from the rear."""

    width: float
    length: float
    belt: float  # height of the body
    top: float
    cabin: tuple[float, float]
    slant: tuple[float, float]  # of rear and front window: share of the length
    of_class: int


_SHAPES = {
    "sedan": _Shape(1.80, 4.6, 0.98, 1.45, (0.10, 0.72), (0.12, 0.14), CAR),
    "hatchback": _Shape(1.76, 4.0, 1.00, 1.52, (0.01, 0.74), (0.06, 0.16), CAR),
    "van": _Shape(1.95, 5.0, 1.15, 2.10, (0.00, 0.84), (0.01, 0.10), CAR),
    "bus": _Shape(2.50, 11.5, 1.30, 3.10, (0.00, 1.00), (0.0, 0.0), BUS),
    "truck": _Shape(2.45, 8.5, 1.10, 3.30, (0.00, 0.74), (0.0, 0.0), TRUCK),
}


def draw_vehicle(canvas: Canvas, street: Street, vehicle: Vehicle, light: Light) -> None:
    shape = _SHAPES[vehicle.body]
    middle = vehicle.z + shape.length / 2
    draw_shadow(canvas, vehicle.x, middle, shape.width * 0.62, shape.length * 0.56, 0.62)
    lit = light.thing(vehicle.x, vehicle.z)
    plain = vehicle.z - canvas.camera.z > canvas.focal * shape.width / _SMALL
    paint = canvas.make(shape.of_class, vehicle.colour)
    if not plain:
        _side(canvas, vehicle, shape, paint, lit * 0.8)
    if vehicle.body in ("bus", "truck"):
        _box_end(canvas, vehicle, shape, paint, lit, light.dark)
    else:
        if not plain:
            _lid(canvas, vehicle, shape, paint, lit)
            _cabin_side(canvas, vehicle, shape, paint, lit * 0.8)
        _cabin_end(canvas, vehicle, shape, paint, lit)
        _body_end(canvas, vehicle, shape, paint, lit, light.dark)


def _nose(vehicle: Vehicle, shape: _Shape) -> tuple[float, float]:
    """Of the end that we see: where the cabin begins, the slant of its window, both in metres from it."""
    if vehicle.oncoming:
        return (1 - shape.cabin[1]) * shape.length, shape.slant[1] * shape.length
    return shape.cabin[0] * shape.length, shape.slant[0] * shape.length


def _side(canvas: Canvas, vehicle: Vehicle, shape: _Shape, paint: int, lit: float) -> None:
    patch, place = _beside(
        canvas, vehicle, shape, shape.width / 2, shape.belt if shape.of_class == CAR else shape.top
    )
    if patch is None:
        return
    make, up = canvas.make, patch.up
    body = (up > 0.28) & (up < shape.belt - 0.06 * np.square(2 * place - 1)[None])
    mask = body
    material = np.full(up.shape, paint, np.uint16)
    if shape.of_class == CAR:
        wheels, radius = (0.19, 0.80), 0.33
    elif shape.of_class == BUS:
        mask = (up > 0.3) & (up < shape.top)
        pane = (up > 1.35) & (up < 2.55) & (np.abs((place * 8) % 1 - 0.5) < 0.44)
        np.copyto(material, make(BUS, _GLASS), where=pane)
        np.copyto(material, make(BUS, srgb(232, 232, 226)), where=(up > 0.85) & (up < 1.1))
        wheels, radius = (0.22, 0.78), 0.5
    else:
        box, cab = place < 0.74, place > 0.77
        mask = ((up > 0.85) & (up < shape.top) & box) | ((up > 0.45) & (up < 2.6) & cab) | ((up > 0.6) & (up < 0.85))
        np.copyto(material, make(TRUCK, srgb(226, 226, 222)), where=box & (up > 0.85))
        np.copyto(material, make(TRUCK, _TRIM), where=up < 0.85)
        np.copyto(material, make(TRUCK, _GLASS), where=(place > 0.84) & (up > 1.5) & (up < 2.3))
        wheels, radius = (0.16, 0.86), 0.48
    texture = 0.72 + 0.34 * np.clip((up - 0.3) / (shape.belt - 0.3), 0, 1)
    texture -= 0.25 * ((np.abs(up - shape.belt * 0.72) < 0.02) & body)
    for wheel in wheels:
        far = np.hypot((place - wheel) * shape.length, up - radius)
        arch, tyre, hub = far < radius * 1.18, far < radius, far < radius * 0.55
        np.copyto(material, make(shape.of_class, _TRIM), where=arch)
        np.copyto(material, make(shape.of_class, _TYRE), where=tyre)
        np.copyto(material, make(shape.of_class, srgb(150, 152, 156)), where=hub)
        mask = (mask & ~(arch & (up < 0.28))) | tyre
    canvas.paint(patch, mask, material, texture, lit)


def _beside(
    canvas: Canvas, vehicle: Vehicle, shape: _Shape, half: float, high: float
) -> tuple[Patch | None, np.ndarray]:
    """The side that we see, and where along it: [C], 0 at the rear, 1 at the front."""
    x = vehicle.x + (-half if vehicle.x > canvas.camera.x else half)
    patch = canvas.side_wall(x, vehicle.z, vehicle.z + shape.length, 0.0, high)
    if patch is None:
        return None, np.empty(0)
    place = (patch.across - vehicle.z) / shape.length
    return patch, 1 - place if vehicle.oncoming else place


def _cabin_side(canvas: Canvas, vehicle: Vehicle, shape: _Shape, paint: int, lit: float) -> None:
    patch, place = _beside(canvas, vehicle, shape, shape.width / 2 - _SHOULDER, shape.top)
    if patch is None:
        return
    high = (patch.up - shape.belt) / (shape.top - shape.belt)
    begin, end = shape.cabin[0] + shape.slant[0] * high, shape.cabin[1] - shape.slant[1] * high
    cabin = (high > -0.2) & (place > begin) & (place < end)
    pillar = np.abs(place - 0.5 * (shape.cabin[0] + shape.cabin[1])) < 0.012
    pane = (high > 0.04) & (high < 0.84) & (place > begin + 0.035) & (place < end - 0.035) & ~pillar
    if vehicle.body == "van":
        pane &= place > 0.55
    material = np.where(pane, np.uint16(canvas.make(CAR, _GLASS)), np.uint16(paint))
    canvas.paint(patch, cabin, material, 0.85 + 0.3 * high, lit)


def _cabin_end(canvas: Canvas, vehicle: Vehicle, shape: _Shape, paint: int, lit: float) -> None:
    foot, slant = _nose(vehicle, shape)
    half = shape.width / 2 - _SHOULDER
    patch = canvas.wall(
        vehicle.z + foot + slant * 0.6, vehicle.x - half, vehicle.x + half, shape.belt - 0.15, shape.top
    )
    if patch is None:
        return
    up = patch.up
    high = np.clip((up - shape.belt) / (shape.top - shape.belt), 0, 1)
    beside = np.abs(patch.across - vehicle.x)[None]
    edge = half - 0.05 * high
    mask = (beside < edge) & (up < shape.top - 0.06 * np.square(beside / half))
    pane = (beside < edge - 0.09) & (high > 0.02) & (high < 0.80)
    material = np.where(pane, np.uint16(canvas.make(CAR, _GLASS)), np.uint16(paint))
    texture = np.where(pane, 0.6 + 1.0 * high + 0.25 * (patch.across - vehicle.x)[None], 0.85 + 0.25 * high)
    if vehicle.oncoming:  # who drives
        seat = np.hypot(patch.across - vehicle.x - 0.36, up - (shape.belt + 0.22))
        np.copyto(texture, 0.35, where=pane & (seat < 0.13))
    canvas.paint(patch, mask, material, texture, lit)


def _lid(canvas: Canvas, vehicle: Vehicle, shape: _Shape, paint: int, lit: float) -> None:
    """Bonnet, boot and the shoulders beside the cabin, seen from above."""
    half = shape.width / 2 - 0.02
    near, far = vehicle.z + 0.05, vehicle.z + shape.length - 0.05
    patch = canvas.floor(shape.belt - 0.06, vehicle.x - half, vehicle.x + half, near, far)
    if patch is None:
        return
    mask = (np.abs(patch.across - vehicle.x) < half) & (patch.up > near) & (patch.up < far)
    canvas.paint(patch, mask, paint, 1.1, lit + 0.12)


def _body_end(canvas: Canvas, vehicle: Vehicle, shape: _Shape, paint: int, lit: float, dark: bool) -> None:
    half = shape.width / 2
    patch = canvas.wall(vehicle.z, vehicle.x - half, vehicle.x + half, 0.0, shape.belt)
    if patch is None:
        return
    up = patch.up
    beside = np.abs(patch.across - vehicle.x)[None]
    corner = np.maximum(beside - (half - 0.14), 0) + np.maximum(up - (shape.belt - 0.12), 0)
    body = (up > 0.30) & (corner < 0.14)
    tyres = (up < 0.42) & (np.abs(beside - (half - 0.16)) < 0.11)
    texture = 0.66 + 0.40 * np.clip((up - 0.3) / (shape.belt - 0.3), 0, 1)
    material = np.full(up.shape, paint, np.uint16)
    make = canvas.make
    np.copyto(material, make(CAR, _TRIM), where=up < 0.46)
    np.copyto(material, make(CAR, _TYRE), where=tyres & (up < 0.3))
    lamps = (np.abs(up - 0.74 * shape.belt) < 0.085) & (beside > half - 0.42) & (beside < half - 0.05)
    if vehicle.oncoming:
        glow: Colour = (3.2, 3.0, 2.4) if dark else (0.25, 0.25, 0.22)
        np.copyto(material, make(CAR, _TRIM), where=(beside < half - 0.5) & (np.abs(up - 0.62) < 0.1))
        np.copyto(material, make(CAR, _LAMP_OFF, glow), where=lamps)
    else:
        glow = (1.3, 0.06, 0.04) if dark else (0.10, 0.0, 0.0)
        np.copyto(material, make(CAR, srgb(176, 24, 24), glow), where=lamps)
        texture -= 0.2 * ((np.abs(up - 0.56) < 0.012) & (beside < half - 0.1))
    under = (up > 0.16) & (up <= 0.30) & (beside < half - 0.12)
    np.copyto(material, make(CAR, _TYRE), where=under)
    np.copyto(texture, 0.4, where=under)
    plate = (beside < 0.26) & (np.abs(up - (0.40 if vehicle.oncoming else 0.66)) < 0.06)
    np.copyto(material, make(CAR, srgb(226, 226, 220)), where=plate)
    canvas.paint(patch, body | tyres | under, material, texture, lit)


def _box_end(canvas: Canvas, vehicle: Vehicle, shape: _Shape, paint: int, lit: float, dark: bool) -> None:
    half = shape.width / 2
    cab = vehicle.body == "truck" and vehicle.oncoming
    top = 2.7 if cab else shape.top
    if cab:  # the box behind it
        box = canvas.wall(vehicle.z + 0.24 * shape.length, vehicle.x - half, vehicle.x + half, 0.85, shape.top)
        if box is not None:
            canvas.paint(box, None, canvas.make(TRUCK, srgb(226, 226, 222)), 0.9, lit)
    patch = canvas.wall(vehicle.z, vehicle.x - half, vehicle.x + half, 0.0, top)
    if patch is None:
        return
    make, of_class, up = canvas.make, shape.of_class, patch.up
    beside = np.abs(patch.across - vehicle.x)[None]
    corner = np.maximum(beside - (half - 0.1), 0) + np.maximum(up - (top - 0.1), 0)
    body = (up > 0.38) & (corner < 0.1)
    tyres = (up < 0.6) & (np.abs(beside - (half - 0.25)) < 0.17)
    material = np.full(up.shape, paint, np.uint16)
    texture = 0.75 + 0.3 * up / top
    if vehicle.body == "truck" and not vehicle.oncoming:
        np.copyto(material, make(of_class, srgb(222, 222, 218)), where=up > 0.9)
        texture -= 0.3 * ((beside < 0.02) & (up > 0.95)) + 0.15 * (np.abs(beside - half + 0.08) < 0.03)
    else:
        low = 1.35 if of_class == BUS else 1.45
        pane = (up > low) & (up < top - 0.42) & (beside < half - 0.14)
        np.copyto(material, make(of_class, _GLASS), where=pane)
        np.copyto(texture, 0.5 + 0.5 * (up - low), where=pane)
        sign = (up > top - 0.36) & (up < top - 0.12) & (beside < half - 0.4)
        if of_class == BUS:
            np.copyto(material, make(of_class, srgb(30, 26, 20), (0.5, 0.3, 0.02)), where=sign)
    np.copyto(material, make(of_class, _TRIM), where=up < 0.72)
    lamps = (np.abs(up - 0.86) < 0.1) & (beside > half - 0.4) & (beside < half - 0.08)
    if vehicle.oncoming:
        np.copyto(material, make(of_class, _LAMP_OFF, (3.2, 3.0, 2.4) if dark else (0.2, 0.2, 0.2)), where=lamps)
    else:
        np.copyto(
            material, make(of_class, srgb(170, 20, 20), (1.3, 0.06, 0.04) if dark else (0.1, 0, 0)), where=lamps
        )
    np.copyto(material, make(of_class, _TYRE), where=tyres & (up < 0.38))
    canvas.paint(patch, body | tyres, material, texture, lit)


def lamps_of(vehicle: Vehicle) -> tuple[tuple[float, float, float], ...]:
    """Where it shines: points x, y, z."""
    shape = _SHAPES[vehicle.body]
    y = 0.74 * shape.belt if shape.of_class == CAR else 0.86
    return tuple((vehicle.x + side * (shape.width / 2 - 0.24), y, vehicle.z - 0.05) for side in (-1, 1))
