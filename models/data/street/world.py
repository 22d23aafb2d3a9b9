"""What stands along a street and what moves on it: plain numbers, from a seed and a time.

Everything is found by its place along z: a stretch of street is the same whenever it comes into view, and there is no
end to it. Metres and seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from models.data.street.canvas import Camera, Colour
from models.data.street.dice import Dice
from models.data.street.weather import Weather, draw_weather, srgb, to_sun

LANE = 3.4
SIGHT = 190.0  # how far buildings are drawn
TreeKind = Literal["round", "tall", "fir"]
Kind = Literal["downtown", "avenue", "suburb"]
Body = Literal["sedan", "hatchback", "van", "bus", "truck"]

# what a seed is drawn for
_STYLE, _LOTS, _TRAFFIC, _PARKED, _WALKERS, _PLANTS, _FURNITURE, _CROSSING = range(8)

_BRICK = (srgb(146, 84, 66), srgb(168, 104, 78), srgb(122, 74, 62), srgb(180, 128, 98))
_PLASTER = (srgb(222, 206, 176), srgb(206, 190, 170), srgb(232, 224, 208), srgb(196, 176, 150), srgb(214, 182, 150))
_PAINTED = (srgb(150, 170, 176), srgb(226, 200, 140), srgb(186, 146, 134), srgb(160, 176, 146), srgb(202, 150, 110))
_CONCRETE = (srgb(150, 152, 154), srgb(128, 134, 142), srgb(176, 174, 168), srgb(104, 116, 130))
_ROOFS = (srgb(142, 70, 52), srgb(112, 64, 54), srgb(84, 84, 92), srgb(120, 96, 80))
_PAINTS = (
    (srgb(228, 230, 232), 4),
    (srgb(40, 42, 46), 4),
    (srgb(150, 154, 160), 4),
    (srgb(88, 94, 104), 2),
    (srgb(172, 34, 34), 2),
    (srgb(34, 66, 138), 2),
    (srgb(30, 92, 74), 1),
    (srgb(214, 166, 48), 1),
    (srgb(190, 92, 38), 1),
    (srgb(118, 160, 196), 1),
)
PAINTS = tuple(colour for colour, share in _PAINTS for _ in range(share))
CLOTHES = (
    srgb(36, 40, 56),
    srgb(66, 70, 80),
    srgb(150, 40, 46),
    srgb(44, 86, 140),
    srgb(206, 200, 190),
    srgb(70, 100, 66),
    srgb(196, 148, 60),
    srgb(120, 80, 120),
    srgb(30, 30, 32),
    srgb(214, 110, 60),
)
SKINS = (srgb(236, 196, 166), srgb(208, 158, 122), srgb(150, 104, 76), srgb(98, 66, 50))
HAIRS = (srgb(30, 24, 22), srgb(70, 48, 34), srgb(140, 104, 62), srgb(120, 120, 122))


class Building(NamedTuple):
    """A house or block between two places along one side."""

    side: int  # -1 left, 1 right
    near: float
    far: float
    height: float
    front: float  # x of its wall, without sign
    colour: Colour
    trim: Colour
    bay: float  # metres from window to window
    storey: float
    window: tuple[float, float]  # share of a bay, of a storey
    ground: Literal["shops", "plain"]
    roof: Colour | None  # of a pitched one
    number: int  # of what else is drawn by chance


class Vehicle(NamedTuple):
    """Its rear (or front, if it comes towards us) is at ``z``."""

    x: float
    z: float
    body: Body
    colour: Colour
    oncoming: bool


class Walker(NamedTuple):
    """A person on foot."""

    x: float
    z: float
    height: float
    phase: float  # of the step, radians
    sideways: bool
    number: int


class Plant(NamedTuple):
    """A tree."""

    x: float
    z: float
    height: float
    kind: TreeKind
    number: int


class Post(NamedTuple):
    """A lamp, a sign or traffic lights."""

    x: float
    z: float
    kind: Literal["lamp", "sign", "lights", "gantry"]
    number: int


@dataclass(frozen=True, kw_only=True)
class Street:
    """All that does not change along a street."""

    seed: int
    weather: Weather
    sun: tuple[float, float, float]  # unit vector towards it
    kind: Kind
    lanes: int  # per direction
    parking: float  # width of the strip for parked cars
    road: float  # half of its width
    verge: float  # grass between road and sidewalk
    walk: float  # |x| where the sidewalk ends
    front: float  # |x| where buildings begin
    block: float  # from one crossing to the next
    crossing: float  # width of the street that crosses
    walls: tuple[Colour, ...]
    tall: float  # buildings
    yellow: bool  # the line in the middle
    lamp_gap: float
    tree_gap: float
    tree_kind: TreeKind
    traffic: float  # share of the places in the lanes that are taken
    crowd: float
    speed: float  # of the camera
    start: float
    lane: float  # x of the camera
    eye: float
    focal: float
    horizon: float
    sway: float
    phase: float

    def camera(self, time: float) -> Camera:
        """It drives along its lane, a little unsteadily."""
        swing = math.sin(0.5 * time + self.phase)
        return Camera(
            x=self.lane + 0.25 * math.sin(0.31 * time + self.phase),
            y=self.eye + 0.015 * math.sin(7.0 * time),
            z=self.start + self.speed * time,
            yaw=self.sway * swing,
            focal=self.focal,
            horizon=self.horizon + 0.002 * math.sin(5.3 * time + 1),
        )

    # what is along the street

    def buildings(self, near: float, far: float) -> Iterator[Building]:
        for number in range(math.floor(near / self.block), math.floor(far / self.block) + 1):
            for side in (-1, 1):
                for building in _lots(self.seed, number, side):
                    if building.far > near and building.near < far:
                        yield building

    def crossings(self, near: float, far: float) -> Iterator[float]:
        """Where crossing streets begin."""
        for number in range(math.floor(near / self.block) - 1, math.floor(far / self.block) + 1):
            if near < number * self.block + self.crossing and number * self.block < far:
                yield number * self.block

    def in_crossing(self, z: float, margin: float = 0.0) -> bool:
        place = z % self.block
        return place < self.crossing + margin or place > self.block - margin

    def plants(self, near: float, far: float) -> Iterator[Plant]:
        for side in (-1, 1):
            for number in range(math.floor(near / self.tree_gap), math.floor(far / self.tree_gap) + 1):
                dice = Dice(self.seed, _PLANTS, number, side)
                z = (number + dice.between(0.2, 0.8)) * self.tree_gap
                if self.in_crossing(z, 7) or not dice.happens(0.85 if self.kind != "downtown" else 0.6):
                    continue
                height = dice.between(5, 9) * (1.25 if self.tree_kind == "tall" else 1)
                x = self.road + (0.8 if self.kind != "suburb" else 0.75)
                yield Plant(side * x, z, height, self.tree_kind, dice.whole(0, 11))
                if self.kind == "suburb" and dice.happens(0.7):  # in the garden
                    kind: TreeKind = dice.one_of(("round", "round", "fir"))
                    back = self.walk + dice.between(1.5, 5)
                    yield Plant(side * back, z + dice.between(2, 6), dice.between(3, 10), kind, dice.whole(0, 11))

    def posts(self, near: float, far: float) -> Iterator[Post]:
        for number in range(math.floor(near / self.lamp_gap), math.floor(far / self.lamp_gap) + 1):
            for side in (-1, 1):
                z = (number + (0.5 if side > 0 else 0.0)) * self.lamp_gap
                if not self.in_crossing(z, 2):
                    yield Post(side * (self.road + 0.45), z, "lamp", number)
        for number in range(math.floor(near / 37), math.floor(far / 37) + 1):
            dice = Dice(self.seed, _FURNITURE, number)
            z = (number + dice.unit()) * 37
            if dice.happens(0.7) and not self.in_crossing(z, 5):
                yield Post(self.road + 0.5, z, "sign", dice.whole(0, 99))
        for begin in self.crossings(near, far):
            yield Post(self.road + 0.7, begin - 2.2, "lights", 0)
            yield Post(-self.road - 0.7, begin - 2.0, "lights", 1)
            if self.kind != "suburb":
                yield Post(self.road + 0.7, begin + self.crossing + 1.5, "gantry", 2)

    # what moves

    def vehicles(self, time: float, camera: Camera) -> Iterator[Vehicle]:
        for lane in range(self.lanes):
            x = LANE * (lane + 0.5)
            ours = abs(x - self.lane) < 0.1
            speed = self.speed if ours else self.speed * (1.25 if x < self.lane else 0.8)
            for z, dice in self._slots(lane, 26.0, speed * time + self.start, camera.z - 12, camera.z + 130):
                ahead = z - camera.z
                if dice.happens(self.traffic) and not (ours and -12 < ahead < 9):
                    yield _vehicle(dice, x, z, oncoming=False)
            meeting = -(self.speed * 0.9 + 2.0 * lane) * time
            for z, dice in self._slots(8 + lane, 30.0, meeting, camera.z - 12, camera.z + 130):
                if dice.happens(self.traffic):
                    yield _vehicle(dice, -x, z, oncoming=True)
        if self.parking:
            for side in (-1, 1):
                for z, dice in self._slots(16 + side, 7.2, 0.0, camera.z - 8, camera.z + 110):
                    if dice.happens(0.62) and not self.in_crossing(z, 9) and not self.in_crossing(z + 5, 9):
                        x = side * (self.road - self.parking / 2)
                        yield _vehicle(dice, x, z, oncoming=side < 0, parked=True)

    def walkers(self, time: float, camera: Camera) -> Iterator[Walker]:
        for side in (-1, 1):
            for way in (-1, 1):
                pace = 1.1 + 0.25 * way * side
                for z, dice in self._slots(32 + side + 3 * way, 6.5, way * pace * time, camera.z, camera.z + 75):
                    if dice.happens(self.crowd * 0.5):
                        low, high = self.road + self.verge + 0.9, self.walk - 0.4
                        x = side * dice.between(low, max(low, high))
                        yield Walker(
                            x, z, dice.between(1.55, 1.9), 5.5 * time + 6 * dice.unit(), False, dice.whole(0, 999)
                        )
        for begin in self.crossings(camera.z, camera.z + 90):
            dice = Dice(self.seed, _CROSSING, round(begin * 16))
            arrival = (begin - self.start) / self.speed
            for _ in range(3):
                share = (time - arrival + dice.between(12, 15)) / dice.between(9, 10.5)
                way = 1 if dice.happens(0.5) else -1
                depth, height, number = dice.between(-3.6, -1.4), dice.between(1.55, 1.9), dice.whole(0, 999)
                if dice.happens(self.crowd) and 0 <= share <= 1:
                    x = way * (2 * share - 1) * (self.road + 1)
                    yield Walker(x, begin + depth, height, 5.5 * time + 6 * dice.unit(), True, number)

    def _slots(self, lane: int, gap: float, moved: float, near: float, far: float) -> Iterator[tuple[float, Dice]]:
        """Places ``gap`` apart in a lane that has moved on by ``moved``."""
        for number in range(math.floor((near - moved) / gap), math.floor((far - moved) / gap) + 1):
            dice = Dice(self.seed, _TRAFFIC, lane, number)
            yield (number + dice.between(0.0, 0.5)) * gap + moved, dice


def _vehicle(dice: Dice, x: float, z: float, oncoming: bool, parked: bool = False) -> Vehicle:
    bodies: tuple[Body, ...] = ("sedan", "hatchback", "hatchback", "van", "sedan")
    body = dice.one_of(bodies if parked else (*bodies, *bodies, "bus", "truck"))
    return Vehicle(x + dice.between(-0.12, 0.12), z, body, dice.one_of(PAINTS), oncoming)


@lru_cache(256)
def draw_street(seed: int) -> Street:
    dice = Dice(seed, _STYLE)
    kind: Kind = dice.one_of(("downtown", "avenue", "suburb"))
    lanes = {"downtown": dice.whole(1, 2), "avenue": 2, "suburb": 1}[kind]
    parking = 0.0 if kind == "avenue" else 2.3
    road = lanes * LANE + parking + 0.3
    verge = {"downtown": 0.0, "avenue": 1.8, "suburb": 1.6}[kind]
    walk = road + verge + {"downtown": 3.6, "avenue": 3.2, "suburb": 1.8}[kind]
    weather = draw_weather(dice)
    trees = {"downtown": dice.between(14, 30), "avenue": dice.between(8, 13), "suburb": dice.between(10, 18)}
    return Street(
        seed=seed,
        weather=weather,
        sun=to_sun(weather, dice),
        kind=kind,
        lanes=lanes,
        parking=parking,
        road=road,
        verge=verge,
        walk=walk,
        front=walk + {"downtown": 0.0, "avenue": 0.8, "suburb": 6.0}[kind],
        block=dice.between(75, 115),
        crossing=dice.between(10, 15),
        walls=dice.one_of((_BRICK + _PLASTER, _PLASTER + _PAINTED, _CONCRETE + _PLASTER, _BRICK + _CONCRETE)),
        tall=dice.between(0.6, 1.5),
        yellow=dice.happens(0.4),
        lamp_gap=dice.between(24, 34),
        tree_gap=trees[kind],
        tree_kind=dice.one_of(("round", "round", "tall", "fir")) if kind != "downtown" else "round",
        traffic=dice.between(0.25, 0.9),
        crowd=dice.between(0.15, 0.8),
        speed=dice.between(5.0, 13.0),
        start=dice.between(0, 2000),
        lane=LANE * (dice.whole(1, lanes) - 0.5),
        eye=dice.between(1.45, 2.3),
        focal=dice.between(0.72, 1.0),
        horizon=dice.between(0.44, 0.55),
        sway=dice.between(0.0, 0.03),
        phase=dice.between(0, 2 * math.pi),
    )


@lru_cache(1024)
def _lots(seed: int, block: int, side: int) -> tuple[Building, ...]:
    """The buildings of one side between two crossings."""
    street, dice = draw_street(seed), Dice(seed, _LOTS, block, side)
    place = block * street.block + street.crossing + 1.0
    end = (block + 1) * street.block - 1.0
    made = []
    while end - place > 7:
        suburb = street.kind == "suburb"
        width = dice.between(8, 13) if suburb else dice.between(9, 24)
        if end - place - width < 7:
            width = end - place
        storeys = dice.whole(1, 2) if suburb else max(2, round(dice.whole(2, 9) * street.tall))
        storey = dice.between(2.8, 3.4)
        walls = _PLASTER + _PAINTED + _BRICK if suburb else street.walls
        bay = dice.between(2.2, 3.6)
        window = dice.one_of(((0.42, 0.5), (0.55, 0.55), (0.36, 0.62), (0.86, 0.58), (0.7, 0.45)))
        made.append(
            Building(
                side=side,
                near=place,
                far=place + width,
                height=storeys * storey + (0.4 if suburb else 1.6),
                front=street.front + (dice.between(-1, 1.5) if suburb else 0.0),
                colour=dice.one_of(walls),
                trim=dice.one_of((srgb(236, 232, 222), srgb(70, 66, 62), srgb(200, 192, 176))),
                bay=width / max(1, round(width / bay)),
                storey=storey,
                window=window,
                ground="plain" if suburb or dice.happens(0.3) else "shops",
                roof=dice.one_of(_ROOFS) if suburb else None,
                number=dice.whole(0, 1 << 30),
            )
        )
        place += width + (dice.between(3, 7) if suburb else (dice.between(2, 5) if dice.happens(0.12) else 0.0))
    return tuple(made)
