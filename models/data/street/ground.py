"""The ground: road with its markings, curbs, grass, sidewalks, crossing streets, and shadows on it."""

from __future__ import annotations

import numpy as np

from models.data.street.canvas import Canvas, Patch
from models.data.street.classes import MARKING, ROAD, SIDEWALK, TERRAIN
from models.data.street.dice import modulo, noise, sample
from models.data.street.light import Light
from models.data.street.weather import srgb
from models.data.street.world import LANE, Street

_CURB = 0.22


def draw_ground(canvas: Canvas, street: Street, light: Light) -> None:
    patch = canvas.floor(0.0, -1e4, 1e4, canvas.camera.z - 10, 1e4)
    if patch is None:
        return
    x, z, distance = patch.across, patch.up, patch.distance  # [R, C], [R, C], [R, 1]
    side = np.abs(x)
    block = modulo(z, street.block)
    crossing = block < street.crossing
    wet = street.weather.wet

    asphalt = srgb(92, 93, 98) if not wet else srgb(62, 64, 70)
    road = canvas.make(ROAD, asphalt)
    curb = canvas.make(SIDEWALK, srgb(176, 174, 168))
    slabs = canvas.make(SIDEWALK, srgb(158, 152, 142) if not wet else srgb(116, 114, 110))
    grass = canvas.make(TERRAIN, srgb(96, 128, 58))
    white, yellow = canvas.make(MARKING, srgb(232, 232, 226)), canvas.make(MARKING, srgb(226, 176, 52))

    material = np.full(x.shape, slabs, np.uint16)
    on_road = (side < street.road) | crossing
    if street.verge:
        inner = side < street.road + street.verge
        np.copyto(material, grass, where=inner)
    np.copyto(material, grass if street.kind != "downtown" else slabs, where=side > street.walk)
    np.copyto(material, curb, where=side < street.road + _CURB)
    np.copyto(material, road, where=on_road)
    np.copyto(material, _markings(street, x, z, side, block, road, white, yellow), where=on_road)

    # finer than a pixel, texture fades
    texture = 1 + np.float32(0.05) * sample(noise(4, 3), x, z, 1.1)
    gutter = (side > street.road - 0.3) & (side < street.road) & ~crossing
    texture -= np.float32(0.22) * gutter
    close = slice(int((distance[:, 0] > canvas.focal / 25).sum()), None)
    x, z, side, material_, distance = x[close], z[close], side[close], material[close], distance[close]
    fade = np.minimum(1.6 - distance * (40 / canvas.focal), 1)
    rough = np.where(material_ == grass, np.float32(0.24), np.float32(0.08)) * fade
    texture[close] += rough * (0.5 * sample(noise(5, 1), x, z, 9.0) + sample(noise(6, 2), x, z, 34.0))
    worn = np.abs(np.abs(modulo(side, LANE) - LANE / 2) - 0.8)  # darker where tyres run
    texture[close] -= np.where(material_ == road, np.float32(0.16) * np.maximum(0.45 - worn, 0), 0)
    joints = (material_ == slabs) & ((modulo(z, 1.5) < 0.05) | (modulo(x, 1.5) < 0.05))
    texture[close] -= np.float32(0.25) * joints * fade
    canvas.paint(patch, None, material, texture, light.ground(patch.across, patch.up))


def _markings(
    street: Street,
    x: np.ndarray,
    z: np.ndarray,
    side: np.ndarray,
    block: np.ndarray,
    road: int,
    white: int,
    yellow: int,
) -> np.ndarray:  # [R, C] materials
    """Lines end before the crossing, where there are stripes for people to walk on and lines to stop at."""
    before, after = street.block - block, block - street.crossing
    between = (before > 5.6) & (after > 4.6)
    drive = street.lanes * LANE
    dashes = modulo(z, 9.0) < 3.4
    painted = np.full(x.shape, road, np.uint16)
    lines = np.zeros(x.shape, bool)
    for lane in range(1, street.lanes):
        lines |= np.abs(side - lane * LANE) < 0.08
    lines &= dashes
    if street.parking:
        lines |= np.abs(side - drive - 0.15) < 0.07
    else:
        lines |= np.abs(side - drive + 0.08) < 0.07
    np.copyto(painted, white, where=lines & between)
    if street.yellow:
        middle = (side > 0.08) & (side < 0.22)
    elif street.lanes > 1:
        middle = side < 0.09
    else:
        middle = (side < 0.08) & dashes
    np.copyto(painted, yellow if street.yellow else white, where=middle & between)
    stripes = (((before > 1.2) & (before < 4.0)) | ((after > 0.9) & (after < 3.6))) & (modulo(x + 0.25, 1.0) < 0.5)
    stop = ((before > 4.7) & (before < 5.2) & (x > 0)) | ((after > 4.0) & (after < 4.5) & (x < 0))
    np.copyto(painted, white, where=(stripes | (stop & (side < drive))) & (side < street.road - 0.25))
    return painted


def draw_shadow(canvas: Canvas, x: float, z: float, across: float, along: float, strength: float) -> None:
    """A soft ellipse, darkest in its middle."""
    patch: Patch | None = canvas.floor(0.0, x - across, x + across, z - along, z + along)
    if patch is None:
        return
    far = np.square((patch.across - x) / across) + np.square((patch.up - z) / along)
    canvas.darken(patch, 1 - strength * np.clip(1.25 * (1 - far), 0, 1))
