"""Presets of the built-in model: one TOML file per size, found on disk, read without torch.

A preset file holds

- `summary`: one line for people,
- `parameters`: the exact number of parameters, so that a planner needs no torch,
- `[model]`: every number of the architecture (`scalelab.models.driving.config.ModelConfig`),
- `[dataset]`: the generated dataset it trains on (`scalelab.data.spec.DatasetSpec`).
"""

import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One preset file, as read. The two tables are checked by the classes that take them."""

    name: str
    summary: str
    parameters: int
    """Trainable parameters of the built model."""
    model: dict[str, Any]
    """Arguments of `ModelConfig`."""
    dataset: dict[str, Any]
    """Arguments of `DatasetSpec`."""


def presets() -> list[str]:
    """Names of all presets on disk, smallest model first."""
    found = [load_preset(path.stem) for path in _FOLDER.glob("*.toml")]
    return [preset.name for preset in sorted(found, key=lambda preset: preset.parameters)]


def preset_file(name: str) -> Path:
    """The file of preset `name`."""
    return _FOLDER / f"{name}.toml"


def load_preset(name: str) -> Preset:
    """Read the preset `name`. Raises ValueError, naming the nearest preset, when there is none."""
    known = sorted(path.stem for path in _FOLDER.glob("*.toml"))
    if name not in known:
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"preset: {name!r} is not one of {', '.join(known)}.{hint}")
    return Preset(name=name, **tomllib.loads(preset_file(name).read_text(encoding="utf-8")))
