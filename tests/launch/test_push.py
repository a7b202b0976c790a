"""A finished run in a tracker: what is there is what was recorded, and a tracker that fails costs the run nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scalelab.launch import trackers
from scalelab.launch.cli import run_command
from scalelab.launch.errors import Exit, PreflightError
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.analysis.tracked import tracked
from scalelab.profiles.records import EventRecord
from scalelab.profiles.runfolder import appending
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.support.reported import HOSTILE, made_run


def test_tensorboard_has_the_series_as_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Loss, step times, phases and results, read back with TensorBoard's own reader; a second push replaces it."""
    folder = made_run(tmp_path, name=HOSTILE[0])
    for _ in range(2):
        assert run_command(["push", str(folder.path), "--to", "tensorboard", "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["to"] == "tensorboard"
    events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    loss = events.Scalars("train/loss")
    assert [(event.step, event.value) for event in loss] == [
        (step, pytest.approx(2 / (1 + step))) for step in range(40)
    ]
    assert [event.step for event in events.Scalars("step/seconds")] == list(range(2, 40))
    assert loss[1].wall_time - loss[0].wall_time == pytest.approx(0.1, abs=0.01)
    assert events.Scalars("evaluation/ap")[0].value == 0.5
    assert events.Scalars("result/throughput.samples_per_second")[0].value > 0
    assert {"run/text_summary", "config/text_summary"} <= set(events.Tags()["tensors"])
    assert len(list((folder.path / "tensorboard").iterdir())) == 1


def test_phases_are_those_of_the_summary(tmp_path: Path) -> None:
    """Without communication, which has its own, and with what no phase owns: they sum to the step."""
    run = load_run(made_run(tmp_path))
    summary = summarise(run)
    series = tracked(run, summary)["series"]
    means = {name: np.mean([value for *_, value in rows]) for name, rows in series.items()}
    for name, told in summary["phases"].items():
        found = means.pop(f"phase/{name}_seconds", None)
        assert found == (None if told is None else pytest.approx(told["mean"]))
    assert sum(told["mean"] for told in summary["phases"].values() if told) == pytest.approx(means["step/seconds"])


def test_an_event_outside_the_recorded_steps_has_its_own_time(tmp_path: Path) -> None:
    """One before the first step is at its own begin by the clock on the wall, not in 1970."""
    folder = made_run(tmp_path)
    with appending(folder.rank_file(0)) as write:
        write(EventRecord(event="evaluation", step=-1, start_seconds=0.5, seconds=1.0, values={"ap": 0.6}))
    run = load_run(folder)
    rows = tracked(run, summarise(run))["series"]["evaluation/ap"]
    assert [step for step, *_ in rows] == [39, -1]
    assert rows[1][1] == pytest.approx(1.7e9 + 0.5)


@pytest.mark.fault(66)
def test_a_tracker_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time limit, by its name, with nothing of the run changed and nothing left running."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "wandb.py").write_text("import time\n\ndef init(**_):\n    time.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(fake))
    monkeypatch.syspath_prepend(str(fake))
    folder = made_run(tmp_path)
    before = sorted(path.name for path in folder.path.iterdir())
    with pytest.raises(PreflightError, match="wandb did not answer within 3 s"):
        trackers.send("wandb", {"run_id": "x", "name": "x", "config": {}, "series": {}, "results": {}}, folder.path, 3)
    assert sorted(path.name for path in folder.path.iterdir()) == before


@pytest.mark.fault(62, 66)
def test_a_refusal_is_told_without_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tracker says is passed on, without what the environment holds as a secret."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "wandb.py").write_text(
        "import os\n\ndef init(**_):\n    raise ValueError('bad key ' + os.environ['WANDB_API_KEY'])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(fake))
    monkeypatch.setenv("WANDB_API_KEY", "canary-27182818")
    monkeypatch.syspath_prepend(str(fake))
    with pytest.raises(PreflightError, match="bad key") as caught:
        trackers.send("wandb", {"run_id": "x", "name": "x", "config": {}, "series": {}, "results": {}}, tmp_path, 60)
    assert "canary" not in str(caught.value)


def test_a_tracker_that_is_not_known_is_refused_before_the_run_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["push", str(tmp_path / "none"), "--to", "wanddb"]) == Exit.USAGE
    told = capsys.readouterr().err
    assert "did you mean wandb?" in told
    assert "no such run folder" not in told


def test_what_cannot_be_pushed_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tracker that nobody knows, one that is not installed, a run under way, no run."""
    folder = made_run(tmp_path)
    running = made_run(tmp_path, status={"state": "running", "exit_code": None})
    for argv, code, told in (
        ([str(folder.path), "--to", "nobody"], Exit.USAGE, "allowed mlflow, tensorboard, wandb"),
        ([str(folder.path), "--to", "mlflow"], Exit.PREFLIGHT, "pip install"),
        ([str(running.path)], Exit.USAGE, "still running"),
        ([str(tmp_path)], Exit.USAGE, "run.json"),
        ([str(folder.path), "--timeout", "0"], Exit.USAGE, "timeout"),
    ):
        assert run_command(["push", *argv]) == code
        assert told in capsys.readouterr().err
