"""What of an own loop is in no step, what is not known of it, and what must not end it."""

from __future__ import annotations

import itertools
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import scalelab
import torch
from scalelab.launch.attach import Probe
from scalelab.launch.commands import report
from scalelab.launch.own_job import samples_in
from scalelab.profiles.analysis.load import NO_OWN_STEP
from scalelab.profiles.records import EventRecord, StepRecord
from scalelab.profiles.storage import OutputError
from torch import nn

BATCHES = [torch.ones(4, 3)] * 3
Loop = tuple[Probe, nn.Module, torch.optim.Optimizer]


def epoch(loop: Loop) -> None:
    probe, model, optimizer = loop
    for batch in probe.batches(BATCHES):
        with probe.step():
            model(batch).sum().backward()
            optimizer.step()


def records(probe: Probe) -> list[StepRecord | EventRecord]:
    found = probe.folder.records(0)[0]
    return [each for each in found if isinstance(each, StepRecord | EventRecord)]


def test_what_lies_between_epochs_is_an_event_and_tiles_with_the_steps(alone: Loop) -> None:
    """Each begins where the one before it ended; what only follows another step stays the later one's."""
    epoch(alone)
    epoch(alone)
    with alone[0].event("evaluation"):
        alone[1](BATCHES[0])
    epoch(alone)
    alone[0].close()
    found = [each for each in records(alone[0]) if not (isinstance(each, EventRecord) and each.event == "flush")]
    names = [each.event if isinstance(each, EventRecord) else "step" for each in found]
    epoch_of_three, between = ["step"] * 3, ["between_epochs"]
    apart = [*between, "evaluation", *between]
    assert names == [*epoch_of_three, *between, *epoch_of_three, *apart, *epoch_of_three]
    everything = records(alone[0])
    for before, after in itertools.pairwise(everything):
        assert after.start_seconds == pytest.approx(before.start_seconds + before.seconds, abs=1e-9)
    summary = alone[0].folder.read("summary.json")
    assert {row["kind"] for row in summary["events"]} >= {"between_epochs", "evaluation"}


def test_a_loop_that_is_left_early_ends_its_epoch_too(alone: Loop) -> None:
    """As with so many steps an epoch; also with a batch that was drawn and not used, whose step is none."""
    probe, model, optimizer = alone
    for unused in (False, True):
        for number, batch in enumerate(probe.batches(BATCHES)):
            if unused and number == 1:
                break
            with probe.step():
                model(batch).sum().backward()
                optimizer.step()
            if number == 1:
                break
    epoch(alone)
    found = [each for each in _closed(probe) if not (isinstance(each, EventRecord) and each.event == "flush")]
    names = [each.event if isinstance(each, EventRecord) else "step" for each in found]
    assert names == ["step", "step", "between_epochs", "step", "between_epochs", "step", "step", "step"]
    assert all(each.samples == 4 for each in found if isinstance(each, StepRecord))


def test_an_evaluation_that_fails_is_in_no_step(alone: Loop) -> None:
    epoch(alone)
    with pytest.raises(RuntimeError), alone[0].event("evaluation"):
        raise RuntimeError("no such metric")
    epoch(alone)
    found = [each.event for each in _closed(alone[0]) if isinstance(each, EventRecord) and each.event != "flush"]
    assert found == ["between_epochs", "evaluation", "between_epochs"]


def test_an_event_within_a_step_is_refused(alone: Loop) -> None:
    with alone[0].step(), pytest.raises(ValueError, match="a step is open"), alone[0].event("evaluation"):
        pass


def test_a_forgotten_step_ends_no_job(alone: Loop, capfd: pytest.CaptureFixture[str]) -> None:
    """An evaluation in a loop without steps: it is said once, and the run says why it knows nothing."""
    probe, model, _ = alone
    for batch in probe.batches(BATCHES * 3):
        model(batch).sum().backward()
        with probe.event("evaluation"):
            model(batch)
    probe.close()
    assert capfd.readouterr().err.count(NO_OWN_STEP) == 1
    summary = probe.folder.read("summary.json")
    names = ("throughput.samples_per_second", "step_seconds.mean", "phases.forward")
    assert {summary["reasons"][name] for name in names} == {NO_OWN_STEP}
    assert summary["steps"]["measured"] == 0
    assert "no step was recorded" in (probe.folder.path / "report.md").read_text()
    assert report.main([str(probe.folder.path)]) == 0
    assert capfd.readouterr().out.count(NO_OWN_STEP) == 1


def test_an_evaluation_after_a_batch_was_drawn_is_none_of_its_step(
    alone: Loop, capfd: pytest.CaptureFixture[str]
) -> None:
    """The step has its samples all the same, and nothing is said."""
    probe, model, optimizer = alone
    for number, batch in enumerate(probe.batches(BATCHES)):
        if number in (0, 2):
            with probe.event("evaluation"):
                model(batch)
        with probe.step():
            model(batch).sum().backward()
            optimizer.step()
    found = _closed(probe)
    assert [each.samples for each in found if isinstance(each, StepRecord)] == [4] * 3
    assert len([each for each in found if isinstance(each, EventRecord) and each.event == "evaluation"]) == 2
    assert capfd.readouterr().err == ""


def test_phases_that_a_loop_never_enters_are_null_and_their_time_is_not_lost(tmp_path: Path) -> None:
    """Without batches drawn through the probe and without an optimizer; on a CPU no copy either."""
    model = nn.Linear(3, 1)
    probe = scalelab.Probe.attach(model, out=tmp_path, warmup=1)
    for _ in range(4):
        with probe.step():
            model(BATCHES[0]).sum().backward()
    probe.close()
    summary = probe.folder.read("summary.json")
    phases = summary["phases"]
    assert {name for name, row in phases.items() if row is None} == {"data", "h2d", "optimizer"}
    assert sum(row["mean"] for row in phases.values() if row) == pytest.approx(summary["step_seconds"]["mean"])
    assert summary["detail"]["host_data_seconds"] is None
    assert "probe.batches" in summary["reasons"]["phases.data"]
    assert "no optimizer" in summary["reasons"]["phases.optimizer"]
    assert not {"data", "optimizer"} & set(summary["per_rank"][0]["phases"])


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        (torch.ones(4, 3), 4),
        ([torch.ones(4, 3), torch.ones(4)], 4),
        ({"n": 1, "x": torch.ones(5, 2)}, 5),
        (([torch.ones(3, 8, 9)] * 6, [{"boxes": torch.ones(2, 4)}] * 6), 6),
        ([{"image": torch.ones(3, 8, 9)}] * 7, 7),
        ({"images": [torch.ones(3, 8, 9), torch.ones(3, 9, 8)]}, 2),
        ([{"x": torch.ones(4, 3)}, {"y": torch.ones(4)}], 4),
        ({"cameras": [torch.ones(4, 3, 8, 9)] * 6}, 4),
        ("text", 0),
    ],
)
def test_samples_are_counted_in_batches_of_many_forms(batch: Any, count: int) -> None:
    """Of detectors too, where images differ in size and there is no first dimension to go by."""
    assert samples_in(batch) == count


def test_a_loop_may_say_itself_how_many_samples_a_batch_has(alone: Loop) -> None:
    probe, model, optimizer = alone
    for batch in probe.batches(BATCHES, samples=lambda batch: 100):
        with probe.step():
            model(batch).sum().backward()
            optimizer.step()
    assert [each.samples for each in _closed(probe) if isinstance(each, StepRecord)] == [100] * 3


def test_batches_that_are_drawn_within_forward_are_no_part_of_it(alone: Loop) -> None:
    """`next(batches)` as the argument of the model's second call: the ledger closes all the same."""
    probe, model, optimizer = alone
    batches = probe.batches(BATCHES * 4)
    for _ in range(4):
        with probe.step():
            loss = sum(model(next(batches)).sum() for _ in range(3))
            assert isinstance(loss, torch.Tensor)
            loss.backward()
            optimizer.step()
    probe.close()
    summary = probe.folder.read("summary.json")
    assert summary["phases"]["unattributed"]["mean"] >= 0
    assert summary["phases"]["forward"]["mean"] > 0


def test_a_micro_batch_is_what_was_drawn_at_a_time(alone: Loop) -> None:
    """Where a step draws two, its samples are both of theirs."""
    probe, model, optimizer = alone
    batches = probe.batches(BATCHES * 4)
    for _ in range(3):
        with probe.step():
            for _ in range(2):
                model(next(batches)).sum().backward()
            optimizer.step()
    probe.close()
    summary = probe.folder.read("summary.json")
    assert (summary["micro_batch"], summary["global_batch"], summary["grad_accumulation"]) == (4, 8, None)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, where nothing can be made")
def test_a_place_that_cannot_be_written_is_one_plain_error() -> None:
    """It names the path, without a chain of the system's errors, and tells no bytes of what is not there."""
    with pytest.raises(OutputError, match=r"^/proc/x/\S+: cannot write: its folder is not there") as caught:
        scalelab.Probe.attach(nn.Linear(3, 1), out="/proc/x")
    assert "bytes free" not in str(caught.value)
    assert "".join(traceback.format_exception(caught.value)).count("Traceback") == 1


def test_a_disk_that_is_full_ends_no_job(
    alone: Loop, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is said once, nothing more is recorded, and the folder says that it is not whole."""

    def full(*_: Any) -> None:
        raise OutputError("the disk is full", hint="make room")

    epoch(alone)
    monkeypatch.setattr(alone[0]._own, "_append", full)
    epoch(alone)
    epoch(alone)
    alone[0].close()
    status = alone[0].folder.read("status.json")
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert "the disk is full" in status["cause"]
    assert capfd.readouterr().err.count("nothing more is recorded") == 1


def test_a_job_that_goes_on_after_an_error_has_not_failed(alone: Loop) -> None:
    """The step that failed is none, and what it took is in no other, nor what lay before it."""
    epoch(alone)
    with pytest.raises(RuntimeError), alone[0].step():
        raise RuntimeError("out of memory, once")
    assert alone[0].folder.read("status.json")["state"] == "failed"
    epoch(alone)
    found = _closed(alone[0])
    assert alone[0].folder.read("status.json")["state"] == "finished"
    assert len([each for each in found if isinstance(each, StepRecord)]) == 6
    events = [each.event for each in found if isinstance(each, EventRecord) and each.event != "flush"]
    assert events == ["between_epochs", "failed_step"]


def test_ctrl_c_is_an_interruption(alone: Loop) -> None:
    epoch(alone)
    with pytest.raises(KeyboardInterrupt), alone[0].step():
        raise KeyboardInterrupt
    alone[0].close()
    status = alone[0].folder.read("status.json")
    assert (status["state"], status["exit_code"]) == ("interrupted", 130)


def _closed(probe: Probe) -> list[StepRecord | EventRecord]:
    probe.close()
    return records(probe)
