"""Camera tower: images and their calibration become tokens that know where they look.

B samples, C cameras, H x W pixels, p patch side, N = (H/p)(W/p) patches per camera, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import SelfBlock, fourier, fourier_width
from .config import ModelConfig

BANDS = 6
RIG_METRES = 4.0
"""Cameras sit within about this distance of the ego origin; brings origins to the -1 .. 1 of `fourier`."""
UNDISTORT_ROUNDS = 8


def undistort(seen: Tensor, coefficients: Tensor) -> Tensor:
    """Invert the Brown-Conrady lens model by fixed-point iteration (Brown 1966; the scheme of OpenCV).

    seen (..., 2): distorted coordinates on the plane z = 1; coefficients (..., 5): k1, k2, p1, p2, k3.
    A fixed number of rounds keeps the shape of the work independent of the data.
    """
    k1, k2, p1, p2, k3 = coefficients.unbind(-1)
    x, y = seen.unbind(-1)
    for _ in range(UNDISTORT_ROUNDS):
        square = x * x + y * y
        radial = 1 + square * (k1 + square * (k2 + square * k3))
        tangent_x = 2 * p1 * x * y + p2 * (square + 2 * x * x)
        tangent_y = p1 * (square + 2 * y * y) + 2 * p2 * x * y
        x, y = (seen[..., 0] - tangent_x) / radial, (seen[..., 1] - tangent_y) / radial
    return torch.stack([x, y], dim=-1)


def patch_rays(intrinsics: Tensor, distortion: Tensor, extrinsics: Tensor, rows: int, columns: int, patch: int):
    """Origin and unit direction, in the ego frame, of the ray through each patch's centre.

    intrinsics (B, C, 3, 3) in pixels, distortion (B, C, 5), extrinsics (B, C, 4, 4) camera to ego
    -> origins (B, C, 3) in metres, directions (B, C, rows * columns, 3).
    Written in elementwise operations: a matrix product would run in 16 bits under autocast.
    """
    steps = {"device": intrinsics.device, "dtype": intrinsics.dtype}
    v, u = torch.meshgrid(
        (torch.arange(rows, **steps) + 0.5) * patch,
        (torch.arange(columns, **steps) + 0.5) * patch,
        indexing="ij",
    )
    k = intrinsics.unsqueeze(2)
    y = (v.flatten() - k[..., 1, 2]) / k[..., 1, 1]
    x = (u.flatten() - k[..., 0, 2] - k[..., 0, 1] * y) / k[..., 0, 0]
    plane = undistort(torch.stack([x, y], dim=-1), distortion.unsqueeze(2))
    in_camera = torch.cat([plane, torch.ones_like(plane[..., :1])], dim=-1)
    turned = (extrinsics[:, :, None, :3, :3] * in_camera.unsqueeze(-2)).sum(-1)
    return extrinsics[..., :3, 3], turned / turned.norm(dim=-1, keepdim=True)


class RayEmbedding(nn.Module):
    """Origin and direction of a ray, both (..., 3), -> (..., D) through Fourier features and two layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.widen, self.mix = nn.Linear(fourier_width(6, BANDS), dim), nn.Linear(dim, dim)

    def forward(self, origins: Tensor, directions: Tensor) -> Tensor:
        features = fourier(torch.cat([origins / RIG_METRES, directions], dim=-1), BANDS)
        return self.mix(F.gelu(self.widen(features.to(self.widen.weight.dtype))))


class CameraTower(nn.Module):
    """images uint8 (B, C, 3, H, W) and calibration -> tokens (B, C * N, D).

    Cameras do not see each other here, and a patch's place is known by its ray alone: any image size that the
    patches divide and any number of cameras will do.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.embed = nn.Conv2d(3, config.dim, config.patch, stride=config.patch)
        self.rays = RayEmbedding(config.dim)
        self.blocks = nn.ModuleList(
            SelfBlock(config.dim, config.heads, config.camera_depth) for _ in range(config.camera_depth)
        )
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, images: Tensor, intrinsics: Tensor, distortion: Tensor, extrinsics: Tensor) -> Tensor:
        batch, cameras, _, height, width = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"images: {width}x{height} pixels do not divide into patches of {self.patch}")
        rows, columns = height // self.patch, width // self.patch
        # In place: a copy of every image is a sensible share of a small model's step.
        pixels = images.flatten(0, 1).to(self.embed.weight.dtype).div_(127.5).sub_(1)
        x = self.embed(pixels).flatten(2).transpose(1, 2)
        origins, directions = patch_rays(intrinsics, distortion, extrinsics, rows, columns, self.patch)
        x = x + self.rays(origins.unsqueeze(2).expand_as(directions), directions).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x).reshape(batch, cameras * rows * columns, -1)
