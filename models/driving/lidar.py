"""LiDAR tower: points become a fine bird's-eye grid of pillars, refined by convolutions.

B samples, P points, G cells per side, Q queries per side, Z channels, D width. A grid's rows run along x
(forward), its columns along y (left); cell (i, j) is number i * G + j.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import ConvBlock, fourier, fourier_width
from .config import RANGE_METRES, ModelConfig

BANDS = 4
HEIGHT_METRES = 4.0


def cell_of(xy: Tensor, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which cell a position (..., 2) in metres falls in.

    Returns the cell's number (...,) int64 (0 where outside), the offset from its centre in cells (..., 2),
    and whether the position is inside the grid (...,).
    """
    scaled = (xy + RANGE_METRES) * (grid / (2 * RANGE_METRES))
    inside = ((scaled >= 0) & (scaled < grid)).all(-1)
    floor = torch.where(inside.unsqueeze(-1), scaled.floor(), 0.0)
    number = (floor[..., 0] * grid + floor[..., 1]).long()
    return number, torch.where(inside.unsqueeze(-1), scaled - floor - 0.5, 0.0), inside


class LidarTower(nn.Module):
    """points (B, P, 4), mask (B, P) -> fine grid (B, Z, G, G) and coarse tokens (B, Q * Q, D).

    The mean of a one-layer feature of each point per cell, as in PointPillars (Lang et al. 2019) but with a
    mean and the logarithm of the count in place of the maximum: a sum by index is deterministic where asked
    to be.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels, stride = config.lidar_channels, config.stride
        self.grid = config.grid
        self.point = nn.Linear(6 + fourier_width(1, BANDS), channels)
        self.pillar = nn.Linear(channels + 1, channels)
        self.blocks = nn.ModuleList(ConvBlock(channels, config.lidar_depth) for _ in range(config.lidar_depth))
        self.coarsen = nn.Conv2d(channels, config.dim, stride, stride=stride)

    def forward(self, points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        fine = self._pillars(points, mask)
        for block in self.blocks:
            fine = block(fine)
        return fine, self.coarsen(fine).flatten(2).transpose(1, 2)

    def _pillars(self, points: Tensor, mask: Tensor) -> Tensor:
        batch, count, cells = points.shape[0], points.shape[1], self.grid * self.grid
        points = torch.where(mask.unsqueeze(-1), points, 0.0)
        number, offset, inside = cell_of(points[..., :2], self.grid)
        # Padding and far points share one spare cell at the end, which is cut off.
        number = torch.where(inside & mask, number, cells)
        number = number + torch.arange(batch, device=points.device).unsqueeze(1) * (cells + 1)
        near = points[..., :2] / RANGE_METRES
        features = torch.cat(
            [near, near.norm(dim=-1, keepdim=True), points[..., 3:], 2 * offset,
             fourier(points[..., 2:3] / HEIGHT_METRES, BANDS)], dim=-1,
        )  # fmt: skip
        # Summed and counted in the points' own precision: bfloat16 cannot count beyond 256.
        hidden = F.silu(self.point(features.to(self.point.weight.dtype))).to(points.dtype).flatten(0, 1)
        rows, number = batch * (cells + 1), number.flatten()
        total = hidden.new_zeros(rows, hidden.shape[-1]).index_add(0, number, hidden)
        hits = hidden.new_zeros(rows).index_add(0, number, hidden.new_ones(batch * count)).unsqueeze(-1)
        pillars = torch.cat([total / hits.clamp(min=1), hits.log1p()], dim=-1)
        pillars = pillars.reshape(batch, cells + 1, -1)[:, :cells]
        pillars = self.pillar(pillars.to(self.pillar.weight.dtype))
        return pillars.transpose(1, 2).reshape(batch, -1, self.grid, self.grid)
