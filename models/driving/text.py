"""Text and ego tower: the route command's bytes and the vehicle's own motion become tokens.

B samples, T text bytes, D width.
"""

import torch
from torch import Tensor, nn

from ...data.schema import EGO_FIELDS, TEXT_BYTES
from .blocks import SelfBlock
from .config import ModelConfig

EGO_SCALES = (10.0, 2.0, 0.3, 0.3, 1.0, 0.3)
"""Usual size of each of `EGO_FIELDS` in its own unit (m/s, m/s2, rad/s, rad, m, m): brings them near 1."""


class TextTower(nn.Module):
    """tokens int64 (B, T), ego (B, 6) -> (B, T + 1, D), T at most `TEXT_BYTES`.

    The text of a batch has a fixed length, so its padding is a byte like any other with a learned embedding: no mask,
    which keeps attention on its fused kernels here and in the fusion.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.bytes = nn.Embedding(257, config.dim)
        self.places = nn.Parameter(torch.empty(TEXT_BYTES, config.dim).normal_(std=0.1))
        self.ego = nn.Linear(len(EGO_FIELDS), config.dim)
        self.blocks = nn.ModuleList(
            SelfBlock(config.dim, config.heads, config.text_depth) for _ in range(config.text_depth)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, tokens: Tensor, ego: Tensor) -> Tensor:
        scaled = (ego / ego.new_tensor(EGO_SCALES)).to(self.ego.weight.dtype)
        x = torch.cat([self.bytes(tokens) + self.places[: tokens.shape[1]], self.ego(scaled).unsqueeze(1)], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
