"""The repeated units that the towers are made of: attention blocks and convolution blocks.

B batch, N tokens, S source tokens, D width, Z channels, G cells per side.

Blocks take and return tensors only, so that they can be checkpointed and sharded one by one. Norms are
LayerNorm and GroupNorm: the statistics of a BatchNorm would depend on how a batch is split over ranks.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def fourier(x: Tensor, bands: int) -> Tensor:
    """(..., n) -> (..., n * (1 + 2 * bands)): x with sin and cos of pi * 2^k * x, k = 0 .. bands-1.

    The positional encoding of NeRF (Mildenhall et al. 2020, equation 4); meant for x in about -1 .. 1.
    """
    scales = math.pi * 2.0 ** torch.arange(bands, device=x.device, dtype=x.dtype)
    angles = (x.unsqueeze(-1) * scales).flatten(-2)
    return torch.cat([x, angles.sin(), angles.cos()], dim=-1)


def fourier_width(values: int, bands: int) -> int:
    """Width of `fourier` for `values` inputs."""
    return values * (1 + 2 * bands)


class Attention(nn.Module):
    """Multi-head attention of x (B, N, D) to source (B, S, D), or to itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        query = self._split(self.query(x))
        key, value = self.key_value(source).chunk(2, dim=-1)
        mixed = F.scaled_dot_product_attention(query, self._split(key), self._split(value))
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Mlp(nn.Sequential):
    """The usual two layers with four times the width between them."""

    def __init__(self, dim: int) -> None:
        super().__init__(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))


class SelfBlock(nn.Module):
    """Pre-norm transformer block on x (B, N, D). `depth` is the number of blocks in its tower."""

    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm_self, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attend, self.mlp = Attention(dim, heads), Mlp(dim)
        calm(self.attend.out, residuals=2 * depth)
        calm(self.mlp[2], residuals=2 * depth)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm_self(x)
        x = x + self.attend(inner, inner)
        return x + self.mlp(self.norm_mlp(x))


class CrossBlock(nn.Module):
    """Pre-norm block in which x (B, N, D) attends to itself, then to source (B, S, D)."""

    def __init__(self, dim: int, heads: int, depth: int) -> None:
        super().__init__()
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(dim) for _ in range(3))
        self.attend, self.cross, self.mlp = Attention(dim, heads), Attention(dim, heads), Mlp(dim)
        for out in (self.attend.out, self.cross.out, self.mlp[2]):
            calm(out, residuals=3 * depth)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        inner = self.norm_self(x)
        x = x + self.attend(inner, inner)
        x = x + self.cross(self.norm_cross(x), source)
        return x + self.mlp(self.norm_mlp(x))


class ConvBlock(nn.Module):
    """Pre-activation residual block on a grid (B, Z, G, G) (He et al. 2016, "Identity mappings")."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv_1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)
        calm(self.conv_2, residuals=depth)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv_1(F.silu(self.norm_1(x)))
        return x + self.conv_2(F.silu(self.norm_2(inner)))


@torch.no_grad()
def calm(layer: nn.Module, residuals: int) -> None:
    """Scale a residual's last weights by 1/sqrt(residuals in the tower), so that depth does not grow the
    variance of the stream at the start (GPT-2, Radford et al. 2019, section 2.3)."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    layer.weight.mul_(residuals**-0.5)
