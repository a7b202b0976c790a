"""A model of a few hundred parameters whose tensor sizes divide by nothing, behind the model contract."""

from __future__ import annotations

import torch
from torch import nn


class Micro(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(7, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        predicted = self.scale * self.head(self.layers(batch["x"])).squeeze(-1)
        return (predicted.float() - batch["y"]).square().mean()


def build_model(width: int = 13) -> nn.Module:
    return Micro(width)


def example_batch(size: int) -> dict[str, torch.Tensor]:
    x = torch.randn(size, 7)
    return {"x": x, "y": x.sum(-1).sin()}


def blocks(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule("layers")]
