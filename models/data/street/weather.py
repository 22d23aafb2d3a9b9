"""Hours and weathers: how the sky looks, how much light comes from where, how far one sees.

Colours are amounts of light; ``srgb`` makes them from the numbers of a colour picker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.data.street.canvas import Colour
from models.data.street.dice import Dice


def srgb(red: int, green: int, blue: int) -> Colour:
    return (red / 255) ** 2, (green / 255) ** 2, (blue / 255) ** 2


@dataclass(frozen=True, kw_only=True)
class Weather:
    """Light and air of one scene."""

    name: str
    zenith: Colour
    skyline: Colour  # sky at the horizon
    ambient: Colour  # falls on everything
    direct: Colour  # of the sun on what faces it; at night of the lamps
    fog: Colour
    fog_per_metre: float
    clouds: float  # share of the sky
    cloud: Colour
    elevation: float  # of the sun, degrees; below 0: night
    ahead: bool = False  # the sun stands over the end of the street
    wet: float = 0.0  # how much the street mirrors
    dark: bool = False  # lamps are on


_WEATHERS = (
    (
        4,
        Weather(
            name="noon",
            zenith=srgb(72, 128, 206),
            skyline=srgb(186, 212, 236),
            ambient=(0.34, 0.38, 0.46),
            direct=(1.05, 0.98, 0.84),
            fog=srgb(190, 210, 230),
            fog_per_metre=1 / 700,
            clouds=0.45,
            cloud=srgb(255, 255, 255),
            elevation=48,
        ),
    ),
    (
        3,
        Weather(
            name="afternoon",
            zenith=srgb(82, 130, 196),
            skyline=srgb(226, 214, 196),
            ambient=(0.33, 0.34, 0.40),
            direct=(1.25, 0.98, 0.66),
            fog=srgb(222, 208, 188),
            fog_per_metre=1 / 550,
            clouds=0.35,
            cloud=srgb(255, 244, 228),
            elevation=33,
        ),
    ),
    (
        3,
        Weather(
            name="overcast",
            zenith=srgb(150, 160, 172),
            skyline=srgb(206, 210, 214),
            ambient=(0.62, 0.64, 0.68),
            direct=(0.10, 0.10, 0.10),
            fog=srgb(200, 205, 210),
            fog_per_metre=1 / 350,
            clouds=1.0,
            cloud=srgb(190, 196, 204),
            elevation=50,
            wet=0.22,
        ),
    ),
    (
        2,
        Weather(
            name="fog",
            zenith=srgb(196, 200, 204),
            skyline=srgb(204, 207, 209),
            ambient=(0.58, 0.60, 0.62),
            direct=(0.05, 0.05, 0.05),
            fog=srgb(203, 206, 208),
            fog_per_metre=1 / 42,
            clouds=0.0,
            cloud=srgb(200, 200, 200),
            elevation=40,
        ),
    ),
    (
        3,
        Weather(
            name="sunset",
            zenith=srgb(70, 78, 140),
            skyline=srgb(255, 176, 100),
            ambient=(0.30, 0.25, 0.30),
            direct=(1.5, 0.72, 0.30),
            fog=srgb(244, 168, 110),
            fog_per_metre=1 / 230,
            clouds=0.5,
            cloud=srgb(255, 150, 110),
            elevation=7,
            ahead=True,
        ),
    ),
    (
        2,
        Weather(
            name="dusk",
            zenith=srgb(30, 38, 84),
            skyline=srgb(190, 120, 110),
            ambient=(0.15, 0.15, 0.23),
            direct=(0.95, 0.62, 0.30),
            fog=srgb(120, 88, 104),
            fog_per_metre=1 / 350,
            clouds=0.4,
            cloud=srgb(150, 96, 110),
            elevation=-4,
            dark=True,
        ),
    ),
    (
        3,
        Weather(
            name="night",
            zenith=srgb(10, 14, 34),
            skyline=srgb(36, 38, 62),
            ambient=(0.045, 0.055, 0.095),
            direct=(1.0, 0.66, 0.32),
            fog=srgb(28, 30, 46),
            fog_per_metre=1 / 300,
            clouds=0.25,
            cloud=srgb(34, 38, 58),
            elevation=-30,
            dark=True,
        ),
    ),
    (
        2,
        Weather(
            name="rainy night",
            zenith=srgb(16, 18, 30),
            skyline=srgb(48, 46, 58),
            ambient=(0.05, 0.06, 0.09),
            direct=(1.0, 0.70, 0.40),
            fog=srgb(44, 44, 56),
            fog_per_metre=1 / 140,
            clouds=1.0,
            cloud=srgb(40, 40, 52),
            elevation=-30,
            wet=0.6,
            dark=True,
        ),
    ),
)
NAMES = tuple(weather.name for _, weather in _WEATHERS)


def draw_weather(dice: Dice) -> Weather:
    return dice.one_of([weather for share, weather in _WEATHERS for _ in range(share)])


def to_sun(weather: Weather, dice: Dice) -> tuple[float, float, float]:
    """Unit vector: low over the end of the street, or askew along it, so that light gets in, mostly from behind."""
    elevation = math.radians(weather.elevation)
    if weather.ahead:
        azimuth = math.radians(dice.between(-16, 16))
    else:
        azimuth = math.radians(dice.between(18, 55) if dice.happens(0.35) else dice.between(115, 160)) * (
            1 if dice.happens(0.5) else -1
        )
    level = math.cos(elevation)
    return level * math.sin(azimuth), math.sin(elevation), level * math.cos(azimuth)
