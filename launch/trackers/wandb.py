"""Weights & Biases, with its own settings of the environment (WANDB_API_KEY, WANDB_MODE=offline, …)."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PACKAGE = "wandb"
PIP = "pip install wandb"
PROJECT = "scalelab"


def send(told: Mapping[str, Any], folder: Path) -> str:
    """Log every series by step and the results as the summary; returns the run's address, or its offline folder."""
    wandb: Any = importlib.import_module(PACKAGE)

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=told["run_id"],
        name=told["name"],
        config=dict(told["config"]),
        dir=str(folder),
        resume="allow",
    )
    by_step: dict[int, dict[str, float]] = {}
    for name, rows in told["series"].items():
        for step, _, value in rows:
            by_step.setdefault(int(step), {})[name] = value
    for step in sorted(by_step):
        run.log(by_step[step], step=step)
    run.summary.update(dict(told["results"]))
    seen_at = run.url or run.dir
    run.finish()
    return str(seen_at)
