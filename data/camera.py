"""Pinhole cameras with Brown-Conrady distortion, and the ring of them around the vehicle.

Pixel (0, 0) covers [0, 1) x [0, 1): its centre is at (0.5, 0.5). Frames are those of `schema`.
The lens model is that of D. C. Brown, "Close-range camera calibration", Photogrammetric Engineering 37 (1971), in
the order k1, k2, p1, p2, k3 in which OpenCV keeps its five coefficients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

MAX_ITERATIONS = 60
CONVERGED = 1e-9
"""Normalised units: 1e-6 pixels at a focal length of 1000 pixels."""


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera: size in pixels, float64 intrinsics (3, 3), distortion (5,), extrinsics (4, 4) camera to ego."""

    width: int
    height: int
    intrinsics: np.ndarray
    distortion: np.ndarray
    extrinsics: np.ndarray

    @property
    def origin(self) -> np.ndarray:
        """float64 (3,): the centre of projection in the ego frame."""
        return self.extrinsics[:3, 3]

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """Ego coordinates (..., 3) -> camera coordinates (..., 3)."""
        return (points - self.origin) @ self.extrinsics[:3, :3]

    def to_pixels(self, normalised: np.ndarray) -> np.ndarray:
        """Undistorted image-plane coordinates x/z, y/z (..., 2) -> pixels (..., 2)."""
        return distort(normalised, self.distortion) * self._focal + self.intrinsics[:2, 2]

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ego coordinates (N, 3) -> (pixels (N, 2), depth (N,) along the optical axis).

        Pixels are NaN behind the camera, and so far outside of the image that the lens polynomial, which is
        fitted to the image only, would fold points back into it. Pixels outside of the image are kept.
        """
        local = self.to_camera(points)
        depth = local[:, 2]
        with np.errstate(divide="ignore", invalid="ignore"):
            normalised = local[:, :2] / depth[:, None]
        usable = (depth > 0) & (np.hypot(normalised[:, 0], normalised[:, 1]) <= self.field_radius * 1.2)
        normalised[~usable] = np.nan
        return self.to_pixels(normalised), depth

    def unproject(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (..., 2) -> undistorted image-plane coordinates x/z, y/z (..., 2)."""
        return undistort((pixels - self.intrinsics[:2, 2]) / self._focal, self.distortion)

    def image_plane(self) -> np.ndarray:
        """float32 (2, H, W): undistorted image-plane coordinates of each pixel's centre."""
        result = np.empty((2, self.height, self.width), np.float32)
        columns = np.arange(self.width) + 0.5
        for row in range(self.height):  # a row at a time stays in the processor's cache
            result[:, row] = self.unproject(np.stack([columns, np.full_like(columns, row + 0.5)], axis=-1)).T
        return result

    def rays(self, plane: np.ndarray | None = None) -> np.ndarray:
        """float32 (3, H, W): direction of each pixel's centre in the ego frame, with which origin + t·ray has depth t.

        `plane` is `image_plane()`, which cameras of one lens share.
        """
        x, y = self.image_plane() if plane is None else plane
        rotation = self.extrinsics[:3, :3].astype(np.float32)
        return np.stack([row[0] * x + row[1] * y + row[2] for row in rotation])

    @cached_property
    def field_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(lowest, highest) image-plane coordinates, each (2,), that the image's border pixels reach."""
        across, down = np.linspace(0, self.width, 65), np.linspace(0, self.height, 65)
        border = np.concatenate([
            np.stack(np.broadcast_arrays(x, y), axis=-1)
            for x, y in ((across, 0.0), (across, float(self.height)), (0.0, down), (float(self.width), down))
        ])  # fmt: skip
        plane = self.unproject(border)
        return plane.min(axis=0), plane.max(axis=0)

    @cached_property
    def field_radius(self) -> float:
        """Largest distance of an image point from the optical axis, image-plane coordinates."""
        low, high = self.field_bounds
        return float(np.hypot(*np.maximum(np.abs(low), np.abs(high))))

    def calibration(self) -> dict[str, Any]:
        """This camera as it stands in a sample's `calib.json`."""
        return {
            "width": self.width,
            "height": self.height,
            "intrinsics": self.intrinsics.tolist(),
            "distortion": self.distortion.tolist(),
            "extrinsics": self.extrinsics.tolist(),
        }

    @property
    def _focal(self) -> np.ndarray:
        return np.array([self.intrinsics[0, 0], self.intrinsics[1, 1]])


def distort(plane: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Where the lens puts undistorted image-plane points (..., 2)."""
    return plane * _radial(plane, coefficients) + _tangential(plane, coefficients)


def undistort(distorted: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """The inverse of `distort`, by fixed-point iteration to `CONVERGED`.

    Raises `ArithmeticError` if that is not reached: the polynomial has no inverse there.
    """
    if not coefficients.any():
        return distorted
    plane = distorted
    for _ in range(MAX_ITERATIONS):
        previous = plane
        plane = (distorted - _tangential(previous, coefficients)) / _radial(previous, coefficients)
        if np.abs(plane - previous).max() < CONVERGED:
            return plane
    raise ArithmeticError(f"distortion {coefficients.tolist()} cannot be inverted over the whole image")


def ring(cameras: int, width: int, height: int, distortion: bool = True) -> list[Camera]:
    """`cameras` cameras looking outward at equal angles, the first one forward; overlapping by 15 %.

    They sit 1.6 m above the ground on a circle of 0.9 m around a point 0.8 m ahead of the origin, looking 4°
    down. Between 40° and 90° of horizontal view each, so fewer than five leave gaps.
    """
    half_view = np.radians(np.clip(1.15 * 360 / cameras, 40, 90)) / 2
    focal = width / 2 / np.tan(half_view)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    lens = np.array([-0.18, 0.04, 0.0008, -0.0006, -0.004]) if distortion else np.zeros(5)
    pitch = np.radians(4)
    result = []
    for yaw in 2 * np.pi * np.arange(cameras) / cameras:
        forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), -np.sin(pitch)])
        right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
        extrinsics = np.eye(4)
        extrinsics[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        extrinsics[:3, 3] = 0.8 + 0.9 * np.cos(yaw), 0.9 * np.sin(yaw), 1.6
        result.append(Camera(width, height, intrinsics, lens, extrinsics))
    return result


def _radial(plane: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    k1, k2, _, _, k3 = coefficients
    r2 = (plane * plane).sum(axis=-1, keepdims=True)
    return 1 + r2 * (k1 + r2 * (k2 + r2 * k3))


def _tangential(plane: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    _, _, p1, p2, _ = coefficients
    x, y = plane[..., 0], plane[..., 1]
    r2 = x * x + y * y
    return np.stack([2 * p1 * x * y + p2 * (r2 + 2 * x * x), p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], axis=-1)
