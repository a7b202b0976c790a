"""Colours what the rays met: materials, road markings, light, weather and the sensor's noise.

Every pixel gets a material (a row of a colour table) and a brightness; colours are then worked out channel by
channel over whole images, which is what makes it fast.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from .camera import Camera
from .faces import Faces
from .scene import BUILDING, CYCLIST, LANE_WIDTH, PEDESTRIAN, VEHICLE, Scene


class View(NamedTuple):
    """What each pixel of a camera shows; all (H, W)."""

    depth: np.ndarray
    """float32, metres along the optical axis; infinite in the sky."""
    face: np.ndarray
    """int16 number of the face, -1 on ground and in the sky."""
    across: np.ndarray
    """float32, -1 to 1 over the face, as `Faces.meet` gives it."""
    up: np.ndarray
    shadow: np.ndarray
    """bool, where the ground lies in the shadow of a box."""


class Weather(NamedTuple):
    """How a kind of weather looks: `haze` colour and the `reach` in metres at which it hides 63 %, and sunlight."""

    haze: tuple[float, float, float]
    sky: tuple[float, float, float]
    reach: float
    sunlight: float


WEATHER = {
    "clear": Weather((0.78, 0.85, 0.93), (0.36, 0.56, 0.86), 500.0, 0.65),
    "cloudy": Weather((0.74, 0.76, 0.78), (0.62, 0.66, 0.71), 250.0, 0.25),
    "rain": Weather((0.55, 0.58, 0.61), (0.45, 0.48, 0.52), 110.0, 0.15),
    "fog": Weather((0.76, 0.77, 0.78), (0.74, 0.75, 0.76), 32.0, 0.10),
}
NIGHT_HAZE, NIGHT_SKY = (0.035, 0.04, 0.06), (0.015, 0.02, 0.045)
_GROUND = ("road", "pavement", "grass")
_DETAILS = ("glass", "tyre", "headlight", "taillight", "skin", "trousers", "lit_window", "sky")
_MATERIALS = {
    "road": (0.25, 0.25, 0.26), "pavement": (0.5, 0.49, 0.47), "grass": (0.27, 0.37, 0.18),
    "glass": (0.10, 0.13, 0.16), "tyre": (0.05, 0.05, 0.05), "headlight": (0.98, 0.96, 0.85),
    "taillight": (0.8, 0.05, 0.04), "skin": (0.80, 0.60, 0.48), "trousers": (0.13, 0.15, 0.25),
    "lit_window": (0.95, 0.78, 0.45), "sky": (1.0, 1.0, 1.0),
}  # fmt: skip


def paint(
    view: View, rays: np.ndarray, camera: Camera, scene: Scene, faces: Faces, random: np.random.Generator
) -> np.ndarray:
    """uint8 (H, W, 3) image of `view`, whose rays (3, H, W) are those of `camera`."""
    shape, weather = view.depth.shape, WEATHER[scene.weather]
    haze, sky = (NIGHT_HAZE, NIGHT_SKY) if scene.night else (weather.haze, weather.sky)
    table = np.concatenate([scene.colours[faces.box], [_MATERIALS[name] for name in (*_GROUND, *_DETAILS)]])
    table = table.astype(np.float32)
    number = {name: len(faces.box) + place for place, name in enumerate((*_GROUND, *_DETAILS))}
    table[number["sky"]] = sky

    flat_face, depth = view.face.ravel(), view.depth.ravel()
    material = np.full(depth.shape, number["sky"], np.int16)
    light = np.ones(depth.shape, np.float32)
    flat_rays = rays.reshape(3, -1)
    drawn = np.flatnonzero(flat_face >= 0)
    ground = np.flatnonzero((flat_face < 0) & (flat_rays[2] < 0))
    x, y = (np.float32(o) + depth[ground] * flat_rays[axis][ground] for axis, o in enumerate(camera.origin[:2]))
    footprint = depth[ground] * np.float32(1.5 / camera.intrinsics[0, 0])
    material[ground], light[ground] = _ground(x, y, footprint, scene, number)
    light[ground[view.shadow.ravel()[ground]]] *= 1 - 0.8 * weather.sunlight if not scene.night else 0.75
    material[drawn], light[drawn] = _objects(
        flat_face[drawn], view.across.ravel()[drawn], view.up.ravel()[drawn], scene, faces, number
    )
    if scene.night:
        _headlights(light, np.concatenate([ground, drawn]), depth, flat_rays, camera)
        glowing = np.isin(material, [number[name] for name in ("headlight", "taillight", "lit_window")])
        light[glowing] = 1.0

    # Above the horizon the haze thins out with elevation; below it, it grows with distance.
    distance = np.where(np.isfinite(depth), depth, 40 / (np.maximum(flat_rays[2], 0) + 0.03)).astype(np.float32)
    clear = np.exp(distance * np.float32(-1 / weather.reach))
    light *= clear
    veil = 1 - clear
    noise = _noise(shape, 0.03 if scene.night else 0.012, random)
    if scene.weather == "rain":
        noise = noise + _streaks(shape, random)
    image = np.empty((*shape, 3), np.uint8)
    for channel in range(3):
        plane = table[:, channel][material]
        plane *= light
        plane += veil * np.float32(haze[channel])
        plane = plane.reshape(shape)
        plane += noise
        plane *= 255
        np.clip(plane, 0, 255, out=plane)
        image[..., channel] = plane
    return image


def _ground(
    x: np.ndarray, y: np.ndarray, footprint: np.ndarray, scene: Scene, number: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(material, brightness) of ground points; markings fade where a pixel's `footprint` is wider than they are."""
    road, half = scene.road, np.float32(scene.road.half_width)
    lateral = y - road.middle(x).astype(np.float32)
    beside = np.abs(lateral) - half
    on_crossing = np.zeros(x.shape, bool)
    if road.crossing is not None:
        from_crossing = np.abs(x - np.float32(road.crossing)) - half
        on_crossing = from_crossing < 0
        beside = np.minimum(beside, from_crossing)
    material = np.where(beside < 0, number["road"], np.where(beside < 2.6, number["pavement"], number["grass"]))

    lane = (lateral + half) / np.float32(LANE_WIDTH)
    nearest = np.rint(lane)
    between = (nearest > 0) & (nearest < road.lanes)
    solid = nearest * 2 == road.lanes
    between &= solid | (x * np.float32(1 / 8) % 1 < 0.45)
    line = np.where(between, np.abs(lane - nearest) * np.float32(LANE_WIDTH), np.inf)
    line = np.minimum(line, np.abs(np.abs(lateral) - (half - np.float32(0.25))))
    width = np.float32(0.09)
    painted = np.clip((width - line) / footprint + 0.5, 0, 1) * np.minimum(1, 2 * width / footprint)
    painted[on_crossing] = 0
    if road.crossing is not None:
        before = np.float32(road.crossing) - half - x
        zebra = (before > 1) & (before < 4) & (np.abs(lateral) < half)
        painted[zebra] = lateral[zebra] % 1 < 0.5
    coarse = np.sin(x * 0.9 + 2 * np.sin(y * 0.35)) * np.sin(y * 0.8 + np.sin(x * 0.5))
    fine = np.sin(x * 9.1) * np.sin(y * 7.7)
    rough = np.where(material == number["grass"], np.float32(0.16), np.float32(0.05))
    overcast = 0.45 + 0.85 * _sunlight(scene) * max(0.0, scene.sun[2])
    return material, (1 + rough * (coarse + 0.4 * fine)) * np.float32(overcast) * (1 + 2.3 * painted)


def _objects(
    face: np.ndarray, across: np.ndarray, up: np.ndarray, scene: Scene, faces: Faces, number: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(material, brightness) of points on box faces: each side is lit by its angle to the light."""
    sunlight = _sunlight(scene)
    ambient = 0.55 + 0.12 * faces.normal[:, 2]
    face_light = (ambient + sunlight * np.maximum(0, faces.normal @ scene.sun)).astype(np.float32)
    light, material = face_light[face], face.astype(np.int16)
    kind, side = scene.classes[faces.box][face], faces.side[face]
    beyond = np.abs(across)

    vehicle, lateral = kind == VEHICLE, (side == 1) | (side == 3)
    upright = side != 4
    material[vehicle & upright & (up > 0.12) & (up < 0.82) & (beyond < np.where(lateral, 0.8, 0.88))] = number["glass"]
    wheels = lateral & (up < -0.5) & (np.abs(beyond - 0.62) < 0.17)
    material[vehicle & upright & (wheels | (up < -0.85))] = number["tyre"]
    lamps = vehicle & (beyond > 0.6) & (up > -0.5) & (up < -0.1)
    material[lamps & (side == 0)] = number["headlight"]
    material[lamps & (side == 2)] = number["taillight"]
    light[lamps & ~lateral] = 1.0

    person = (kind == PEDESTRIAN) | (kind == CYCLIST)
    material[person & (up > 0.72)] = number["skin"]
    material[(kind == PEDESTRIAN) & (up < -0.05)] = number["trousers"]
    material[(kind == CYCLIST) & (up < -0.15)] = number["tyre"]

    wall = (kind == BUILDING) & upright
    extent = np.linalg.norm(np.stack([faces.across, faces.up]), axis=-1).astype(np.float32)
    column, storey = (across * extent[0][face]) / 2.7, (up * extent[1][face]) / 3.1
    window = wall & (column % 1 < 0.5) & (storey % 1 > 0.3) & (storey % 1 < 0.8)
    lit = (np.floor(column) * 7 + np.floor(storey) * 13 + face) % 5 < 2
    material[window] = number["glass"]
    if scene.night:
        material[window & lit] = number["lit_window"]
    return material, light


def _sunlight(scene: Scene) -> float:
    return 0.0 if scene.night else WEATHER[scene.weather].sunlight


def _headlights(light: np.ndarray, where: np.ndarray, depth: np.ndarray, rays: np.ndarray, camera: Camera) -> None:
    """Darkens to the night's level, but for what the ego vehicle's own lamps reach ahead of it."""
    x, y = (np.float32(camera.origin[axis]) + depth[where] * rays[axis][where] for axis in range(2))
    ahead = np.maximum(x - 2, np.float32(0.1))
    beam = np.clip(1.3 - 1.8 * np.abs(y) / (ahead + 2), 0, 1) * np.clip(1.1 - ahead / 45, 0, 1) * (x > 2)
    light[where] *= 0.3 + 0.9 * beam.astype(np.float32)


def _noise(shape: tuple[int, int], level: float, random: np.random.Generator) -> np.ndarray:
    """float32 (H, W): normal noise, cut from a tile at a random place."""
    tile = _noise_tile(shape)
    row, column = (int(random.integers(0, have - want + 1)) for have, want in zip(tile.shape, shape, strict=True))
    return tile[row : row + shape[0], column : column + shape[1]] * np.float32(level)


@lru_cache(maxsize=2)
def _noise_tile(shape: tuple[int, int]) -> np.ndarray:
    source = np.random.Generator(np.random.Philox(0))
    return source.standard_normal((shape[0] + 64, shape[1] + 64), np.float32)


def _streaks(shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """float32 (H, W): rain drops drawn out by the exposure."""
    height, width = shape
    length = max(3, height // 14)
    start = random.random((220, 2)) * (height, width)
    along = np.arange(length)
    rows = (start[:, :1] + along).astype(int) % height
    columns = (start[:, 1:] + along * random.normal(0.12, 0.03, (220, 1))).astype(int) % width
    streaks = np.zeros(shape, np.float32)
    streaks[rows, columns] = random.uniform(0.04, 0.16, (220, 1))
    return streaks
