"""A run's page says all that the card of its diagnosis does, and is not green where something is to be heeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.pictures import pictures
from scalelab.profiles.analysis.summary import summarise
from scalelab.reports.page.run import verdict
from scalelab.reports.page.write import write_run_report

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
