"""A run's page says all that the card of its diagnosis does, and is not green where something is to be heeded."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scalelab.profiles.analysis.diagnosis.bought import against_said
from scalelab.profiles.analysis.diagnosis.diagnose import _whose
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.pictures import pictures
from scalelab.profiles.analysis.summary import summarise
from scalelab.reports import units
from scalelab.reports.diagnosis_words import beside, bought, buys
from scalelab.reports.page.run import verdict
from scalelab.reports.page.section import Figures, blocks_of
from scalelab.reports.page.write import run_report, write_run_report
from scalelab.reports.table import run_table

from tests.profiles.diagnosis.made import told
from tests.profiles.diagnosis.test_once import waiting_for_cores
from tests.support.reported import made_run


def diagnosis() -> dict[str, Any]:
    run = waiting_for_cores((0.15, 0.15), slower=0.08)
    run.status.update(state="failed", cause="RuntimeError: boom")
    return told(run)


def test_the_page_has_the_whole_card(tmp_path: Path) -> None:
    """Share, interval and method, other causes with theirs, and what cannot be told."""
    folder = made_run(tmp_path, status={"state": "finished"})
    found = diagnosis()
    folder.write("diagnosis.json", found)
    run = load_run(folder)
    write_run_report(folder, run, summarise(run))
    for name in ("report.md", "report.html"):
        text = (folder.path / name).read_text()
        first, other = found["findings"][:2]
        assert f"Diagnosis: {first['label']}, {first['severity_share']:.0%} of the step" in text.replace("\\_", "_")
        assert "What it would buy: 150.0" in text
        assert first["method"].split(";")[0].partition("'")[0] in text
        assert f"{other['severity_share']:.0%} [" in text.replace("\\[", "[")
        assert "the end of the run, which failed" in text
        assert "the run failed: RuntimeError: boom" in text


@pytest.mark.parametrize(("given", "tone"), [({}, "good"), ({"oversubscribed": True}, "warning")])
def test_a_box_that_warns_is_not_green(tmp_path: Path, given: dict[str, Any], tone: str) -> None:
    folder = made_run(tmp_path, status={"state": "finished"})
    run = load_run(folder)
    summary = {**summarise(run), "oversubscribed": False, **given}
    shown = pictures(run, summary, folder)
    shown["verdict"]["straggler"] = None
    assert verdict.section(summary, shown).tone == tone
    folder.write("diagnosis.json", {**diagnosis()})
    assert verdict.section(summary, {**shown, "facts": pictures(run, summary, folder)["facts"]}).tone == "warning"


def test_a_verification_says_which_cause_it_tried_and_how_noisy_it_was() -> None:
    """Another one than the verdict's, where no option removes that; and why rounds do not tell."""
    row: dict[str, Any] = {
        "label": "launch_bound", "options": {"micro_batch": 8}, "verdict": "cannot tell", "per": "sample", "counts":
        "steps alone", "saved_share": 0.1, "ci95": [-0.2, 0.4], "cause_share": 0.2, "cause_ci95": None, "rounds": 3,
        "needed": 764, "others_cores_share": 0.6, "learns": None, "decides_learning": False, "reasons": {},
    }  # fmt: skip
    lines = "\n".join(bought(row, "cpu_contention"))
    assert "the change for launch_bound: no option of scalelab run removes cpu_contention" in lines
    assert "--rounds 764 would tell an effect of 5 %; while these ran, others kept 60% of the cores busy" in lines
    assert "the change for" not in "\n".join(bought(row, "launch_bound"))


@pytest.mark.parametrize(
    ("ci95", "word"), [([0.42, 0.50], "the change bought more"), ([0.1, 0.2], "bought less"), ([0.3, 0.375], "")]
)
def test_what_a_change_bought_is_held_against_what_was_said(ci95: list[float], word: str) -> None:
    """Where the intervals are apart it is said; and that others had the cores meanwhile."""
    row: dict[str, Any] = {
        "label": "input_bound", "options": {"prefetch": 2}, "verdict": "faster", "per": "step", "counts": "steps alone",
        "saved_share": sum(ci95) / 2, "ci95": ci95, "cause_share": 0.38, "cause_ci95": [0.37, 0.39], "rounds": 3,
        "against_said": against_said((ci95[0], ci95[1]), (0.37, 0.39)),
        "needed": 3, "others_cores_share": 0.8, "crowded": True, "learns": None, "decides_learning": False,
        "reasons": {},
    }  # fmt: skip
    lines = bought(row, "input_bound")
    assert any("others kept 80% of the cores busy" in line for line in lines)
    said = next(line for line in lines if "was said to buy" in line)
    assert word in said if word else "the change bought" not in said
    assert "cores" not in "\n".join(bought({**row, "crowded": False}, "input_bound"))


def test_a_share_says_which_step_it_is_of() -> None:
    """One with what lies between steps, by its time."""
    found = diagnosis()
    step = found["verdict"]["step_seconds"]
    assert f"of the {units.milliseconds(step)} that one takes with what lies" in buys(found["findings"][0], step)


def test_seconds_are_counted_under_causes_that_are_listed() -> None:
    """One that is too small for the card is not named on it."""
    row = {
        "counted_under": ["launch_bound", "x"],
        "alone_share": 0.2,
        "severity_share": 0.1,
        "method": "so",
        "label": "y",
    }
    other = {"counted_under": [], "alone_share": 0.2, "severity_share": 0.2, "method": "so", "label": "x"}
    both, alone = [dict(row), dict(other)], [{**row, "counted_under": ["launch_bound"]}]
    _whose(both)
    _whose(alone)
    assert both[0]["counted_under"] == ["x"]
    assert both[0]["counted"] == "counted under x and in another cause that is too small to be listed"
    assert both[1]["counted"] is None
    assert alone[0]["method"] == "so; 50% of it is counted in another cause that is too small to be listed"
    assert "launch_bound" not in beside({**alone[0], "next": {"says": ""}})[2]


def test_an_interval_that_spans_nothing_is_told_with_its_number() -> None:
    assert units.told([-0.6, 0.7]) == "not told from 0"
    assert units.told([0.1, 0.7]) == units.told(None) == ""


def test_the_tail_and_the_cost_of_measuring_say_what_is_not_told(tmp_path: Path) -> None:
    """In the terminal's table and among the page's key figures; and a scenario's model has a name for readers."""
    folder = made_run(tmp_path, status={"state": "finished"})
    run = load_run(folder)
    summary = summarise(run)
    measuring = {"share_of_step": 0.059, "ci95": [-0.597, 0.715], "calls_share_of_step": None, "method": "in turn"}
    rows = {
        cause: {"headroom_seconds": 0.001, "ci95": bounds}
        for cause, bounds in (("free_wire", [-0.002, 0.004]), ("cached_batch", [0.0005, 0.002]))
    }
    summary |= {"counterfactual": rows, "overhead": measuring, "model": {**summary["model"], "name": "_subject"}}
    screen = Console(width=200, record=True, file=io.StringIO())
    screen.print(run_table(summary))
    text = screen.export_text()
    assert text.count("not told from 0") == 2
    assert "the scenario's model" in text
    report = run_report(summary, pictures(run, summary, folder))
    figures = next(block for block in blocks_of(report) if isinstance(block, Figures))
    assert "not told from 0" in next(note for name, _, note in figures.rows if name.startswith("Measuring itself"))
    assert report.subtitle.startswith("the scenario's model")
