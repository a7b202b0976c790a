"""A run that trained something else than it should has no figure of its speed in its summary; what it trained stays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.parity import PARITY
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import Record
from scalelab.profiles.runfolder import RunFolder
from scalelab.reports.table import run_table

from tests.profiles.test_summary import explained, folder_with, run_json, silent, step


def folder_of(tmp_path: Path) -> RunFolder:
    ranks: list[list[Record]] = [[step(i, 1.0 + i, losses=[2.0]) for i in range(4)] for _ in range(2)]
    return folder_with(tmp_path, run_json(), *ranks)


def numbers(value: Any, path: str = "") -> dict[str, float]:
    """Every number below `value` that is not 0, by its dotted path."""
    if isinstance(value, dict):
        return {k: v for key, part in value.items() for k, v in numbers(part, f"{path}.{key}").items()}
    if isinstance(value, list):
        return {k: v for index, part in enumerate(value) for k, v in numbers(part, f"{path}.{index}").items()}
    return {path: value} if isinstance(value, int | float) and not isinstance(value, bool) and value else {}


@pytest.mark.fault(42)
def test_no_figure_of_speed_survives_a_loss_that_left_the_tolerance(tmp_path: Path) -> None:
    """No number changes when all steps take twice as long, so none is made of time; all nulls have their reason."""
    cause = f"{PARITY}: loss of step 0 is 2.0, ddp's 1.0"
    found = []
    for name, factor in (("a", 1.0), ("b", 2.0)):
        ranks: list[list[Record]] = [[step(i, factor * (1.0 + i), losses=[2.0]) for i in range(4)] for _ in range(2)]
        folder = folder_with(tmp_path / name, run_json(), *ranks)
        folder.write("status.json", {"state": "failed", "exit_code": 8, "cause": cause})
        found.append(summarise(load_run(folder)))
    assert numbers(found[0]) == numbers(found[1])
    assert found[0]["loss"] == [2.0] * 4
    assert found[0]["step_seconds"]["mean"] is found[0]["throughput"]["samples_per_second"] is None
    for field in ("throughput.ci95", "step_seconds.mean", "cost.device_hours_per_million_samples", "phases.backward"):
        assert found[0]["reasons"][field] == cause
    assert not [path for path in silent(found[0]) if not explained(path, found[0]["reasons"]) and path != "outcome"]
    Console(file=sys.stderr).print(run_table(found[0], None))


def test_other_failures_keep_their_figures(tmp_path: Path) -> None:
    """A loss that is not finite ends with the same code, after steps that were measured."""
    folder = folder_of(tmp_path)
    before = summarise(load_run(folder))["step_seconds"]
    folder.write("status.json", {"state": "failed", "exit_code": 8, "cause": "loss is not finite"})
    assert summarise(load_run(folder))["step_seconds"] == before
    assert before["mean"] is not None
