"""What a pixel of a street scene can show."""

from __future__ import annotations

CLASSES = (
    "road",
    "lane marking",
    "sidewalk",
    "terrain",
    "building",
    "window",
    "vegetation",
    "sky",
    "car",
    "bus",
    "truck",
    "pedestrian",
    "pole",
    "traffic light",
    "traffic sign",
)
(
    ROAD,
    MARKING,
    SIDEWALK,
    TERRAIN,
    BUILDING,
    WINDOW,
    VEGETATION,
    SKY,
    CAR,
    BUS,
    TRUCK,
    PEDESTRIAN,
    POLE,
    LIGHT,
    SIGN,
) = range(len(CLASSES))
