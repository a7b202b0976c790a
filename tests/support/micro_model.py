"""A small model behind the model contract whose tensor sizes divide by nothing: blocks, a frozen parameter, buffers."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

WIDTH = 13
WIDTHS = (WIDTH, 31, 47)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.second(F.gelu(self.first(self.norm(x))))


# Ways in which models of others differ: blocks behind a frozen stem, blocks called by name, a tied matrix.
KINDS = ("plain", "frozen stem", "by name", "tied")


class Micro(nn.Module):
    def __init__(self, width: int, kind: str = "plain") -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Linear(7, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.full((3,), 0.5), requires_grad=False)
        self.register_buffer("gain", torch.full((5,), 2.0, dtype=torch.float64))
        self.register_buffer("number", torch.arange(3))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = self.stem(batch["x"])
        for block in self.blocks:
            hidden = block(x=hidden) if self.kind == "by name" else block(hidden)
        predicted = self.scale * self.head(hidden).squeeze(-1) * self.get_buffer("gain")[0] + self.shift[0]
        loss = (predicted.float() - batch["y"]).square().mean()
        if "spike" in batch:  # a finite loss whose gradient is not
            loss = loss + (self.scale * 0).float().abs().sqrt().sum()
        return loss


def build_model(width: int = WIDTH, kind: str = "plain") -> nn.Module:
    model = Micro(width, kind)
    if kind == "frozen stem":
        model.stem.requires_grad_(False)
    if kind == "tied":
        first, second = blocks(model)
        second.get_submodule("first").weight = first.get_submodule("first").weight
    return model


def example_batch(size: int) -> dict[str, torch.Tensor]:
    x = torch.randn(size, 7)
    return {"x": x, "y": 3 * x.sum(-1).sin()}


def blocks(model: nn.Module) -> list[nn.Module]:
    return list(model.get_submodule("blocks").children())
