"""What a generated dataset consists of: `DatasetSpec`, its name and where it is kept. Imports no torch."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .errors import DataError

GENERATOR_VERSION = 1
"""Counts changes of what the generator draws: part of a dataset's name, so that old data is never taken for new."""

_LIMITS: dict[str, tuple[int, int]] = {
    "train_samples": (0, 100_000_000),
    "val_samples": (0, 100_000_000),
    "cameras": (1, 16),
    "width": (16, 8192),
    "height": (16, 8192),
    "samples_per_shard": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
    "lidar_beams": (1, 256),
    "lidar_columns": (8, 8192),
    "jpeg_quality": (1, 100),
}


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Everything that decides the bytes of a generated dataset. Raises `DataError` on a value out of range."""

    train_samples: int
    """Scenes in the `train` split."""
    val_samples: int
    """Scenes in the `val` split; drawn from the same distribution, never equal to a training scene."""
    cameras: int = 6
    """Cameras in the ring around the vehicle."""
    width: int
    """Width of a rendered image, pixels."""
    height: int
    """Height of a rendered image, pixels."""
    samples_per_shard: int
    """Scenes in one tar file; the last shard of a split may hold fewer."""
    seed: int = 0
    """Scene i of a split is a function of (seed, split, i) alone."""
    distortion: bool = True
    """Whether the lenses have Brown-Conrady distortion."""
    lidar_beams: int = 32
    """LiDAR rings, evenly spaced in elevation."""
    lidar_columns: int = 256
    """LiDAR firings per turn."""
    jpeg_quality: int = 88
    """libjpeg quality of the images."""

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise DataError(f"{name} = {value!r}: must be a whole number from {low} to {high}")
        if type(self.distortion) is not bool:
            raise DataError(f"distortion = {self.distortion!r}: must be true or false")
        if self.train_samples + self.val_samples == 0:
            raise DataError("train_samples and val_samples are both 0: at least one scene is needed")

    @property
    def name(self) -> str:
        """Folder name: readable sizes, then a hash of every field and of `GENERATOR_VERSION`."""
        content = json.dumps({**asdict(self), "generator_version": GENERATOR_VERSION}, sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:10]
        return f"scenes-{self.train_samples}+{self.val_samples}-{self.cameras}x{self.width}x{self.height}-{digest}"

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> DatasetSpec:
        """The spec written in a manifest; raises `DataError` on unknown or missing fields."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise DataError(f"dataset spec has unknown fields {unknown}: allowed are {sorted(known)}")
        try:
            return cls(**values)  # type: ignore[arg-type]
        except TypeError as error:
            raise DataError(f"dataset spec is incomplete: {error}") from None


def cache_folder() -> Path:
    """Where generated datasets are kept: `$XDG_CACHE_HOME/scalelab/data`, else `~/.cache/scalelab/data`.

    As the XDG base directory specification asks, a relative `XDG_CACHE_HOME` is not used.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "scalelab" / "data"
