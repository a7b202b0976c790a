"""Calibration, drawing and LiDAR agree about where things are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.data.camera import Camera, distort, ring, undistort
from scalelab.data.faces import faces_of
from scalelab.data.lidar import ORIGIN, cast_lidar
from scalelab.data.render import Renderer
from scalelab.data.scene import corners, make_scene

RINGS = {lens: ring(6, 480, 288, lens) for lens in (False, True)}


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def lone_box(camera: Camera, distance: float, lateral: float, yaw: float) -> np.ndarray:
    """(1, 7): a box before `camera`, standing on the ground."""
    forward = camera.extrinsics[:2, 2] / np.hypot(*camera.extrinsics[:2, 2])
    place = camera.origin[:2] + distance * (forward + lateral * np.array([-forward[1], forward[0]]))
    return np.array([[*place, 0.85, 1.6, 0.9, 1.7, yaw]])


@pytest.mark.parametrize("lens", [False, True], ids=["pinhole", "distorted"])
def test_a_drawn_box_ends_where_its_corners_project_to(lens: bool) -> None:
    """The silhouette of a lone box ends within half a pixel of its projected corners, in every camera."""
    # Drawn with three samples per pixel and axis: at one, a sharp corner may fall between two pixel centres.
    fine = ring(6, 3 * 320, 3 * 192, lens)
    plane = fine[0].image_plane()
    for number, camera in enumerate(ring(6, 320, 192, lens)):
        renderer = Renderer(fine[number], plane)
        source = random(number)
        for distance in (6.0, 8.0, 15.0, 30.0):
            box = lone_box(camera, distance, source.uniform(-0.45, 0.45), source.uniform(-np.pi, np.pi))
            rows, columns = np.nonzero(renderer.see(faces_of(box)).face >= 0)
            drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 3
            for points, tolerance in ((corners(box)[0], 0.5), (edge_points(corners(box)[0]), 0.35)):
                pixels, depth = camera.project(points)
                assert (depth > 0).all()
                expected = np.concatenate([pixels.min(axis=0), pixels.max(axis=0)])
                assert np.abs(drawn - expected).max() < tolerance


def edge_points(box: np.ndarray) -> np.ndarray:
    """Points along the twelve edges of the corners (8, 3): lines bend in a lens, and may bulge beyond the corners."""
    pairs = [(i, (i + 1) % 4) for i in range(4)] + [(4 + i, 4 + (i + 1) % 4) for i in range(4)]
    pairs += [(i, i + 4) for i in range(4)]
    steps = np.linspace(0, 1, 33)[:, None]
    return np.concatenate([box[a] * (1 - steps) + box[b] * steps for a, b in pairs])


@pytest.mark.parametrize("lens", [False, True], ids=["pinhole", "distorted"])
@given(
    u=st.floats(0, 480), v=st.floats(0, 288), depth=st.floats(0.5, 100), number=st.integers(0, 5)
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_projecting_undoes_unprojecting(lens: bool, number: int, u: float, v: float, depth: float) -> None:
    """A pixel carried out to any depth and projected again comes back to within 1e-3 pixels."""
    camera = RINGS[lens][number]
    plane = camera.unproject(np.array([[u, v]]))
    point = camera.extrinsics[:3, :3] @ (np.append(plane[0], 1.0) * depth) + camera.origin
    pixels, found = camera.project(point[None])
    assert np.abs(pixels[0] - (u, v)).max() < 1e-3
    assert found[0] == pytest.approx(depth, rel=1e-9)


def test_rays_are_the_pixels_of_project() -> None:
    """Each ray, at any depth, projects to the centre of its pixel."""
    camera = RINGS[True][2]
    rays = camera.rays().astype(np.float64)
    rows, columns = np.mgrid[0 : camera.height : 41, 0 : camera.width : 53]
    points = camera.origin + 7.0 * rays[:, rows, columns].reshape(3, -1).T
    pixels, depth = camera.project(points)
    assert np.abs(pixels - np.stack([columns, rows], -1).reshape(-1, 2) - 0.5).max() < 1e-3
    assert np.allclose(depth, 7.0, atol=1e-4)


@given(x=st.floats(-0.7, 0.7), y=st.floats(-0.45, 0.45))
@settings(max_examples=200, deadline=None)
def test_undistort_inverts_distort(x: float, y: float) -> None:
    """Undistorting inverts the lens over its whole field of view."""
    lens = RINGS[True][0].distortion
    point = np.array([x, y])
    assert np.abs(undistort(distort(point, lens), lens) - point).max() < 1e-7


def test_a_point_outside_of_the_lens_is_not_folded_back() -> None:
    """What lies behind a camera or far outside of its view has no pixel."""
    camera = RINGS[True][0]
    pixels, _ = camera.project(camera.origin + np.array([[-5.0, 0.0, 0.0], [0.5, 30.0, 0.0]]))
    assert np.isnan(pixels).all()


@pytest.mark.parametrize("near_first", [False, True])
def test_nearer_boxes_hide_farther_ones(near_first: bool) -> None:
    """With two boxes in line, the nearer one is drawn whole and the farther one beside it, in whatever order."""
    camera = RINGS[False][0]
    near, far = lone_box(camera, 8.0, 0.0, 0.3), lone_box(camera, 16.0, 0.05, 1.0)
    renderer = Renderer(camera)
    alone = renderer.see(faces_of(near)).face >= 0
    both = faces_of(np.concatenate([near, far] if near_first else [far, near]))
    shown = renderer.see(both).face
    assert (both.box[shown[alone]] == (0 if near_first else 1)).all()
    assert (shown[~alone] >= 0).any()


def test_a_box_that_reaches_behind_the_camera_is_drawn_to_the_edge_of_the_image() -> None:
    """A long box beside the camera, partly behind it, fills the side of the image as plain sampling says."""
    camera = RINGS[True][0]
    box = np.array([[3.0, 2.2, 1.5, 12.0, 2.0, 3.0, 0.05]])
    renderer = Renderer(camera)
    shown = renderer.see(faces_of(box)).face >= 0
    rays = renderer.rays.astype(np.float64)
    # The reference: the slab method over every pixel, without windows.
    cos, sin = np.cos(box[0, 6]), np.sin(box[0, 6])
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    local, start = np.tensordot(turn, rays, 1), turn @ (camera.origin - box[0, :3])
    with np.errstate(divide="ignore"):
        t = np.stack([(side * box[0, 3:6] / 2 - start)[:, None, None] / local for side in (-1, 1)])
    enter, leave = t.min(axis=0).max(axis=0), t.max(axis=0).min(axis=0)
    expected = (enter < leave) & (enter > 0)
    assert expected.sum() > 1000
    assert (shown != expected).mean() < 1e-4


def test_lidar_points_lie_on_their_boxes_or_on_the_ground() -> None:
    """Every return lies within five standard deviations of range noise of a box surface or of the ground."""
    scene = make_scene(random(5))
    faces = faces_of(scene.boxes)
    points, returns = cast_lidar(scene, faces, 32, 256, random(6))
    outside = []
    for box in scene.boxes:
        cos, sin = np.cos(box[6]), np.sin(box[6])
        local = (points[:, :3] - box[:3]) @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        outside.append(np.linalg.norm(np.maximum(np.abs(local) - box[3:6] / 2, 0), axis=1))
    off_box = np.stack(outside).min(axis=0)
    assert np.minimum(off_box, np.abs(points[:, 2])).max() < 0.12
    assert returns.sum() >= ((off_box < 0.1) & (points[:, 2] > 0.15)).sum() > 100
    assert np.linalg.norm(points[:, :3] - ORIGIN, axis=1).max() < 50.2


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_lidar_does_not_see_through_boxes(order: list[int]) -> None:
    """Behind a wall of a truck nothing returns a beam, in whatever order the two are listed."""
    boxes = np.array([[0.0, 6.0, 4.0, 24.0, 2.0, 8.0, 0.0], [0.0, 9.0, 0.85, 0.6, 0.7, 1.7, 0.0]])[order]
    scene = replace(make_scene(random(0)), boxes=boxes, classes=np.array([0, 1])[order], colours=np.ones((2, 3)))
    _, returns = cast_lidar(scene, faces_of(boxes), 32, 256, random(1))
    truck, hidden = returns[np.argsort(order)]
    assert truck > 100
    assert hidden == 0


@pytest.mark.parametrize("seed", range(12))
def test_scenes_are_plausible(seed: int) -> None:
    """Objects are within 40 m, stand on the ground and keep apart; commands fit into their tokens."""
    scene = make_scene(random(seed))
    objects = scene.boxes[scene.classes >= 0]
    assert np.abs(objects[:, :2]).max() <= 40
    assert np.allclose(scene.boxes[:, 2], scene.boxes[:, 5] / 2)
    assert len(scene.command.encode()) <= 48
    between = np.linalg.norm(objects[:, None, :2] - objects[None, :, :2], axis=-1) + 10 * np.eye(len(objects))
    assert between.min() > 0.5
