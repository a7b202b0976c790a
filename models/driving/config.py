"""The numbers that define one driving model, checked when they are given."""

import difflib
from dataclasses import dataclass, fields
from typing import Any

from ..presets import load_preset

RANGE_METRES = 40.0
"""The bird's-eye grid covers x and y from -40 m to +40 m around the vehicle: where objects are."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Architecture of one model; every field is a positive whole number."""

    image_width: int
    """Width in pixels of the images fed to the model; a multiple of `patch`."""
    image_height: int
    """Height in pixels of the images fed to the model; a multiple of `patch`."""
    cameras: int
    """Cameras per sample. The weights do not depend on it."""
    patch: int
    """Side in pixels of a square image patch: one token."""
    dim: int
    """Width of every token; a multiple of `heads` and of 4."""
    heads: int
    """Attention heads."""
    camera_depth: int
    """Transformer blocks within each camera."""
    text_depth: int
    """Transformer blocks over the command's bytes and the ego state."""
    fusion_depth: int
    """Transformer blocks of the bird's-eye-view queries."""
    lidar_channels: int
    """Channels of the fine bird's-eye grid; a multiple of 8."""
    lidar_depth: int
    """Convolution blocks on the fine grid."""
    grid: int
    """Cells per side of the fine grid, on which boxes are found; a multiple of `queries`."""
    queries: int
    """Bird's-eye-view queries per side."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{field.name}: {value!r} is not a whole number of at least 1")
        self._divides("patch", "image_width", "image_height")
        self._divides("heads", "dim")
        self._divides("queries", "grid")
        for name, unit in (("dim", 4), ("lidar_channels", 8)):
            if getattr(self, name) % unit:
                raise ValueError(f"{name}: {getattr(self, name)} is not a multiple of {unit}")

    def _divides(self, divisor: str, *names: str) -> None:
        by = getattr(self, divisor)
        for name in names:
            value = getattr(self, name)
            if value % by:
                raise ValueError(
                    f"{name}: {value} is not a multiple of {divisor}={by}; "
                    f"the nearest are {value // by * by or by} and {(value // by + 1) * by}"
                )

    @property
    def cell_metres(self) -> float:
        """Side of a cell of the fine grid."""
        return 2 * RANGE_METRES / self.grid

    @property
    def stride(self) -> int:
        """Fine cells per query, along one side."""
        return self.grid // self.queries


def config_from(preset: str, **overrides: Any) -> ModelConfig:
    """The preset's architecture, some fields replaced. Raises ValueError for an unknown preset or field."""
    known = [field.name for field in fields(ModelConfig)]
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"model option {name!r} is not one of {', '.join(known)}.{hint}")
    return ModelConfig(**{**load_preset(preset).model, **overrides})
