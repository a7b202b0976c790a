"""The cells of a sweep: every combination of its axes, on equal terms, each resolved or refused. Starts nothing."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from ...data.manifest import MANIFEST_NAME
from ...models.contract import source_sha256
from ...profiles.sweepfolder import Cell
from ..config import RunConfig, build, shown
from ..devices import Devices
from ..environment import available_cores, versions
from ..errors import ConfigError, PreflightError, ScalelabError
from ..plan import DEFAULT_CPU_RANKS, resolve
from .fairness import recorded, shared_batch
from .options import AXES, Request

# Options that change neither what is trained nor how fast: where results go, what is waited for how long, prices.
NO_PART = {"out", "name", "hang_seconds", "grace", "rendezvous_timeout", "usd_per_gpu_hour", "usd_per_kwh"}


@dataclass(frozen=True)
class Planned:
    """A cell, and what `scalelab run` is handed for it: what was given, with nothing decided yet."""

    cell: Cell
    given: dict[str, Any]
    error: ScalelabError | None = None


def cells(request: Request, devices: Devices) -> list[Planned]:
    """Every cell of the matrix in the order of its axes, refused ones with the words of the refusal.

    Raises ConfigError for what is wrong in every cell: options that contradict each other, a global batch that some
    number of ranks cannot share evenly.
    """
    combinations = [
        dict(zip(request.axes, values, strict=True)) for values in itertools.product(*request.axes.values())
    ]
    worlds = [each or devices.count or DEFAULT_CPU_RANKS for each in request.axes["gpus"]]
    build({**request.common, **_given(combinations[0])})
    batch = shared_batch(request, worlds)
    several = [axis.field for axis in AXES if len(request.axes[axis.field]) > 1]
    found = []
    for combination in combinations:
        combination["gpus"] = combination["gpus"] or devices.count or DEFAULT_CPU_RANKS
        given = {**request.common, **batch, **_given(combination)}
        if "global_batch" in batch:
            given.pop("micro_batch", None)
        found.append(planned(_name(combination, several), recorded(given), devices, gated=not request.best_batch))
    return found


def sweep_id(cells: Sequence[Planned], request: Request, devices: Devices) -> str:
    """A hash of what decides a sweep's figures: the cells as they were resolved, what they train on what, the device,
    the libraries' versions.

    Repeats are no part of it: asking for more goes on in the same folder.
    """
    best = [request.best_batch, request.best_batch_max]
    return decided_by(cells, devices, scaling=request.scaling, best_batch=best)


def decided_by(cells: Sequence[Planned], devices: Devices, **more: Any) -> str:
    """A hash of what decides the figures of these cells, and of `more` that does."""
    content = {
        "cells": sorted(
            [
                planned.cell.name,
                {name: value for name, value in planned.cell.config.items() if name not in NO_PART},
                # As given: what is recorded of them is without secrets.
                planned.given.get("model_option"),
            ]
            for planned in cells
        ),
        "trained": _trained(cells),
        **more,
        "device": [devices.kind, devices.name, available_cores(), os.environ.get("OMP_NUM_THREADS")],
        "versions": versions(),
    }
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)).hexdigest()[:10]


def _trained(cells: Sequence[Planned]) -> list[list[str | None]]:
    """SHA-256 of each file that defines a model, and of the manifest that comes with its data; null where there is
    none. A mended model is another one, though its options are the same."""
    found = {(planned.cell.config["model"], planned.cell.config["data"]) for planned in cells}
    return sorted(([source_sha256(model), _manifest_sha256(data)] for model, data in found), key=str)


def _manifest_sha256(data: str | None) -> str | None:
    if data is None:
        return None
    try:
        return hashlib.sha256((Path(data) / MANIFEST_NAME).read_bytes()).hexdigest()
    except OSError:
        return None


def _given(combination: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in combination.items() if value is not None}


def _name(combination: dict[str, Any], several: Sequence[str]) -> str:
    """Strategy, precision and ranks; of the other axes those that have several values."""
    ranks = combination["gpus"]
    parts = [combination["strategy"], combination["precision"], f"{ranks}rank{'s' * (ranks != 1)}"]
    known = {"strategy", "precision", "gpus"}
    return "-".join([*parts, *(str(combination[name]) for name in several if name not in known)])


def planned(name: str, given: dict[str, Any], devices: Devices, *, gated: bool) -> Planned:
    """The cell `name` of what is `given` for a run, resolved for this machine or refused."""
    asked = RunConfig(**given)
    error = None
    try:
        config = resolve(asked, devices).config
    except PreflightError as refusal:
        config, error = asked, refusal
        # What it would be where what is lacking is there: once it is, the sweep is still this one.
        with contextlib.suppress(ConfigError, PreflightError):
            config = resolve(asked, devices, dry_run=True).config
    except ConfigError as refusal:
        config, error = asked, refusal
    cell = Cell(
        name=name,
        strategy=config.strategy,
        precision=config.precision,
        world_size=config.gpus or 0,
        micro_batch=config.micro_batch,
        grad_accumulation=config.grad_accumulation,
        global_batch=config.global_batch,
        config=shown(config),
        refused=None if error is None else _words(error),
        gated=gated and config.probe == "on",
    )
    return Planned(cell, given, error)


def _words(error: ScalelabError) -> str:
    """A refusal in one line, with its way out."""
    text = "; ".join(str(error).splitlines())
    return f"{text} ({error.hint})" if error.hint else text
