"""`scalelab diagnose`: options that do nothing are refused, and what was planted stands beside what was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from scalelab.launch import verification
from scalelab.launch.cli import run_command
from scalelab.launch.commands import diagnose
from scalelab.launch.errors import Exit
from scalelab.launch.reporting import summarise_and_report
from scalelab.launch.sweep.runner import Outcome
from scalelab.launch.verification import Verified, _about, around_seconds
from scalelab.profiles.analysis.diagnosis.diagnose import _usd
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.summary import analyse_as_priced

from tests.support.reported import made_run


@pytest.mark.parametrize(
    ("option", "needs"),
    [("--rounds", "--verify"), ("--steps", "--verify"), ("--seed", "--scenario"), ("--gpus", "--scenario")],
)
def test_an_option_that_would_do_nothing_is_refused(
    option: str, needs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name, also where the value given is the default."""
    assert run_command(["diagnose", "runs/latest", option, "5"]) == Exit.USAGE
    assert f"{option} does nothing without {needs}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "others", "line"),
    [
        ("input_bound", [], "planted: input_bound; said: input_bound"),
        ("healthy", [], "planted: input_bound; said: healthy"),
        ("cpu_contention", ["input_bound"], "planted: input_bound; said: cpu_contention (and input_bound under Also)"),
    ],
)
def test_what_was_planted_stands_beside_what_was_said(said: str, others: list[str], line: str) -> None:
    found: dict[str, Any] = {"verdict": {"label": said}, "findings": [{"label": each} for each in others]}
    assert diagnose._planted("slow_loader", found) == line


def test_a_verification_says_how_long_it_takes_with_each_runs_start() -> None:
    """The end of a run counts where it has no steps of its own there."""
    parts = [{"part": name, "seconds": each} for name, each in (("start_up", 7.0), ("after_training", 3.0))]
    summary: dict[str, Any] = {"cost": {"whole_run": {"parts": parts}}, "counterfactual": None}
    assert around_seconds(summary) == 10.0
    assert around_seconds({**summary, "counterfactual": {}, "trace": {"per_rank": []}}) == 7.0
    assert around_seconds({"cost": {"whole_run": None}}) is None
    assert _about(0.1, 100, 6, 10.0) == ": about 2.0 min, 1.0 of it the runs' starts and ends"
    assert _about(0.1, 600, 6, None) == ": about 6.0 min, and each run's start"


def test_a_price_that_was_given_to_the_report_is_the_diagnosis_s_too(tmp_path: Path) -> None:
    """Files of one folder say the same; a report without a price takes it back."""
    folder = made_run(tmp_path)
    summary = summarise_and_report(folder, Given(usd_per_gpu_hour=2.5))
    told = folder.read("diagnosis.json")
    assert diagnose._diagnose(folder) == told
    usd, _ = _usd(summary)
    assert usd is not None
    assert _usd(analyse_as_priced(folder, load_run(folder)))[0] == usd
    summarise_and_report(folder)
    assert _usd(analyse_as_priced(folder, load_run(folder)))[0] is None


def test_a_verification_is_on_the_run_s_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no call of report in between, and at the price that was given."""
    folder = made_run(tmp_path)
    summarise_and_report(folder, Given(usd_per_gpu_hour=2.5))
    told: dict[str, Any] = {
        "label": "input_bound", "options": {"prefetch": 2}, "verdict": "faster", "per": "step", "counts": "steps alone",
        "saved_share": 0.3, "ci95": [0.2, 0.4], "cause_share": None, "cause_ci95": None, "rounds": 3, "needed": 3,
        "others_cores_share": None, "learns": None, "decides_learning": False, "reasons": {},
    }  # fmt: skip
    verified = Verified(outcome=Outcome(Exit.OK, {}, 0), folder=tmp_path, bought=told)
    monkeypatch.setattr(verification, "verify", lambda *args, **options: verified)
    monkeypatch.setattr(verification, "change_of", lambda diagnosis: None)
    assert diagnose._verify(folder, diagnose._diagnose(folder), diagnose.DiagnoseOptions(), None) == Exit.OK
    page = (folder.path / "report.md").read_text()
    assert "What it bought: faster with --prefetch 2" in page
    assert "2.50" in page
