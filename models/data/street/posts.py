"""Lamps, signs and traffic lights. C columns, R rows."""

from __future__ import annotations

import numpy as np

from models.data.street.canvas import Canvas, Colour
from models.data.street.classes import LIGHT, POLE, SIGN
from models.data.street.light import Light
from models.data.street.weather import srgb
from models.data.street.world import Post

_STEEL = srgb(96, 100, 106)
LAMP_HEIGHT = 6.2
_REACH = 1.5  # of a lamp over the road


def draw_post(canvas: Canvas, post: Post, light: Light, time: float) -> None:
    side = 1 if post.x > 0 else -1
    lit = light.thing(post.x, post.z)
    if post.kind == "lamp":
        _pole(canvas, post.x, post.z, LAMP_HEIGHT, 0.08, lit)
        _bar(canvas, post.x, post.x - side * _REACH, post.z, LAMP_HEIGHT, 0.05, lit)
        head = canvas.wall(
            post.z, *_ordered(post.x - side * _REACH, post.x - side * 0.8), LAMP_HEIGHT - 0.16, LAMP_HEIGHT
        )
        if head is not None:
            glow: Colour = (4.0, 2.9, 1.5) if light.dark else (0.0, 0.0, 0.0)
            lamp = head.up < LAMP_HEIGHT - 0.07
            material = np.where(lamp, canvas.make(POLE, srgb(220, 220, 210), glow), canvas.make(POLE, _STEEL))
            canvas.paint(head, None, material, 1.0, lit)
    elif post.kind == "sign":
        _pole(canvas, post.x, post.z, 2.9, 0.045, lit)
        _sign(canvas, post, lit)
    elif post.kind == "lights":
        _pole(canvas, post.x, post.z, 3.6, 0.08, lit)
        _lights(canvas, post.x - side * 0.22, post.z - 0.1, 3.55, time, lit)
    else:
        _pole(canvas, post.x, post.z, 5.9, 0.11, lit)
        _bar(canvas, post.x, 0.4, post.z, 5.85, 0.07, lit)
        for x in np.arange(1.7, post.x - 1, 3.4):
            _lights(canvas, float(x), post.z - 0.1, 5.75, time, lit)


def lamp_of(post: Post) -> tuple[float, float, float]:
    """Where it shines."""
    return post.x - (1 if post.x > 0 else -1) * 1.15, LAMP_HEIGHT - 0.1, post.z


def _pole(canvas: Canvas, x: float, z: float, height: float, radius: float, lit: float) -> None:
    patch = canvas.wall(z, x - radius, x + radius, 0.0, height)
    if patch is not None:
        round_ = 0.95 - 0.5 * (patch.across - x)[None] / radius
        canvas.paint(patch, None, canvas.make(POLE, _STEEL), round_, lit)


def _bar(canvas: Canvas, x0: float, x1: float, z: float, y: float, radius: float, lit: float) -> None:
    patch = canvas.wall(z, *_ordered(x0, x1), y - radius, y + radius)
    if patch is not None:
        canvas.paint(patch, None, canvas.make(POLE, _STEEL), 0.9, lit)


def _sign(canvas: Canvas, post: Post, lit: float) -> None:
    middle, size = 2.5, 0.42
    patch = canvas.wall(post.z - 0.05, post.x - size, post.x + size, middle - size, middle + size)
    if patch is None:
        return
    x, y = (patch.across - post.x)[None], patch.up - middle
    far = np.hypot(x, y)
    red, white = canvas.make(SIGN, srgb(196, 30, 36)), canvas.make(SIGN, srgb(240, 240, 236))
    blue, dark = canvas.make(SIGN, srgb(28, 84, 170)), canvas.make(SIGN, srgb(30, 30, 34))
    yellow = canvas.make(SIGN, srgb(232, 186, 40))
    style = post.number % 5
    if style == 0:  # speed limit
        mask, material = far < 0.38, np.where(far < 0.29, white, red)
        digits = (np.abs(y) < 0.13) & (np.abs(np.abs(x) - 0.11) < 0.07)
        hollow = (np.abs(y) < 0.08) & (np.abs(np.abs(x) - 0.11) < 0.03)
        material = np.where(digits & ~hollow, dark, material)
    elif style == 1:  # give way
        inner = np.abs(x) < (y + 0.24) * 0.5
        mask = (np.abs(x) < (y + 0.40) * 0.55) & (y < 0.30)
        material = np.where(inner & (y < 0.22), white, red)
    elif style == 2:  # this way
        mask, material = far < 0.38, np.where(far < 0.35, blue, white)
        arrow = ((np.abs(x) < 0.05) & (np.abs(y) < 0.22)) | ((np.abs(x) < 0.26 - y) & (y > 0.08) & (y < 0.26))
        material = np.where(arrow, white, material)
    elif style == 3:  # parking
        mask = (np.abs(x) < 0.34) & (np.abs(y) < 0.38)
        stem = (np.abs(x + 0.09) < 0.05) & (np.abs(y) < 0.24)
        bowl = np.abs(np.hypot(x + 0.02, y - 0.10) - 0.12) < 0.045
        material = np.where(stem | (bowl & (x > -0.06)), white, blue)
    else:  # priority
        mask, material = np.abs(x) + np.abs(y) < 0.40, np.where(np.abs(x) + np.abs(y) < 0.30, yellow, white)
    canvas.paint(patch, mask, material, 1.0, lit + 0.1)


def _lights(canvas: Canvas, x: float, z: float, top: float, time: float, lit: float) -> None:
    patch = canvas.wall(z, x - 0.19, x + 0.19, top - 1.0, top)
    if patch is None:
        return
    across, up = (patch.across - x)[None], patch.up
    phase = (time / 14) % 1
    shown = 2 if phase < 0.8 else 1
    material = np.full(up.shape, canvas.make(LIGHT, srgb(30, 32, 34)), np.uint16)
    colours = (srgb(230, 40, 30), srgb(240, 180, 40), srgb(50, 220, 110))
    for number, colour in enumerate(colours):
        disc = np.hypot(across, up - (top - 0.2 - 0.3 * number)) < 0.12
        on = number == shown
        shade = colour if on else tuple(0.15 * value for value in colour)
        glow = tuple(1.6 * value for value in colour) if on else (0.0, 0.0, 0.0)
        np.copyto(material, canvas.make(LIGHT, shade, glow), where=disc)  # type: ignore[arg-type]
    canvas.paint(patch, None, material, 1.0, lit)


def _ordered(a: float, b: float) -> tuple[float, float]:
    return min(a, b), max(a, b)
