"""Draws what the cameras see of a scene: per-pixel ray casting of box faces, ground and sky, light and weather."""

from __future__ import annotations

import numpy as np

from .camera import Camera
from .faces import Faces, shadows_of
from .paint import View, paint
from .scene import Scene

NEAR = 0.05
"""Depth, metres, before which a face is cut off."""


class Renderer:
    """Renders with a fixed camera, whose rays are computed once (`plane` as in `Camera.rays`)."""

    def __init__(self, camera: Camera, plane: np.ndarray | None = None):
        self.camera = camera
        self.rays = camera.rays(plane)

    def see(self, faces: Faces, shadows: Faces | None = None) -> View:
        """Casts every pixel's ray; the nearest face wins, so occlusion is exact. `shadows` lie on the ground."""
        rays, origin = self.rays, self.camera.origin
        shape = rays.shape[1:]
        depth = np.full(shape, np.inf, np.float32)
        np.divide(np.float32(-origin[2]), rays[2], out=depth, where=rays[2] < 0)
        face_of = np.full(shape, -1, np.int16)
        across, up = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for face, window in self._windows(faces):
            t, hit, a, b = faces.meet(face, origin, rays[:, *window])
            hit &= t < depth[window]
            for target, values in ((depth, t), (across, a), (up, b), (face_of, face)):
                np.copyto(target[window], values, where=hit)
        shadow = np.zeros(shape, bool)
        if shadows is not None:
            for face, window in self._windows(shadows):
                shadow[window] |= shadows.meet(face, origin, rays[:, *window])[1]
        return View(depth, face_of, across, up, shadow)

    def _windows(self, faces: Faces) -> list[tuple[int, tuple[slice, slice]]]:
        """The faces that may be seen, with the pixel rectangle in which each lies.

        The rectangle is found in the undistorted image plane, where a face cut at NEAR is a polygon, and carried
        over by the border of its bounds, since the lens maps that region continuously.
        """
        seen = np.flatnonzero(faces.facing(self.camera.origin))
        local = self.camera.to_camera(faces.corners()[seen])  # (F, 4, 3)
        after = np.roll(local, -1, axis=1)
        z0, z1 = local[..., 2:], after[..., 2:]
        crosses = (z0 > NEAR) != (z1 > NEAR)
        cut = local + (after - local) * np.where(crosses, (NEAR - z0) / np.where(crosses, z1 - z0, 1.0), 0.0)
        vertices = np.concatenate([local, cut], axis=1)
        real = np.concatenate([z0 > NEAR, crosses], axis=1)
        plane = vertices[..., :2] / np.where(real, vertices[..., 2:], 1.0)
        field_low, field_high = self.camera.field_bounds
        low = np.maximum(np.where(real, plane, np.inf).min(axis=1), field_low)
        high = np.minimum(np.where(real, plane, -np.inf).max(axis=1), field_high)
        inside = (low < high).all(axis=1)
        seen, low, high = seen[inside], low[inside], high[inside]
        line = np.linspace(0, 1, 17)
        zero, one = np.zeros_like(line), np.ones_like(line)
        border = np.stack([np.concatenate([line, line, zero, one]), np.concatenate([zero, one, line, line])], -1)
        pixels = self.camera.to_pixels(low[:, None] + border * (high - low)[:, None])
        size = np.array([self.camera.width, self.camera.height])
        first = np.clip(np.floor(pixels.min(axis=1)) - 2, 0, size).astype(int)
        last = np.clip(np.ceil(pixels.max(axis=1)) + 2, 0, size).astype(int)
        return [
            (int(face), (slice(a[1], b[1]), slice(a[0], b[0])))
            for face, a, b in zip(seen, first, last, strict=True)
            if (a < b).all()
        ]

    def render(self, scene: Scene, faces: Faces, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """(uint8 (H, W, 3) image, int (K,) visible pixels per box of the scene)."""
        view = self.see(faces, shadows_of(scene.boxes, scene.sun))
        drawn = view.face[view.face >= 0]
        visible = np.bincount(faces.box[drawn], minlength=len(scene.boxes))
        return paint(view, self.rays, self.camera, scene, faces, random), visible
