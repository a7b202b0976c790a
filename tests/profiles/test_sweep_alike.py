"""Runs of a cell are repeats of one run, at one price, made round by round; what is not so is told, not averaged."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.sweep.cells import CellResult, cell_result, held, in_rounds
from scalelab.profiles.analysis.sweep.runs import Runs, SweepRun

from ..support.sweeps import MadeSweep

REPEATS = 5


def runs_of(made: MadeSweep, *names: str) -> list[CellResult]:
    folder = made.write()
    plan = folder.plan()
    runs = Runs(folder, plan, Given())
    cells = {cell.name: cell for cell in plan.cells}
    return [cell_result(cells[name], runs.of(cells[name])) for name in names]


@pytest.fixture
def cell(tmp_path: Path) -> CellResult:
    made = MadeSweep(tmp_path / "sweep", repeats=2)
    name = made.cell("ddp", 1, [1.0, 1.1], usd_per_gpu_hour=2.0).name
    return runs_of(made, name)[0]


def facts(**environment: Any) -> dict[str, Any]:
    threads = environment.pop("threads_per_rank", 1)
    return {"device_name": "a processor", "threads_per_rank": threads, "environment": environment}


def with_facts(cell: CellResult, *told: dict[str, Any]) -> CellResult:
    return cell_result(cell.cell, [replace(run, facts=each) for run, each in zip(cell.runs, told, strict=True)])


@pytest.mark.parametrize("other", [{"cores": 4}, {"cores": 16, "threads_per_rank": 8}])
def test_runs_on_other_cores_are_no_repeats(cell: CellResult, other: dict[str, Any]) -> None:
    """A sweep that was taken up with fewer cores has no figure in that cell."""
    found = with_facts(cell, facts(cores=16), facts(**other))
    assert (found.row["state"], found.row["step_seconds"]) == ("mixed_hardware", None)
    assert "16 cores" in found.row["why"]
    assert with_facts(cell, facts(cores=16), facts(cores=16)).row["state"] == "measured"


@pytest.mark.parametrize(
    ("a", "b", "named"),
    [
        ({"git": {"commit": "1", "dirty": False}}, {"git": {"commit": "2", "dirty": False}}, ["git.commit"]),
        ({"git": {"commit": "1", "dirty": False}}, {"git": {"commit": "1", "dirty": True}}, ["git.dirty"]),
        ({"variables": {"NCCL_ALGO": "Ring"}}, {"variables": {"NCCL_ALGO": "Tree"}}, ["variables.NCCL_ALGO"]),
        ({"variables": {"SLURM_JOB_ID": "1"}}, {"variables": {"SLURM_JOB_ID": "2"}}, []),
        ({"versions": {"torch": "2.13"}}, {"versions": {"torch": "2.14"}}, ["versions.torch"]),
    ],
)
def test_runs_of_other_code_are_named(cell: CellResult, a: dict[str, Any], b: dict[str, Any], named: list[str]) -> None:
    """Where a run was put is no difference."""
    assert with_facts(cell, facts(**a), facts(**b)).codes == named


def test_runs_at_different_prices_have_no_mean_in_money(cell: CellResult) -> None:
    """The hours stay."""
    dearer = cell.runs[1].summary
    assert dearer is not None
    cost = {**dearer["cost"], "usd_per_gpu_hour": 3.0}
    runs = [cell.runs[0], replace(cell.runs[1], summary={**dearer, "cost": cost})]
    row = cell_result(cell.cell, runs).row
    assert row["usd_per_million_samples"] is None
    assert "priced differently" in row["reasons"]["usd_per_million_samples"]
    assert row["device_hours_per_million_samples"] is not None
    assert all(part["usd_per_million_samples"] is None for part in row["by_cause"])


def moved(cell: CellResult, began: list[str]) -> CellResult:
    def at(run: SweepRun, time: str) -> SweepRun:
        assert run.attempt is not None
        return replace(run, attempt=run.attempt.model_copy(update={"started_utc": time}))

    return replace(cell, runs=[at(run, time) for run, time in zip(cell.runs, began, strict=True)])


def test_what_was_made_on_another_day_is_not_paired(tmp_path: Path) -> None:
    """Five rounds whose drift is shared: paired, a difference of 2 % is seen; made again later, it is not."""
    drift = [1.0, 1.5, 0.8, 1.2, 0.9]
    made = MadeSweep(tmp_path / "sweep", repeats=REPEATS)
    names = [made.cell("ddp", 1, drift).name, made.cell("zero2", 1, [1.02 * each for each in drift]).name]
    a, b = runs_of(made, *names)
    minutes = [f"2026-01-01T00:{minute:02d}:00Z" for minute in range(2 * REPEATS)]
    together = moved(a, minutes[::2]), moved(b, minutes[1::2])
    later = moved(a, minutes[::2]), moved(b, [each.replace("-01-01", "-01-02") for each in minutes[1::2]])
    assert in_rounds(together)
    assert not in_rounds(later)
    widths = [
        high - low
        for pair in (together, later)
        for low, high in itertools.islice([held(*pair, "step_seconds")["ci95"]], 1)
    ]
    assert widths[0] < 0.01 < 0.1 < widths[1]
