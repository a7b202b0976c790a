"""Targets, losses and geometry against references written as plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.data.camera import ring
from scalelab.models.driving import build_model, example_batch
from scalelab.models.driving.blocks import fourier, fourier_width
from scalelab.models.driving.camera import patch_rays, undistort
from scalelab.models.driving.heads import PRIOR, decode
from scalelab.models.driving.lidar import LidarTower, cell_of
from scalelab.models.driving.targets import (
    BOX_WEIGHT,
    box_targets,
    focal_loss,
    heatmap_targets,
    sample_losses,
)

GRID = 20
CELL = 80 / GRID


def labels(seed, size=2, boxes=6):
    """Random boxes, some of them outside of the grid, some padded."""
    batch = example_batch(size, "nano", seed=seed)
    real = batch["boxes"][:, :boxes].double()
    real[:, 0, 0] = 41.0
    return real, batch["classes"][:, :boxes], batch["boxes_mask"][:, :boxes]


def slow_target(boxes, classes, mask):
    target = torch.zeros(len(boxes), 3, GRID, GRID, dtype=torch.float64)
    for b in range(len(boxes)):
        for m in range(boxes.shape[1]):
            x, y, _, length, width, _, _ = boxes[b, m].tolist()
            if not mask[b, m] or not (-40 <= x < 40 and -40 <= y < 40):
                continue
            row, column = math.floor((x + 40) / CELL), math.floor((y + 40) / CELL)
            sigma = max(math.hypot(length, width) / 6 / CELL, 0.5)
            for i in range(GRID):
                for j in range(GRID):
                    bump = math.exp(-((i - row) ** 2 + (j - column) ** 2) / (2 * sigma**2))
                    k = int(classes[b, m])
                    target[b, k, i, j] = max(float(target[b, k, i, j]), bump)
    return target


def slow_focal(logits, target):
    total = torch.zeros(len(logits), dtype=torch.float64)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in logits.shape)).tolist():
        p, y = 1 / (1 + math.exp(-logits[tuple(place)])), float(target[tuple(place)])
        total[place[0]] -= (1 - p) ** 2 * math.log(p) if y == 1 else (1 - y) ** 4 * p**2 * math.log(1 - p)
    return total


@pytest.mark.parametrize("seed", [0, 1])
def test_targets_and_losses_match_plain_loops(seed):
    """Heatmap, focal loss and box loss equal the definitions written cell by cell and box by box."""
    boxes, classes, mask = labels(seed)
    rng = torch.Generator().manual_seed(seed)
    heat = torch.randn(2, 3, GRID, GRID, generator=rng, dtype=torch.float64)
    shape = torch.randn(2, 8, GRID, GRID, generator=rng, dtype=torch.float64)
    target = slow_target(boxes, classes, mask)
    _, _, inside = cell_of(boxes[..., :2], GRID)
    torch.testing.assert_close(heatmap_targets(boxes, classes, mask & inside, GRID), target)
    expected = slow_focal(heat, target)
    torch.testing.assert_close(focal_loss(heat, target), expected)
    for b in range(2):
        off, count = 0.0, 0
        for m in range(boxes.shape[1]):
            x, y, z, length, width, height, yaw = boxes[b, m].tolist()
            if mask[b, m] and -40 <= x < 40 and -40 <= y < 40:
                i, j = math.floor((x + 40) / CELL), math.floor((y + 40) / CELL)
                want = [(x + 40) / CELL - i - 0.5, (y + 40) / CELL - j - 0.5, z, math.log(length),
                        math.log(width), math.log(height), math.sin(yaw), math.cos(yaw)]  # fmt: skip
                off += sum(abs(a - b) for a, b in zip(want, shape[b, :, i, j].tolist(), strict=True))
                count += 1
        expected[b] = (expected[b] + BOX_WEIGHT * off) / max(count, 1)
    torch.testing.assert_close(sample_losses(heat, shape, boxes, classes, mask), expected)


def test_focal_loss_is_finite_for_sure_mistakes():
    """Logits far from zero give a large finite loss and finite gradients, also in float32."""
    logits = torch.full((1, 3, 4, 4), -200.0, requires_grad=True)
    target = torch.zeros(1, 3, 4, 4)
    target[0, 0, 0, 0] = 1
    loss = focal_loss(logits, target)
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.tensor([200.0]))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_perfect_heads_decode_to_the_labels():
    """Boxes written into a heatmap and a box grid come back from `decode`, centre, size and yaw."""
    boxes = torch.tensor([[[3.3, -17.1, 0.8, 4.5, 1.9, 1.6, 2.5], [-39.9, 39.9, 0.9, 0.6, 0.6, 1.7, -3.0]]])
    classes, mask = torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    target = heatmap_targets(boxes, classes, mask, GRID)
    number, _, _ = cell_of(boxes[..., :2], GRID)
    shape = torch.zeros(1, 8, GRID * GRID)
    shape[0, :, number[0]] = box_targets(boxes, GRID)[0].T
    heat = torch.where(target == 1, 5.0, -5.0)
    found, scores, back = decode(heat, shape.view(1, 8, GRID, GRID), limit=2)
    order = found[0].argsort()
    torch.testing.assert_close(back[0][order], boxes[0], rtol=1e-4, atol=1e-4)
    assert (scores > 0.99).all()


def test_decode_keeps_local_maxima_only():
    """A cell beside a higher one of its class is not a detection; a lone cell of another class is."""
    heat = torch.full((1, 3, GRID, GRID), -9.0)
    heat[0, 0, 4, 4], heat[0, 0, 4, 5], heat[0, 1, 4, 5] = 3.0, 2.0, 1.0
    classes, scores, _ = decode(heat, torch.zeros(1, 8, GRID, GRID), limit=3)
    assert classes[0, :2].tolist() == [0, 1]
    assert scores[0, 2] < 0.01


@given(st.floats(-50, 50), st.floats(-50, 50), st.sampled_from([10, 40, 160]))
def test_cells_are_found_by_position(x, y, grid):
    """A position inside lies within half a cell of its cell's centre; outside is said so, number 0."""
    number, offset, inside = cell_of(torch.tensor([x, y], dtype=torch.float64), grid)
    cell = 80 / grid
    assert bool(inside) == (-40 <= x < 40 and -40 <= y < 40)
    if inside:
        centre = torch.tensor([number // grid, number % grid]) + 0.5
        back = (centre + offset) * cell - 40
        torch.testing.assert_close(back, torch.tensor([x, y], dtype=torch.float64), rtol=0, atol=1e-9)
        assert offset.abs().max() <= 0.5
    else:
        assert int(number) == 0


def distort(plane, k1, k2, p1, p2, k3):
    x, y = plane
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


@settings(max_examples=50)
@given(st.floats(-0.7, 0.7), st.floats(-0.4, 0.4), st.floats(-0.1, 0.1), st.floats(-0.01, 0.01))
def test_undistort_inverts_the_lens(x, y, k1, p1):
    """Distorting a point and undistorting it gives it back to far less than a pixel."""
    coefficients = (k1, 0.01, p1, -p1, 0.001)
    seen = torch.tensor(distort((x, y), *coefficients), dtype=torch.float64)
    back = undistort(seen, torch.tensor(coefficients, dtype=torch.float64))
    torch.testing.assert_close(back, torch.tensor([x, y], dtype=torch.float64), rtol=0, atol=1e-3)


def test_patch_rays_hit_their_pixels():
    """A point along each ray, brought back into its camera, projects onto the patch's centre."""
    batch = example_batch(1, "nano")
    k, e = batch["intrinsics"].double(), batch["extrinsics"].double()
    d = batch["distortion"].double()
    origins, ways = patch_rays(k, d, e, rows=6, columns=10, patch=16)
    torch.testing.assert_close(ways.norm(dim=-1), torch.ones(1, 6, 60, dtype=torch.float64))
    for camera in range(6):
        points = origins[0, camera] + 7.0 * ways[0, camera]
        inverse = torch.linalg.inv(e[0, camera])
        local = points @ inverse[:3, :3].T + inverse[:3, 3]
        u, v = distort((local / local[:, 2:])[:, :2].T, *d[0, camera])
        u, v = u * k[0, camera, 0, 0] + k[0, camera, 0, 2], v * k[0, camera, 1, 1] + k[0, camera, 1, 2]
        centres = torch.cartesian_prod(torch.arange(6) * 16 + 8, torch.arange(10) * 16 + 8).double()
        torch.testing.assert_close(torch.stack([v, u], dim=-1), centres, rtol=0, atol=1e-3)


def test_a_point_lands_in_its_pillar_only():
    """One more point changes the pillar of its own cell, and no point order changes anything."""
    torch.manual_seed(0)
    tower, batch = build_model("nano").lidar.double(), example_batch(1, "nano")
    assert isinstance(tower, LidarTower)
    points, mask = batch["points"].double(), batch["points_mask"]
    shuffled = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(0))
    before = tower._pillars(points, mask)
    torch.testing.assert_close(tower._pillars(points[:, shuffled], mask[:, shuffled]), before)
    extra = torch.tensor([[[10.5, -20.5, 0.5, 0.1], [60.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    after = tower._pillars(torch.cat([points, extra], 1), torch.cat([mask, torch.ones(1, 2, dtype=torch.bool)], 1))
    changed = (after != before).any(1)[0].nonzero().tolist()
    assert changed == [[25, 9]]


@pytest.mark.parametrize("count", [256, 257, 3000])
def test_crowded_pillars_are_exact_in_bfloat16(count):
    """A pillar of many equal points is that of a few, but for the count: sums do not stall in 16 bits."""
    torch.manual_seed(0)
    tower = build_model("nano").lidar
    points = torch.tensor([10.5, -20.5, 0.5, 0.1]).expand(1, count, 4)
    mask = torch.ones(1, count, dtype=torch.bool)
    exact = tower._pillars(points, mask)
    coarse = tower.bfloat16()._pillars(points, mask)
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), exact, rtol=0.05, atol=0.05)


def test_heads_start_from_a_rare_object():
    """At the start the heatmap's mean probability is near the prior: empty cells do not swamp the loss."""
    torch.manual_seed(0)
    with torch.no_grad():
        heat, _ = build_model("nano")(example_batch(2, "nano"), raw=True)
    assert PRIOR / 4 < heat.sigmoid().mean() < PRIOR * 4


def test_fourier_features():
    """Values first, then sines and cosines of pi * 2^k times them; width as promised."""
    features = fourier(torch.tensor([[0.5, -0.25]], dtype=torch.float64), bands=2)
    assert features.shape == (1, fourier_width(2, 2))
    expected = [0.5, -0.25, 1.0, 0.0, -math.sqrt(0.5), -1.0, 0.0, -1.0, math.sqrt(0.5), 0.0]
    torch.testing.assert_close(features[0], torch.tensor(expected, dtype=torch.float64))


def test_patch_rays_are_those_the_scenes_are_drawn_with():
    """With the generator's own cameras and lenses, the model's rays are the renderer's, to a tenth of a pixel."""
    cameras = ring(6, 160, 96)
    k, d, e = (
        torch.tensor(np.stack([getattr(camera, name) for camera in cameras]))[None]
        for name in ("intrinsics", "distortion", "extrinsics")
    )
    origins, ways = patch_rays(k, d, e, rows=6, columns=10, patch=16)
    for index, camera in enumerate(cameras):
        pixels, depth = camera.project((origins[0, index] + 9 * ways[0, index]).numpy())
        centres = torch.cartesian_prod(torch.arange(6) * 16 + 8, torch.arange(10) * 16 + 8).flip(-1)
        assert (depth > 0).all()
        np.testing.assert_allclose(pixels, centres, atol=0.1)
