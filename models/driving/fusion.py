"""Fusion: bird's-eye-view queries, started from the LiDAR grid, look at cameras, text and ego state.

B samples, Q queries per side, S source tokens, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CrossBlock, fourier, fourier_width
from .config import RANGE_METRES, ModelConfig

BANDS = 6
EYE_METRES = 1.6
"""Height of the point from which a query's direction is taken: about that of the cameras."""


def query_places(queries: int, like: Tensor) -> Tensor:
    """(Q * Q, 5): x and y of each query's centre over the range, and the unit direction to it on the ground.

    The direction makes a query comparable with a camera token's ray.
    """
    line = (torch.arange(queries, device=like.device, dtype=like.dtype) + 0.5) * (2 / queries) - 1
    x, y = (axis.flatten() for axis in torch.meshgrid(line, line, indexing="ij"))
    sight = torch.stack([x, y, torch.full_like(x, -EYE_METRES / RANGE_METRES)], dim=-1)
    return torch.cat([sight[:, :2], sight / sight.norm(dim=-1, keepdim=True)], dim=-1)


class Fusion(nn.Module):
    """coarse LiDAR tokens (B, Q * Q, D) and source tokens (B, S, D) -> fused queries (B, Q * Q, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.queries = config.queries
        self.widen, self.mix = (
            nn.Linear(fourier_width(5, BANDS), config.dim),
            nn.Linear(config.dim, config.dim),
        )
        self.blocks = nn.ModuleList(
            CrossBlock(config.dim, config.heads, config.fusion_depth) for _ in range(config.fusion_depth)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, coarse: Tensor, source: Tensor, like: Tensor) -> Tensor:
        places = fourier(query_places(self.queries, like), BANDS)
        x = coarse + self.mix(F.gelu(self.widen(places.to(self.widen.weight.dtype))))
        for block in self.blocks:
            x = block(x, source)
        return self.norm(x)
