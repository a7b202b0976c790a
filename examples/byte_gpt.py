"""A model that is not ours: a byte-level GPT on Python's own source code. All that scalelab asks for is in this file.

scalelab run --model examples/byte_gpt.py --strategy ddp --gpus 2
scalelab run --model examples/byte_gpt.py --model-option layers=6 --model-option width=256 --strategy zero2
"""

from __future__ import annotations

import argparse
import json.decoder
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY = 256


class Block(nn.Module):
    """Pre-norm attention and MLP; x is (batch, context, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class ByteGPT(nn.Module):
    """Predicts each next byte; forward returns the mean cross-entropy in nats."""

    def __init__(self, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.layers = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        text = batch["bytes"]
        x = self.embed(text[:, :-1]) + self.position[: text.shape[1] - 1]
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), text[:, 1:].flatten())


def build_model(layers: int = 4, width: int = 128, heads: int = 4, context: int = 128) -> nn.Module:
    return ByteGPT(layers, width, heads, context)


def example_batch(size: int, context: int = 128) -> dict[str, torch.Tensor]:
    return {"bytes": torch.randint(VOCABULARY, (size, context + 1))}


def build_loader(
    rank: int, world_size: int, micro_batch: int, seed: int, context: int = 128
) -> Iterator[dict[str, torch.Tensor]]:
    """Endless batches of random excerpts; every rank draws its own."""
    text = b"".join(Path(str(module.__file__)).read_bytes() for module in (argparse, json.decoder, random))
    source = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = torch.Generator().manual_seed(seed * world_size + rank)
    while True:
        starts = torch.randint(len(source) - context - 1, (micro_batch,), generator=generator)
        yield {"bytes": torch.stack([source[start : start + context + 1] for start in starts.tolist()])}


def blocks(model: nn.Module) -> list[nn.Module]:
    return list(model.get_submodule("layers").children())
