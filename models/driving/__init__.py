"""The built-in model, behind the same functions that a user's own model file defines.

`build_model`, `example_batch` and `blocks` are the contract; `branches` lets reports speak of camera and
LiDAR, `padded` of what was computed for padding.
"""

from typing import Any

from torch import nn

from .config import ModelConfig, config_from
from .example import example_batch
from .metrics import Detections, average_precision, constant_predictor, truths
from .model import DrivingModel

__all__ = [
    "Detections",
    "DrivingModel",
    "ModelConfig",
    "average_precision",
    "blocks",
    "branches",
    "build_model",
    "config_from",
    "constant_predictor",
    "example_batch",
    "padded",
    "truths",
]


def build_model(preset: str = "tiny", **overrides: Any) -> DrivingModel:
    """A preset's model, fields of its `[model]` table replaced by `overrides`.

    Weights come from torch's default generator: call `torch.manual_seed` first. Builds under
    `torch.device("meta")`. Raises ValueError for an unknown preset or option.
    """
    return DrivingModel(config_from(preset, **overrides))


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated units, in the order in which forward runs them: to be checkpointed and sharded singly."""
    towers = (tower for parts in branches(model).values() for tower in parts)
    return [block for tower in towers for block in tower.get_submodule("blocks").children()]


def branches(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The parts of the model by name; each parameter is in exactly one."""
    return {name: [model.get_submodule(name)] for name in ("camera", "lidar", "text", "fusion", "heads")}


def padded() -> dict[str, tuple[str, ...]]:
    """What of a batch is padding: keys of `data.schema` by the key that is non-zero where an element is real."""
    return {
        "points_mask": ("points", "points_mask"),
        "tokens": ("tokens",),
        "boxes_mask": ("boxes", "classes", "boxes_mask"),
    }
