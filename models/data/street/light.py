"""How much direct light falls where: the sun past the buildings, at night the lamps. C columns, R rows."""

from __future__ import annotations

import numpy as np

from models.data.street.canvas import Camera
from models.data.street.dice import modulo
from models.data.street.world import SIGHT, Building, Street

_CELL = 0.5  # metres
_BEYOND = 9.0  # metres: middling height of the buildings beyond those that are drawn


class Light:
    """Of one picture."""

    def __init__(self, street: Street, camera: Camera, buildings: list[Building]) -> None:
        self.street, self.dark, self._camera = street, street.weather.dark, camera
        self._begin = camera.z - 60
        self._heights = {side: np.zeros(int((SIGHT + 260) / _CELL), np.float32) for side in (-1, 1)}
        for building in buildings:
            first, last = ((edge - self._begin) / _CELL for edge in (building.near, building.far))
            self._heights[building.side][max(0, int(first)) : max(0, int(last))] = building.height

    def ground(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:  # [R, C] -> [R, C]
        if self.dark:
            return self._lamps_below(x, z) + self._headlights(x, z)
        return self.street.sun[1] * self._in_sun(x, 0.0, z)

    def side_wall(
        self, side: int, front: float, z: np.ndarray, up: np.ndarray
    ) -> np.ndarray:  # [C], [R, C] -> [R, C]
        """Of walls that face the street."""
        if self.dark:
            gap = self.street.lamp_gap
            along = modulo(z - (0.5 * gap if side > 0 else 0) + gap / 2, gap) - gap / 2  # [C]
            glow = np.exp(-np.square(along) / 22)
            return np.float32(0.75) * glow * np.exp(-np.square(up - 3.2) / 16)
        facing = -side * self.street.sun[0]
        if facing <= 0:
            return np.zeros((1, 1), np.float32)
        return facing * self._in_sun(np.full((1, 1), side * front, np.float32), up, z[None])

    def ahead(self, up: np.ndarray) -> np.ndarray:  # [R, C] -> broadcastable
        """Of what faces us."""
        if self.dark:
            return 0.18 * np.exp(-np.square(up - 2.0) / 12)
        return np.full((1, 1), max(0.0, -self.street.sun[2]), np.float32)

    def thing(self, x: float, z: float) -> float:
        """Of something upright that stands on the ground."""
        if self.dark:
            return (
                0.9 * float(self._lamps_below(np.array([[x]], np.float32), np.array([[z]], np.float32))[0, 0]) + 0.05
            )
        east, high, ahead = self.street.sun
        side, run = (1 if east > 0 else -1), max(abs(east), 0.04)
        across = abs(side * self.street.front - x)
        place = int((z + across * (ahead / run) - self._begin) / _CELL)
        heights = self._heights[side]
        blocking = heights[max(0, place)] if place < len(heights) else _BEYOND
        return (0.35 + 0.5 * max(0.0, -ahead)) * float(1.2 + across * (high / run) > blocking)

    def _in_sun(self, x: np.ndarray, up: float | np.ndarray, z: np.ndarray) -> np.ndarray:
        """1 where the way to the sun passes over the buildings, else 0."""
        east, high, ahead = self.street.sun
        side = 1 if east > 0 else -1
        across = np.abs(side * self.street.front - x)  # metres to the row of buildings on the sun's side
        run = max(abs(east), 0.04)
        place = ((z + across * (ahead / run) - self._begin) / _CELL).astype(np.int32)
        heights = self._heights[side]
        blocking = np.where(
            place < len(heights), heights[np.minimum(np.maximum(place, 0), len(heights) - 1)], _BEYOND
        )
        return (up + across * (high / run) > blocking).astype(np.float32)

    def _lamps_below(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        total: np.ndarray | float = 0.0
        gap = self.street.lamp_gap
        for side in (-1, 1):
            along = modulo(z - (0.5 * gap if side > 0 else 0) + gap / 2, gap) - gap / 2
            total = total + 1 / (1 + (np.square(x - side * (self.street.road - 0.9)) + np.square(along)) / 14) ** 2
        return np.asarray(total, np.float32)

    def _headlights(self, x: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Our own."""
        ahead = np.maximum(z - self._camera.z, 1.0)
        spread = np.square((x - self._camera.x) / (1.2 + 0.22 * ahead))
        return 0.8 * np.exp(-spread - ahead / 22) * np.minimum(1, ahead / 5)
