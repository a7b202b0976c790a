"""A run that trained something else than it should has no figure of its speed in its summary; what it trained stays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scalelab.launch.reporting import summarise_and_report
from scalelab.profiles.analysis.diagnosis.diagnose import write_diagnosis
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.parity import PARITY
from scalelab.profiles.analysis.pictures import pictures
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.analysis.tracked import tracked
from scalelab.profiles.analysis.withheld import withheld
from scalelab.profiles.records import Record
from scalelab.profiles.runfolder import RunFolder
from scalelab.reports.table import run_table

from tests.profiles.test_summary import explained, folder_with, run_json, silent, step
from tests.support.reported import made_run


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
    Console(file=sys.stderr).print(run_table(found[0]))


def test_what_tells_more_than_time_keeps_only_the_rest(tmp_path: Path) -> None:
    """Of communication, events and the peak of memory nothing of time is left, each null has its reason, and the report
    draws none of it."""
    cause = f"{PARITY}: loss of step 0 is 2.0, ddp's 1.0"
    folder = made_run(tmp_path, status={"state": "failed", "exit_code": 8, "cause": cause})
    run = load_run(folder)
    summary = summarise(run)
    assert summary["comm"]["exposed_by_phase"] is summary["events"][0]["seconds"] is None
    assert (summary["comm"]["calls_per_step"], summary["events"][0]["count"]) == (4.0, 1)
    for field in ("comm.exposed_by_phase", "events.seconds", "quality.usd_to_target", "per_rank.phases"):
        assert summary["reasons"][field] == cause
    diagnosis = write_diagnosis(folder, run, summary)
    assert diagnosis["verdict"]["label"] == "cannot_tell"
    assert diagnosis["verdict"]["step_seconds"] is None
    series = tracked(run, summary)["series"]
    assert "train/loss" in series
    assert not any(name.startswith(("step/", "phase/")) for name in series)
    drawn = pictures(run, summary, folder)
    assert {name for name in ("steps", "histogram", "ranks", "timeline") if drawn[name] is not None} == set()
    assert drawn["loss"] is not None
    summarise_and_report(folder)
    assert " ms" not in (folder.path / "report.md").read_text()
    Console(file=sys.stderr).print(run_table(summary))
    reasons: dict[str, str] = {}
    place = {"phase": "backward", "module": "head", "seconds": 0.1}
    rows = [{**row, "peak_at": place} for row in summary["memory"]["per_rank"]]
    memory = {**summary["memory"], "peak_at": place, "timeline": {"seconds": [0.1]}, "per_rank": rows}
    found = withheld({**summary, "memory": memory}, run.status, reasons.__setitem__)["memory"]
    assert found["peak_at"] == found["per_rank"][1]["peak_at"] == {**place, "seconds": None}
    assert found["timeline"] is None
    paths = ("memory.timeline", "memory.peak_at.seconds", "memory.per_rank.peak_at.seconds")
    assert [reasons[path] for path in paths] == [cause] * 3


def test_other_failures_keep_their_figures(tmp_path: Path) -> None:
    """A loss that is not finite ends with the same code, after steps that were measured."""
    folder = folder_of(tmp_path)
    before = summarise(load_run(folder))["step_seconds"]
    folder.write("status.json", {"state": "failed", "exit_code": 8, "cause": "loss is not finite"})
    assert summarise(load_run(folder))["step_seconds"] == before
    assert before["mean"] is not None
