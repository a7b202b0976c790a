"""The flat faces of a scene's boxes, and how rays meet them: what cameras and LiDAR have in common.

A face is a rectangle: centre, outward unit normal, and two half edges (across it and up it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EDGE = 1 + 1e-5
"""Faces reach this little beyond their edges, so that rounding leaves no gap between two of them."""
SIDES = ("front", "left", "back", "right", "top")


@dataclass(frozen=True)
class Faces:
    """F faces: `centre`, `normal`, `across`, `up` (F, 3); `box` (F,) the box's number; `side` (F,) index of `SIDES`."""

    centre: np.ndarray
    normal: np.ndarray
    across: np.ndarray
    up: np.ndarray
    box: np.ndarray
    side: np.ndarray

    def facing(self, origin: np.ndarray) -> np.ndarray:
        """bool (F,): whose outer side is seen from `origin` (3,)."""
        return ((origin - self.centre) * self.normal).sum(axis=1) > 1e-9

    def corners(self) -> np.ndarray:
        """(F, 4, 3): corners in order around each face."""
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        return np.stack([self.centre + a * self.across + b * self.up for a, b in signs], axis=1)

    def meet(
        self, face: int, origin: np.ndarray, rays: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Where rays (3, ...) from `origin` meet the plane of `face`: distance in ray lengths, hit, across, up.

        `hit` is whether that is on the face and ahead; across and up run from -1 to 1 over the face.
        """
        normal, offset = self.normal[face], self.centre[face] - origin
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            distance = np.float32(normal @ offset) / _dot(normal, rays)
            places = []
            for edge in (self.across[face], self.up[face]):
                unit = edge / (edge @ edge)
                places.append(distance * _dot(unit, rays) - np.float32(unit @ offset))
            across, up = places
            hit = (np.abs(across) <= EDGE) & (np.abs(up) <= EDGE) & (distance > 0)
        return distance, hit, across, up


def faces_of(boxes: np.ndarray) -> Faces:
    """The four sides and the top of each of the boxes (K, 7): F = 5 K."""
    count = len(boxes)
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    zero, one = np.zeros(count), np.ones(count)
    ahead, left, above = (np.stack(v, -1) for v in ((cos, sin, zero), (-sin, cos, zero), (zero, zero, one)))
    length, width, height = (boxes[:, 3 + axis, None] / 2 for axis in range(3))
    sides = [
        (ahead * length, left * width, above * height),
        (left * width, -ahead * length, above * height),
        (-ahead * length, -left * width, above * height),
        (-left * width, ahead * length, above * height),
        (above * height, left * width, ahead * length),
    ]
    out, across, up = (np.stack([side[part] for side in sides], axis=1).reshape(-1, 3) for part in range(3))
    return Faces(
        centre=np.repeat(boxes[:, :3], 5, axis=0) + out,
        normal=out / np.linalg.norm(out, axis=1, keepdims=True),
        across=across,
        up=up,
        box=np.repeat(np.arange(count), 5),
        side=np.tile(np.arange(5), count),
    )


def shadows_of(boxes: np.ndarray, light: np.ndarray) -> Faces:
    """One face on the ground per box: its footprint, drawn out and moved away from the `light` (3,)."""
    cos, sin = np.cos(boxes[:, 6]), np.sin(boxes[:, 6])
    zero = np.zeros(len(boxes))
    ahead, left = np.stack([cos, sin, zero], -1), np.stack([-sin, cos, zero], -1)
    fall = -light * (1, 1, 0) * boxes[:, 5:6] * 0.35
    grow = [np.abs((fall * axis).sum(1, keepdims=True)) for axis in (ahead, left)]
    return Faces(
        centre=boxes[:, :3] * (1, 1, 0) + fall,
        normal=np.tile([0.0, 0.0, 1.0], (len(boxes), 1)),
        across=left * (boxes[:, 4:5] / 2 + grow[1]),
        up=ahead * (boxes[:, 3:4] / 2 + grow[0]),
        box=np.arange(len(boxes)),
        side=np.full(len(boxes), len(SIDES) - 1),
    )


def _dot(vector: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Dot product with rays (3, ...), skipping axes on which the vector is 0."""
    terms = [np.float32(value) * rays[axis] for axis, value in enumerate(vector) if value != 0.0]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
