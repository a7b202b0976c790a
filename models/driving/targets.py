"""What the heads should say: heatmap and box targets from labels, and the losses per sample.

B samples, M boxes (padded), K classes, G cells per side.
"""

import torch
from torch import Tensor

from ...data.schema import CLASSES
from .config import RANGE_METRES
from .lidar import cell_of

BOX_CHANNELS = 8
"""Offset of the centre in x, y (cells), z (metres), log of length, width, height (metres), sin and cos yaw"""
BOX_WEIGHT = 0.25
"""Weight of the box loss beside the heatmap loss (CenterPoint, Yin et al. 2021)."""


def heatmap_targets(boxes: Tensor, classes: Tensor, valid: Tensor, grid: int) -> Tensor:
    """(B, K, G, G) in 0 .. 1: a gaussian around each box's cell, the maximum where they overlap.

    boxes (B, M, 7), classes (B, M), valid (B, M). As in CenterNet (Zhou et al. 2019, "Objects as points",
    section 3): exactly 1 in the cell of the centre, standard deviation adapted to the size: a sixth of the
    footprint's diagonal, at least half a cell.
    """
    number, _, _ = cell_of(boxes[..., :2], grid)
    cell = 2 * RANGE_METRES / grid
    sigma = (boxes[..., 3:5].norm(dim=-1) / (6 * cell)).clamp(min=0.5).unsqueeze(-1)
    line = torch.arange(grid, device=boxes.device, dtype=boxes.dtype)
    along_x = torch.exp(-(((line - (number // grid).unsqueeze(-1)) / sigma) ** 2) / 2)
    along_y = torch.exp(-(((line - (number % grid).unsqueeze(-1)) / sigma) ** 2) / 2)
    bumps = along_x.unsqueeze(-1) * along_y.unsqueeze(-2)
    layers = []
    for index in range(len(CLASSES)):
        chosen = (valid & (classes == index)).to(boxes.dtype)
        layers.append((bumps * chosen[..., None, None]).amax(dim=1))
    return torch.stack(layers, dim=1)


def box_targets(boxes: Tensor, grid: int) -> Tensor:
    """(B, M, 8) in the units of `BOX_CHANNELS`."""
    _, offset, _ = cell_of(boxes[..., :2], grid)
    yaw = boxes[..., 6:7]
    return torch.cat([offset, boxes[..., 2:3], boxes[..., 3:6].clamp(min=0.01).log(), yaw.sin(), yaw.cos()], dim=-1)


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """(B, K, G, G) twice -> (B,): CenterNet's penalty-reduced focal loss (equation 1, alpha 2, beta 4)."""
    positive = (target == 1).to(logits.dtype)
    # logsigmoid stays finite where log(sigmoid) would not.
    log_p, log_not_p = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    p = logits.sigmoid()
    hit = positive * (1 - p) ** 2 * log_p
    miss = (1 - positive) * (1 - target) ** 4 * p**2 * log_not_p
    return -(hit + miss).sum(dim=(1, 2, 3))


def sample_losses(heat: Tensor, shape: Tensor, boxes: Tensor, classes: Tensor, mask: Tensor) -> Tensor:
    """(B,): each sample's loss, normalised by its own number of boxes and so independent of its neighbours.

    heat (B, K, G, G) logits, shape (B, 8, G, G), labels as in a batch. Padded boxes and boxes outside of the
    grid do not count, whatever they hold.
    """
    grid = heat.shape[-1]
    boxes = torch.where(mask.unsqueeze(-1), boxes, 0.0)
    number, _, inside = cell_of(boxes[..., :2], grid)
    valid = mask & inside
    with torch.no_grad():
        target = heatmap_targets(boxes, classes, valid, grid)
        wanted = box_targets(boxes, grid)
    found = shape.flatten(2).gather(2, number.unsqueeze(1).expand(-1, BOX_CHANNELS, -1)).transpose(1, 2)
    off = ((found - wanted).abs().sum(-1) * valid.to(found.dtype)).sum(-1)
    count = valid.sum(-1).clamp(min=1).to(found.dtype)
    return (focal_loss(heat, target) + BOX_WEIGHT * off) / count
