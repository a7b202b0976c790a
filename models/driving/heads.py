"""Heads: from fused queries and the fine LiDAR grid to a class heatmap and boxes, and back to detections.

B samples, Q queries per side, G cells per side, Z channels, D width, K classes, N detections.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...data.schema import CLASSES
from .blocks import ConvBlock
from .config import RANGE_METRES, ModelConfig
from .targets import BOX_CHANNELS

PRIOR = 0.01
"""Probability of an object per cell that the heatmap starts from (Lin et al. 2017, section 4.1)."""


class Heads(nn.Module):
    """fused (B, Q * Q, D) and fine (B, Z, G, G) -> heatmap logits (B, K, G, G) and boxes (B, 8, G, G).

    The fine grid is added back to the widened queries: a pedestrian is smaller than a query's cell.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.lidar_channels
        self.stride, self.queries = config.stride, config.queries
        self.widen = nn.Linear(config.dim, channels * config.stride**2)
        self.blocks = nn.ModuleList([ConvBlock(channels, depth=1)])
        self.norm = nn.GroupNorm(8, channels)
        self.heat = nn.Conv2d(channels, len(CLASSES), 1)
        self.shape = nn.Conv2d(channels, BOX_CHANNELS, 1)
        nn.init.constant_(self.heat.bias, -math.log((1 - PRIOR) / PRIOR))  # pyright: ignore[reportArgumentType]

    def forward(self, fused: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        wide = self.widen(fused).transpose(1, 2).unflatten(2, (self.queries, self.queries))
        x = fine + F.pixel_shuffle(wide, self.stride)
        for block in self.blocks:
            x = block(x)
        x = F.silu(self.norm(x))
        return self.heat(x), self.shape(x)


def decode(heat: Tensor, shape: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `limit` highest local maxima of the heatmap: classes (B, N), scores (B, N), boxes (B, N, 7).

    A cell counts where no neighbour of its class is higher, which stands in for non-maximum suppression
    (CenterNet, Zhou et al. 2019, section 4).
    """
    grid = heat.shape[-1]
    score = heat.sigmoid()
    score = torch.where(F.max_pool2d(score, 3, stride=1, padding=1) == score, score, 0.0)
    scores, place = score.flatten(1).topk(min(limit, score[0].numel()), dim=1)
    cell = place % (grid * grid)
    found = shape.flatten(2).gather(2, cell.unsqueeze(1).expand(-1, BOX_CHANNELS, -1)).transpose(1, 2)
    corner = torch.stack([cell // grid, cell % grid], dim=-1).to(found.dtype)
    xy = (corner + 0.5 + found[..., :2]) * (2 * RANGE_METRES / grid) - RANGE_METRES
    yaw = torch.atan2(found[..., 6:7], found[..., 7:8])
    return (
        place // (grid * grid),
        scores,
        torch.cat([xy, found[..., 2:3], found[..., 3:6].exp(), yaw], dim=-1),
    )
