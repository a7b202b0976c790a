"""What a sweep is asked for: lists for the axes of its matrix, and every other option of a run, for all cells alike."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, create_model

from .. import strategies
from ..config import RunConfig
from ..errors import ConfigError
from ..options import PlainText, option
from ..validation import unknown, validated

RECIPES = Path(__file__).parent / "recipes"
HINT = "scalelab sweep --help lists every option"


@dataclass(frozen=True)
class Axis:
    """One axis of the matrix: the sweep's option `name` lists values of the run's option `field`.

    `same_training`: cells that differ in nothing else must train the same thing.
    """

    name: str
    field: str
    text: str
    default: str | None = None
    same_training: bool = False

    def values(self, text: str, problems: list[str]) -> tuple[Any, ...]:
        """The values in `text`, checked as a run's would be; what is wrong goes into `problems`."""
        flag, parts = f"--{self.name}", [part.strip() for part in text.split(",")]
        if "" in parts:
            problems.append(f"{flag}: given {text!r}, allowed a list such as {self.text.partition(';')[0]}")
            return ()
        found = []
        for part in parts:
            config, wrong = validated(RunConfig, {self.field: part})
            if self.field == "strategy" and part not in strategies.names():
                wrong = [unknown(flag, part, strategies.names())]
            problems += [problem.replace(f"--{self.field}:", f"{flag}:", 1) for problem in wrong]
            found += [] if wrong else [getattr(config, self.field)]
        if twice := sorted({str(value) for value in found if found.count(value) > 1}):
            problems.append(f"{flag}: given {text!r}, allowed each value once ({', '.join(twice)} comes again)")
        return tuple(found)


ALL_STRATEGIES = ",".join(name for name in strategies.names() if name != "single")
# Another axis is another line.
AXES = (
    Axis(
        "strategies",
        "strategy",
        f"ddp,zero2; any of {', '.join(strategies.names())}",
        ALL_STRATEGIES,
        same_training=True,
    ),
    Axis("gpus", "gpus", "1,2,4; ranks on this host (as many as a run has by itself)"),
    Axis("precisions", "precision", "fp32,bf16; any that a run has", "fp32"),
    Axis("checkpointings", "checkpointing", "none,full; of activations", "none", same_training=True),
)


class _Own(BaseModel):
    """What a sweep has beside the axes and a run's own options."""

    scaling: Literal["strong", "weak"] = option(
        "matrix",
        "strong: the same global batch for every number of ranks, --micro-batch being that of the largest; weak: the "
        "same micro-batch per rank",
        "strong",
    )
    repeats: int = option("matrix", "runs of each cell; verdicts need 3 or more", 3, ge=1, le=1000)
    recipe: PlainText | None = option(
        "matrix", "TOML file of these options, or the name of one that comes along; what is given beside it wins", None
    )
    best_batch: bool = option(
        "matrix",
        "find the largest micro-batch that fits for each cell and compare at that, not at equal batches",
        False,
    )
    best_batch_max: int | None = option(
        "matrix", "where that search ends (64 on CPU, 4096 on CUDA)", None, ge=1, le=1 << 20
    )


_AXIS_FIELDS: dict[str, Any] = {axis.name: (str | None, option("matrix", axis.text, axis.default)) for axis in AXES}
_OWN_FIELDS: dict[str, Any] = {name: (field.annotation, field) for name, field in _Own.model_fields.items()}
_RUN_FIELDS: dict[str, Any] = {
    name: (field.annotation, field)
    for name, field in RunConfig.model_fields.items()
    # Runs are named after their cells.
    if name not in {"name", *(axis.field for axis in AXES)}
}
SweepOptions: type[BaseModel] = create_model(
    "SweepOptions",
    __config__=ConfigDict(frozen=True, extra="forbid", protected_namespaces=()),
    **_AXIS_FIELDS,
    **_OWN_FIELDS,
    **_RUN_FIELDS,
)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A sweep as it was asked for. `axes` holds values by the run's option, `common` what was given for all runs."""

    axes: dict[str, tuple[Any, ...]]
    common: dict[str, Any]
    scaling: Literal["strong", "weak"]
    repeats: int
    best_batch: bool
    best_batch_max: int | None


def request(values: Mapping[str, Any], problems: Iterable[str] = ()) -> Request:
    """The sweep that `values` (texts or typed) describe, those of its recipe included.

    Raises ConfigError with every problem at once.
    """
    found = list(problems)
    if values.get("recipe") is not None:
        values = {**read_recipe(str(values["recipe"])), **values}
    options, wrong = validated(SweepOptions, values)
    found += wrong
    given = {name: getattr(options, name) for name in values if name in _RUN_FIELDS}
    axes = {}
    for axis in AXES:
        text = getattr(options, axis.name)
        axes[axis.field] = (None,) if text is None else axis.values(text, found)
    own = {name: getattr(options, name) for name in _OWN_FIELDS if name != "recipe"}
    if own["best_batch_max"] is not None and not own["best_batch"]:
        found.append("--best-batch-max does nothing without --best-batch: give both or neither")
    if own["best_batch"] and "global_batch" in given:
        found.append("--best-batch finds each cell's batch: leave out --global-batch")
    if own["scaling"] == "weak" and "global_batch" in given:
        found.append("--scaling weak keeps the micro-batch: give --micro-batch in place of --global-batch")
    if given.get("nodes", 1) != 1 or given.get("node_rank", 0):
        found.append("--nodes: a sweep runs on one host; make its runs one by one with scalelab run on several")
    if found:
        raise ConfigError(found, hint=HINT)
    return Request(axes=axes, common=given, **own)


def read_recipe(name: str) -> dict[str, Any]:
    """The options in a recipe: the path of a file, or the name of one in `recipes/`. Raises ConfigError."""
    path = Path(name)
    shipped = {each.stem: each for each in RECIPES.glob("*.toml")}
    if not path.exists():
        if "/" in name or name.endswith(".toml"):
            raise ConfigError(f"--recipe {name}: no such file", hint=f"or one by name: {', '.join(sorted(shipped))}")
        if name not in shipped:
            raise ConfigError(unknown("--recipe", name, shipped), hint="or give the path of a TOML file")
        path = shipped[name]
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--recipe {name}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--recipe {name}: not TOML: {error}") from error
    content = {key.replace("-", "_"): value for key, value in content.items()}
    known = set(SweepOptions.model_fields) - {"recipe"}
    if problems := [unknown(f"--recipe {name}", key, known) for key in content if key not in known]:
        raise ConfigError(problems, hint=HINT)
    axes = {axis.name for axis in AXES}
    return {key: _text(value) if key in axes else value for key, value in content.items()}


def _text(value: Any) -> str:
    """An axis's list in TOML as it would be typed."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
