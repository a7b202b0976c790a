"""What is where in one driving scene: road, weather, light, traffic, the ego vehicle's motion and its route command.

A scene is a function of (seed, split, index) alone. Ego frame and units as in `schema`; traffic keeps to the right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .schema import CLASSES

REACH = 40.0
"""Objects lie within ±REACH metres of the ego vehicle in x and y."""
LANE_WIDTH = 3.5
WHEELBASE = 2.8
BUILDING = -1
"""Class of what is drawn and hit by LiDAR but never labelled."""
VEHICLE, PEDESTRIAN, CYCLIST = range(len(CLASSES))


T = TypeVar("T", float, np.ndarray)


@dataclass(frozen=True)
class Road:
    """A curved road and, if `crossing` is not None, one that crosses it at right angles there (ego x, metres)."""

    lanes: int
    offset: float
    """Lateral place of the middle of the road beside the ego vehicle, metres to the left."""
    slope: float
    curvature: float
    crossing: float | None

    @property
    def half_width(self) -> float:
        """Half the width of the carriageway, metres."""
        return self.lanes * LANE_WIDTH / 2

    def middle(self, x: T) -> T:
        """Lateral place y of the middle of the road at x, a number or an array."""
        return self.offset + self.slope * x + 0.5 * self.curvature * x * x

    def heading(self, x: float) -> float:
        """Yaw of the road at x, rad."""
        return float(np.arctan(self.slope + self.curvature * x))


@dataclass(frozen=True)
class Scene:
    """One scene: `boxes` (K, 7) as `schema.BOX_FIELDS`, `classes` (K,), `colours` (K, 3) 0..1, then all the rest."""

    boxes: np.ndarray
    classes: np.ndarray
    colours: np.ndarray
    road: Road
    weather: str
    """One of clear, cloudy, rain, fog."""
    night: bool
    sun: np.ndarray
    """Unit vector (3,) towards the main light."""
    ego: np.ndarray
    """(6,) as `schema.EGO_FIELDS`."""
    command: str


def make_scene(random: np.random.Generator) -> Scene:
    """Draws a scene from `random`."""
    lanes = int(random.choice([2, 2, 3, 4]))
    own_lane = int(random.integers(0, max(1, lanes // 2)))  # counted from the right kerb
    crossing = float(random.uniform(10, 34)) if random.random() < 0.4 else None
    curvature = 0.0 if crossing is not None else float(random.choice([0, 1]) * random.uniform(-0.009, 0.009))
    offset = lanes * LANE_WIDTH / 2 - (own_lane + 0.5) * LANE_WIDTH + random.normal(0, 0.15)
    road = Road(lanes, float(offset), float(random.normal(0, 0.01)), curvature, crossing)

    night = bool(random.random() < 0.25)
    weather = str(random.choice(["clear", "cloudy", "rain", "fog"], p=[0.45, 0.3, 0.15, 0.1]))
    azimuth, elevation = random.uniform(-np.pi, np.pi), random.uniform(0.35, 1.1)
    sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])

    boxes, classes = _place(road, random)
    colours = _colours(classes, random)
    ego = _motion(road, random)
    command = _command(road, boxes, classes, ego, random)
    return Scene(boxes, classes, colours, road, weather, night, sun, ego, command)


def _place(road: Road, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Traffic and buildings without overlaps, by trying again where there is one."""
    wanted = (
        [VEHICLE] * int(random.integers(5, 15))
        + [CYCLIST] * int(random.binomial(4, 0.35))
        + [PEDESTRIAN] * int(random.binomial(4, 0.25))
        + [BUILDING] * int(random.integers(3, 8))
    )
    # The ego vehicle itself, from its rear bumper to its front one, with room to drive.
    boxes = [np.array([1.4, 0.0, 0.8, 9.0, 2.4, 1.6, 0.0])]
    classes: list[int] = []
    for kind in wanted:
        for _ in range(8):
            box = _draw(kind, road, random)
            reach = REACH if kind != BUILDING else REACH + 15
            if np.abs(box[:2]).max() <= reach and not _overlaps(box, np.stack(boxes)):
                boxes.append(box)
                classes.append(kind)
                break
    return np.stack(boxes[1:]) if classes else np.empty((0, 7)), np.array(classes, np.int64)


def _draw(kind: int, road: Road, random: np.random.Generator) -> np.ndarray:
    x, edge = random.uniform(-REACH, REACH), road.half_width
    side = random.choice([-1.0, 1.0])
    spread = np.exp(random.normal(0, 0.06, 3))
    crossing = road.crossing if road.crossing is not None and random.random() < 0.3 else None
    if kind == VEHICLE:
        truck = random.random() < 0.15
        size = np.array([8.0, 2.5, 3.1] if truck else [4.5, 1.9, 1.6]) * spread
        parked = not truck and random.random() < 0.2
        lane = random.integers(0, road.lanes)
        lateral = side * (edge + 1.2) if parked else (lane + 0.5) * LANE_WIDTH - edge
        along = lateral < 0
        wobble = 0.03
    elif kind == CYCLIST:
        size, lateral, along, wobble = np.array([1.8, 0.65, 1.7]) * spread, side * (edge - 0.6), side < 0, 0.08
    elif kind == PEDESTRIAN:
        size = np.array([0.6, 0.7, 1.72]) * spread
        lateral, along, wobble = side * (edge + random.uniform(0.6, 3.0)), side < 0, 0.6
        if road.crossing is not None and random.random() < 0.5:  # on the zebra crossing
            x, lateral = road.crossing - edge - 2.5 + random.normal(0, 0.5), random.uniform(-edge, edge)
            yaw = side * np.pi / 2 + random.normal(0, 0.3)
            return np.array([x, lateral + road.middle(x), size[2] / 2, *size, _wrap(yaw)])
    else:
        size = np.array([random.uniform(8, 18), random.uniform(8, 14), random.uniform(4, 14)])
        x, lateral, along, wobble = 1.3 * x, side * (edge + 6 + size[1] / 2 + random.uniform(0, 8)), True, 0.0
        if road.crossing is not None and abs(x - road.crossing) < edge + size[0] / 2 + 2:
            x = road.crossing + np.sign(x - road.crossing) * (edge + size[0] / 2 + 2)
        crossing = None
    if crossing is None:
        yaw = road.heading(x) + (0.0 if along else np.pi) + random.normal(0, wobble)
        place = x, lateral + road.middle(x)
    else:  # the same lane of the crossing road, which runs to the left
        yaw = np.pi / 2 + (0.0 if along else np.pi) + random.normal(0, wobble)
        place = crossing - lateral, random.uniform(-REACH, REACH)
    return np.array([*place, size[2] / 2, *size, _wrap(yaw)])


def _overlaps(box: np.ndarray, others: np.ndarray) -> bool:
    """Whether the footprint of `box` comes within 0.3 m of one of `others` (K, 7): separating-axis test."""
    own, theirs = corners(box[None])[:, :4, :2], corners(others)[:, :4, :2]
    apart = np.zeros(len(others), bool)
    for yaw in (np.full(len(others), box[6]), others[:, 6]):
        for axis in (np.stack([np.cos(yaw), np.sin(yaw)], -1), np.stack([-np.sin(yaw), np.cos(yaw)], -1)):
            a, b = (own * axis[:, None]).sum(-1), (theirs * axis[:, None]).sum(-1)
            apart |= (a.min(1) > b.max(1) + 0.3) | (b.min(1) > a.max(1) + 0.3)
    return not apart.all()


def corners(boxes: np.ndarray) -> np.ndarray:
    """(K, 8, 3): corners of boxes (K, 7); the lower four first, each ring counter-clockwise from front left."""
    signs = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)], float)
    flat = signs * boxes[:, None, 3:5] / 2
    cos, sin = np.cos(boxes[:, None, 6]), np.sin(boxes[:, None, 6])
    ground = np.stack([cos * flat[..., 0] - sin * flat[..., 1], sin * flat[..., 0] + cos * flat[..., 1]], -1)
    ground = ground + boxes[:, None, :2]
    low, high = (boxes[:, None, 2:3] + side * boxes[:, None, 5:6] / 2 for side in (-1, 1))
    rings = [np.concatenate([ground, np.broadcast_to(z, (*ground.shape[:2], 1))], -1) for z in (low, high)]
    return np.concatenate(rings, axis=1)


def _colours(classes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    colours = random.uniform(0.1, 0.9, (len(classes), 3))
    grey = random.uniform(0.15, 0.9, (len(classes), 1))
    # Most cars are black, grey or white; buildings are pale and warm.
    colours = np.where((classes == VEHICLE)[:, None] & (random.random((len(classes), 1)) < 0.6), grey, colours)
    pale = 0.35 + 0.3 * grey + np.array([0.06, 0.02, -0.04])
    return np.where((classes == BUILDING)[:, None], pale, colours)


def _motion(road: Road, random: np.random.Generator) -> np.ndarray:
    """Kinematic bicycle on the road's curvature; the previous displacement is that of the last half second."""
    speed = float(np.clip(random.normal(9, 4), 0, 18))
    if road.crossing is not None:
        speed *= min(1.0, road.crossing / 25)
    acceleration = float(random.normal(0, 0.7)) - (0.8 if road.crossing is not None else 0.0)
    yaw_rate = speed * road.curvature + random.normal(0, 0.01)
    steering = np.arctan(WHEELBASE * road.curvature) + random.normal(0, 0.005)
    back = 0.5 * speed - 0.125 * acceleration
    return np.array([speed, acceleration, yaw_rate, steering, back, -0.5 * yaw_rate * 0.5 * back])


def _command(road: Road, boxes: np.ndarray, classes: np.ndarray, ego: np.ndarray, random: np.random.Generator) -> str:
    """A phrase a navigator would say here, at most `schema.TEXT_BYTES` bytes."""
    ahead = (boxes[:, 0] > 2) & (boxes[:, 0] < 18) & (np.abs(boxes[:, 1]) < 2)
    if (near := classes[ahead & (classes >= 0)]).size and random.random() < 0.6:
        return f"slow down for the {CLASSES[near[0]]} ahead"
    if road.crossing is not None:
        way = random.choice(["turn left", "turn right", "go straight on"])
        return f"in {round(road.crossing / 5) * 5} metres {way} at the crossing"
    if abs(road.curvature) > 0.003:
        return f"follow the road to the {'left' if road.curvature > 0 else 'right'}"
    return "speed up to the limit" if ego[0] < 6 else "keep to your lane"


def _wrap(angle: float) -> float:
    """The same angle in [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)
