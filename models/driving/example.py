"""Made-up batches of the right shapes and plausible values: no file is read, nothing to learn."""

import math
from typing import Any

import torch
from torch import Tensor

from ...data.schema import CLASSES, TEXT_BYTES
from .config import RANGE_METRES, config_from

POINTS, BOXES = 10240, 16
COMMANDS = ("follow the lane", "turn left at the next junction", "keep right and slow down", "go straight on")
SIZES = ((4.5, 1.9, 1.6), (0.6, 0.6, 1.75), (1.8, 0.6, 1.7))
"""Length, width and height in metres of a usual object of each class."""


def example_batch(size: int, preset: str = "tiny", seed: int = 0, **overrides: Any) -> dict[str, Tensor]:
    """A batch of `size` samples for a preset, on the CPU, the same for the same seed.

    Images are noise, calibration is a ring of cameras, points and boxes have ragged counts. Raises ValueError
    for an unknown preset or option, or a size under 1.
    """
    if size < 1:
        raise ValueError(f"size: {size!r} is not a whole number of at least 1")
    config = config_from(preset, **overrides)
    with torch.device("cpu"):
        rng = torch.Generator().manual_seed(seed)
        images = (size, config.cameras, 3, config.image_height, config.image_width)
        return {
            "images": torch.randint(0, 256, images, generator=rng, dtype=torch.uint8),
            **_ring(size, config.cameras, config.image_width, config.image_height),
            **_points(size, rng),
            "tokens": _commands(size),
            "ego": torch.randn(size, 6, generator=rng) * torch.tensor([3.0, 0.5, 0.1, 0.1, 0.3, 0.05])
            + torch.tensor([8.0, 0.0, 0.0, 0.0, 0.8, 0.0]),
            **_boxes(size, rng),
        }


def _ring(size: int, cameras: int, width: int, height: int) -> dict[str, Tensor]:
    """Cameras 1.5 m above ground, evenly turned, each 70 degrees wide."""
    focal = width / 2 / math.tan(math.radians(35))
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    extrinsics = torch.eye(4).repeat(cameras, 1, 1)
    for index in range(cameras):
        turn = 2 * math.pi * index / cameras
        cos, sin = math.cos(turn), math.sin(turn)
        # Columns: where the camera's right, down and forward point in the ego frame.
        extrinsics[index, :3, :3] = torch.tensor([[sin, 0, cos], [-cos, 0, sin], [0, -1.0, 0]])
        extrinsics[index, :3, 3] = torch.tensor([0.8 * cos, 0.5 * sin, 1.5])
    return {
        "intrinsics": intrinsics.repeat(size, cameras, 1, 1),
        "distortion": torch.tensor([-0.05, 0.01, 0.0005, -0.0005, 0.0]).repeat(size, cameras, 1),
        "extrinsics": extrinsics.repeat(size, 1, 1, 1),
    }


def _points(size: int, rng: torch.Generator) -> dict[str, Tensor]:
    distance = 2 + 46 * torch.rand(size, POINTS, generator=rng) ** 2
    angle = 2 * math.pi * torch.rand(size, POINTS, generator=rng)
    height = 2 * torch.rand(size, POINTS, generator=rng) ** 3
    points = torch.stack([distance * angle.cos(), distance * angle.sin(), height, angle / (2 * math.pi)], dim=-1)
    counts = torch.randint(POINTS * 3 // 4, POINTS + 1, (size, 1), generator=rng)
    mask = torch.arange(POINTS) < counts
    return {"points": points * mask.unsqueeze(-1), "points_mask": mask}


def _boxes(size: int, rng: torch.Generator) -> dict[str, Tensor]:
    counts = torch.randint(1, BOXES + 1, (size, 1), generator=rng)
    mask = torch.arange(BOXES) < counts
    classes = torch.multinomial(torch.tensor([0.8, 0.08, 0.12]), size * BOXES, True, generator=rng).view(size, BOXES)
    lengths = torch.tensor(SIZES)[classes] * (0.9 + 0.2 * torch.rand(size, BOXES, 3, generator=rng))
    xy = (torch.rand(size, BOXES, 2, generator=rng) * 2 - 1) * (RANGE_METRES - 2)
    yaw = (torch.rand(size, BOXES, 1, generator=rng) * 2 - 1) * math.pi
    boxes = torch.cat([xy, lengths[..., 2:] / 2, lengths, yaw], dim=-1)
    assert len(CLASSES) == len(SIZES)
    return {
        "boxes": boxes * mask.unsqueeze(-1),
        "classes": torch.where(mask, classes, -1),
        "boxes_mask": mask,
    }


def _commands(size: int) -> Tensor:
    tokens = torch.zeros(size, TEXT_BYTES, dtype=torch.int64)
    for index in range(size):
        text = COMMANDS[index % len(COMMANDS)].encode()[:TEXT_BYTES]
        tokens[index, : len(text)] = torch.tensor(list(text)) + 1
    return tokens
