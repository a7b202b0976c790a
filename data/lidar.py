"""A spinning LiDAR on the roof: casts beams against the boxes and the ground, with dropout and range noise."""

from __future__ import annotations

from functools import cache

import numpy as np

from .faces import Faces
from .scene import Scene

ORIGIN = np.array([0.8, 0.0, 1.9])
"""Ego frame, metres."""
RANGE = 50.0
"""Farthest return, metres."""
ELEVATION = (-25.0, 5.0)
"""Lowest and highest beam, degrees."""
RANGE_NOISE = 0.02
"""Standard deviation, metres."""
REFLECTIVITY = {-1: 0.35, 0: 0.7, 1: 0.3, 2: 0.5}


def cast_lidar(
    scene: Scene, faces: Faces, beams: int, columns: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns of one turn: float32 (N, 4) x, y, z, intensity in the ego frame, and int (K,) returns per box.

    `faces` are those of `scene.boxes`. N varies: beams into the sky give none, and rain, fog and dark surfaces
    lose some.
    """
    rays = _directions(beams, columns)
    with np.errstate(divide="ignore"):
        distance = np.where(rays[2] < 0, -np.float32(ORIGIN[2]) / rays[2], np.float32(np.inf))
    face_of = np.full(distance.shape, -1, np.int32)
    corners = faces.corners() - ORIGIN
    azimuth = np.arctan2(corners[..., 1], corners[..., 0])
    near = np.linalg.norm(faces.centre - ORIGIN, axis=1) < RANGE + 15
    for face in np.flatnonzero(faces.facing(ORIGIN) & near).tolist():
        for part in _column_ranges(azimuth[face], columns):
            t, hit, _, _ = faces.meet(face, ORIGIN, rays[:, :, part])
            hit &= t < distance[:, part]
            distance[:, part][hit] = t[hit]
            face_of[:, part][hit] = face
    box_of = np.where(face_of >= 0, faces.box[face_of] if len(faces.box) else -1, -1)
    kind = np.where(box_of >= 0, scene.classes[box_of] if len(scene.classes) else -1, -2)

    slant = np.abs(np.where(face_of >= 0, (faces.normal[face_of] * np.moveaxis(rays, 0, -1)).sum(-1), rays[2]))
    intensity = np.select([kind == label for label in REFLECTIVITY], list(REFLECTIVITY.values()), 0.15) * (
        0.4 + 0.6 * slant
    )
    lost = {"clear": 0.02, "cloudy": 0.02, "rain": 0.12, "fog": 0.2}[scene.weather]
    reach = {"fog": 30.0}.get(scene.weather, RANGE)
    kept = (distance < reach) & (
        random.random(distance.shape) > lost + 0.3 * (distance / RANGE) ** 2 * (intensity < 0.2)
    )
    distance = distance + random.normal(0, RANGE_NOISE, distance.shape).astype(np.float32)
    points = ORIGIN[:, None].astype(np.float32) + rays[:, kept] * distance[kept]
    noisy = np.clip(intensity[kept] + random.normal(0, 0.03, points.shape[1]), 0, 1)
    returns = np.bincount(box_of[kept & (box_of >= 0)], minlength=len(scene.boxes))
    return np.concatenate([points.T, noisy[:, None]], axis=1).astype(np.float32), returns


@cache
def _directions(beams: int, columns: int) -> np.ndarray:
    """float32 (3, beams, columns): unit directions, column 0 backward, turning left."""
    elevation = np.radians(np.linspace(ELEVATION[0], ELEVATION[1], beams))[:, None]
    azimuth = ((np.arange(columns) + 0.5) / columns * 2 - 1) * np.pi
    return np.stack([
        np.cos(elevation) * np.cos(azimuth),
        np.cos(elevation) * np.sin(azimuth),
        np.broadcast_to(np.sin(elevation), (beams, columns)),
    ]).astype(np.float32)  # fmt: skip


def _column_ranges(azimuth: np.ndarray, columns: int) -> list[slice]:
    """The columns between the smallest and the largest azimuth of a face, in two parts where it lies behind."""
    low, high = azimuth.min(), azimuth.max()
    if high - low > np.pi:
        left, right = azimuth[azimuth > 0].min(), azimuth[azimuth <= 0].max()
        return [slice(0, _column(right, columns) + 2), slice(max(0, _column(left, columns) - 1), columns)]
    return [slice(max(0, _column(low, columns) - 1), _column(high, columns) + 2)]


def _column(azimuth: float, columns: int) -> int:
    return int((azimuth / np.pi + 1) / 2 * columns)
