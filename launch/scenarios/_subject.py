"""The model that faults are planted in: rows of tokens through blocks, whose work, weights and loader are options.

A model of one's own by the contract of docs/bring-your-own-model.md; nothing of scalelab is imported. Faults cause
what they are named for: they wait, compute, read or allocate where a job at fault would.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class _Late(torch.autograd.Function):
    """Passes its input on; its backward comes later."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(ctx.seconds)
        return grad_outputs[0], None


class Subject(nn.Module):
    def __init__(self, width: int, inner: int, layers: int, slow: dict[str, float], slow_rank: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(layers))
        self.head = nn.Linear(width, 1)
        self.slow, self.slow_rank = slow, slow_rank

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        slow = self.slow if _rank() == self.slow_rank else {}
        if seconds := slow.get("forward"):
            time.sleep(seconds)
        x = batch["x"]
        for block in self.blocks:
            x = block(x)
        if seconds := slow.get("backward"):
            x = _Late.apply(x, seconds)
        return (self.head(x).squeeze(-1).float() - batch["x"].sum(-1).sin()).square().mean()


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def build_model(
    width: int = 128,
    inner: int = 256,
    layers: int = 3,
    slow_forward: float = 0.0,
    slow_backward: float = 0.0,
    slow_rank: int = 1,
) -> nn.Module:
    """A rank `slow_rank` of -1 is none."""
    slow = {"forward": slow_forward, "backward": slow_backward}
    return Subject(width, inner, layers, {name: seconds for name, seconds in slow.items() if seconds}, slow_rank)


def example_batch(size: int, width: int = 128, tokens: int = 256) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(size, tokens, width)}


def build_loader(
    rank: int,
    world_size: int,
    micro_batch: int,
    seed: int,
    width: int = 128,
    tokens: int = 256,
    slow_data: float = 0.0,
    slow_data_rank: int = -1,
    read_seconds: float = 0.0,
) -> Iterator[dict[str, torch.Tensor]]:
    """Batches made beforehand, handed out in turn, each after what the fault has to do."""
    generator = torch.Generator().manual_seed(seed * 1000 + rank)
    made = [{"x": torch.randn(micro_batch, tokens, width, generator=generator)} for _ in range(4)]
    late = slow_data if slow_data_rank in (-1, rank) else 0.0
    return _Batches(made, late)  # pyright: ignore[reportReturnType]


class _Batches:
    def __init__(self, made: list[dict[str, torch.Tensor]], late: float) -> None:
        self._made, self._late = made, late

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._made:
            if self._late:
                time.sleep(self._late)
            yield batch


def blocks(model: nn.Module) -> list[nn.Module]:
    return list(model.get_submodule("blocks").children())
