"""From materials, light and distance to colours: sky, haze, wet streets, lamps that dazzle.

Planes of colour, [3, H, W]: amounts of red, green and blue light. ``fine`` samples a pixel both ways.
"""

from __future__ import annotations

import math

import numpy as np

from models.data.street.canvas import Canvas, Colour
from models.data.street.classes import BUILDING, MARKING, ROAD, SIDEWALK, VEGETATION
from models.data.street.dice import NOISE_SIZE, modulo, noise, sample, speckle
from models.data.street.weather import Weather, srgb
from models.data.street.world import Street

_BAND = 24  # rows of pixels at a time: what a processor keeps close
_BRIGHTEST = 4.0  # of one sample: a lamp outshines a pixel, not its neighbourhood


def draw_backdrop(canvas: Canvas, street: Street) -> None:
    """What closes the view where the street's own buildings end: hills, or a city far away."""
    if street.kind == "suburb":
        patch = canvas.wall(canvas.camera.z + 600, -5000, 5000, -5, 90)
        if patch is not None:
            line = noise(4, 9)[17][(patch.across / 9).astype(np.int32) & NOISE_SIZE - 1]
            top = 26 + 13 * _smooth(noise(3, 9)[40], patch.across / 4) + 1.5 * line
            canvas.paint(patch, patch.up < top[None], canvas.make(VEGETATION, srgb(70, 96, 66)), 1.0, 0.25)
        return
    for away, low, high, width in ((620, 16, 46, 24), (380, 10, 30, 17)):
        patch = canvas.wall(canvas.camera.z + away, -5000, 5000, -5, 90)
        if patch is None:
            continue
        lot = np.floor(patch.across / width).astype(np.int64)
        chance = (lot * 2654435761 >> 9 & 1023) / 1023
        top = low + (high - low) * chance * chance
        windows = (modulo(patch.across, 3) > 1.2)[None] & (modulo(patch.up, 3.5) > 1.7)
        colour = canvas.make(BUILDING, srgb(120, 122, 130))
        canvas.paint(patch, patch.up < top[None], colour, 0.8 + 0.3 * chance[None] - 0.18 * windows, 0.2)


def _smooth(line: np.ndarray, place: np.ndarray) -> np.ndarray:
    whole = np.floor(place)
    part = (place - whole).astype(np.float32)
    at = whole.astype(np.int32)
    return line[at & NOISE_SIZE - 1] * (1 - part) + line[(at + 1) & NOISE_SIZE - 1] * part


def colours(canvas: Canvas, street: Street, time: float, fine: int) -> np.ndarray:  # [3, H, W]
    weather = street.weather
    height, width = canvas.height // fine, canvas.width // fine
    picture, open_sky = np.empty((3, height, width), np.float32), np.empty((height, width), np.float32)
    paints, glows = canvas.palette()
    glowing = glows.any(axis=0)
    for first in range(0, height, _BAND):
        rows = slice(first, min(first + _BAND, height))
        samples = slice(rows.start * fine, rows.stop * fine)
        material, texture, light = canvas.material[samples], canvas.texture[samples], canvas.light[samples]
        clear = np.exp(canvas.depth[samples] * np.float32(-weather.fog_per_metre))
        sky = material == 0
        clear[sky] = 0
        glow = np.take(glowing, material)
        shines = bool(glow.any())
        for channel in range(3):
            amount = light * np.float32(weather.direct[channel])
            amount += np.float32(weather.ambient[channel])
            amount *= texture
            amount *= np.take(paints[channel], material)
            if shines:
                amount[glow] += glows[channel][material[glow]]
                np.minimum(amount, _BRIGHTEST, out=amount)
            amount -= np.float32(weather.fog[channel])
            amount *= clear
            amount += np.float32(weather.fog[channel])  # and of sky, for now
            picture[channel, rows] = _mean(amount, fine)
        open_sky[rows] = _mean(sky.astype(np.float32), fine)
    _add_sky(picture, open_sky, canvas, street, time, fine)
    return picture


def _mean(plane: np.ndarray, fine: int) -> np.ndarray:  # [H * fine, W * fine] -> [H, W]
    parts = [plane[i::fine, j::fine] for i in range(fine) for j in range(fine)]
    total = parts[0] + parts[1]
    for part in parts[2:]:
        total += part
    total *= np.float32(1 / fine**2)
    return total


def _add_sky(picture: np.ndarray, share: np.ndarray, canvas: Canvas, street: Street, time: float, fine: int) -> None:
    """Where ``share`` [H, W] of a pixel is sky, the colours hold that much fog."""
    rows = int(np.flatnonzero(share.any(axis=1))[-1:].sum()) + 1
    weather = street.weather
    middle = slice(fine // 2, None, fine)
    dx, dz, up = canvas.dx[middle], canvas.dz[middle], np.maximum(canvas.dy[middle][:rows, None], 0)
    length = np.sqrt(dx**2 + dz**2 + up * up)
    height = up / length
    blend = np.minimum(height * np.float32(1.9), 1) ** np.float32(0.6)
    east, high, ahead = street.sun
    toward = np.maximum((dx * east + up * high + dz * ahead) / length, 0)
    glow: np.ndarray | float = 0.0
    if weather.elevation > 0 and weather.clouds < 1:
        second = toward * toward
        fourth = second * second
        narrow = fourth**6
        disc = np.clip((toward - np.float32(0.9994)) * 4000, 0, 1)
        glow = (0.35 * narrow + 0.5 * narrow**8 + 6.0 * disc) * (1.0 if weather.ahead else 0.6)
    stars = _stars(dx, dz, height) * np.float32(1 - weather.clouds) if weather.dark else 0.0
    cover, bright = _clouds(dx, dz, up, weather, time, toward, street.seed)
    share = share[:rows]
    for channel in range(3):
        low, top = weather.skyline[channel], weather.zenith[channel]
        sky = np.float32(low) + blend * np.float32(top - low)
        sky += glow * weather.direct[channel] + stars
        sky += cover * (np.float32(weather.cloud[channel]) * bright - sky)
        picture[channel, :rows] += share * (sky - np.float32(weather.fog[channel]))


def _clouds(
    dx: np.ndarray,
    dz: np.ndarray,
    up: np.ndarray,
    weather: Weather,
    time: float,
    toward: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """How much of the sky they cover, and how bright they are."""
    if not weather.clouds:
        return np.zeros_like(up), np.ones_like(up)
    flat = 26 / (np.maximum(up, 0.03) + np.float32(0.09))
    u = dx * flat + np.float32(seed % 251)
    v = dz * flat + np.float32(0.9 * time)
    thick = _bilinear(noise(6, 10), u, v)
    if weather.clouds >= 1:
        return np.full_like(thick, 0.75), 1 + 0.10 * thick
    edge = 1.4 - 2.2 * weather.clouds
    cover = np.clip((thick - edge) * 0.9, 0, 1)
    cover *= np.minimum(up * 9, 1) * 0.92
    return cover, 1.0 - 0.14 * np.clip(thick - edge - 0.5, 0, 1.6) + 0.25 * toward**6


def _bilinear(texture: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    left, top = np.floor(u), np.floor(v)
    across, down = u - left, v - top
    mask = NOISE_SIZE - 1
    columns = [(left.astype(np.int32) + step) & mask for step in (0, 1)]
    rows = [((top.astype(np.int32) + step) & mask) * NOISE_SIZE for step in (0, 1)]
    flat = texture.reshape(-1)
    upper, lower = (
        np.take(flat, row + columns[0]) * (1 - across) + np.take(flat, row + columns[1]) * across for row in rows
    )
    return upper * (1 - down) + lower * down


def _stars(dx: np.ndarray, dz: np.ndarray, height: np.ndarray) -> np.ndarray:
    bearing = np.arctan2(dx, dz)[None]
    bright = sample(speckle(11), bearing, height, 330.0)
    return np.maximum(bright - np.float32(0.994), 0) * (np.float32(90) * np.minimum(height * 6, 1))


def mirror(picture: np.ndarray, canvas: Canvas, classes: np.ndarray, weather: Weather, fine: int) -> None:
    """A wet street shows what stands above it, upside down and blurred; it mirrors more in the distance."""
    height = picture.shape[1]
    horizon = max(1, min(height - 1, int(canvas.horizon_row) // fine))
    # row r mirrors 2 * horizon - 1 - r, and with it rows near by: the more of them, the nearer to us
    reach = 1 + height // 64 + np.arange(height - horizon) // 6
    middle = 2 * horizon - 1 - np.arange(horizon, height)
    low, high = np.clip(middle - reach, 0, horizon - 1), np.clip(middle + reach, 1, horizon)
    wetness = np.zeros(256, np.float32)
    wetness[[ROAD, MARKING, SIDEWALK]] = np.asarray([1.0, 1.0, 0.5]) * weather.wet
    share = np.take(wetness, classes[horizon:])
    share *= np.exp(np.float32(3.2) * canvas.dy[fine // 2 :: fine][horizon:, None])
    for plane in picture:
        total = np.concatenate([np.zeros_like(plane[:1]), np.cumsum(plane[:horizon], axis=0)])
        above = (total[high] - total[low]) / (high - low).astype(np.float32)[:, None]
        plane[horizon:] += share * (above - np.float32(0.5) * plane[horizon:])


def dazzle(
    picture: np.ndarray, canvas: Canvas, points: list[tuple[tuple[float, float, float], Colour, float]], fine: int
) -> None:
    """Halos around lamps: where they are, their light, and how many metres it reaches."""
    height, width = picture.shape[1:]
    for (x, y, z), colour, metres in points:
        spot = canvas.spot(x, y, z)
        if spot is None or z - canvas.camera.z > 120:
            continue
        at = min(canvas.height - 1, max(0, int(spot[0]))), min(canvas.width - 1, max(0, int(spot[1])))
        if canvas.depth[at] < z - canvas.camera.z - 1.5:
            continue  # something stands before it
        row, column, scale = (value / fine for value in spot)
        radius = min(metres * scale, 0.25 * max(height, width)) + 1.5
        rows = slice(max(0, math.floor(row - radius)), min(height, math.ceil(row + radius) + 1))
        columns = slice(max(0, math.floor(column - radius)), min(width, math.ceil(column + radius) + 1))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            continue
        down = (np.arange(rows.start, rows.stop, dtype=np.float32) + np.float32(0.5 - row)) / np.float32(radius)
        across = (np.arange(columns.start, columns.stop, dtype=np.float32) + np.float32(0.5 - column)) / np.float32(
            radius
        )
        glow = np.maximum(1 - np.sqrt(np.square(down)[:, None] + np.square(across)), 0) ** 3
        picture[:, rows, columns] += glow * np.asarray(colour, np.float32)[:, None, None]


def expose(picture: np.ndarray, weather: Weather) -> np.ndarray:  # [3, H, W] -> [H, W, 3] uint8
    """As film does: bright parts are compressed, corners a little darker."""
    height, width = picture.shape[1:]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    across = np.linspace(-1, 1, width, dtype=np.float32)
    picture *= (1 - np.float32(0.10) * (down * down + across * across)) * np.float32(-1.9 if weather.dark else -1.55)
    np.exp(picture, out=picture)
    picture *= np.float32(-1.12)
    picture += np.float32(1.12)
    np.clip(picture, 0, 1, out=picture)
    np.sqrt(picture, out=picture)
    picture *= np.float32(255)
    picture += np.float32(0.5)
    return np.ascontiguousarray(picture.astype(np.uint8).transpose(1, 2, 0))
