"""An own loop that uses the probe in another way than was meant: it is refused at the call, or said once and left out;
it ends no job."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scalelab
import torch
from scalelab.launch import own_calls
from scalelab.launch.attach import Probe
from scalelab.launch.commands import report
from scalelab.profiles.records import EventRecord, StepRecord
from torch import nn

BATCHES = [torch.ones(4, 3)] * 6
Loop = tuple[Probe, nn.Module, torch.optim.Optimizer]
Say = pytest.CaptureFixture[str]


def update(loop: Loop, batches: Iterator[Any], draws: int = 1) -> None:
    """A step of so many micro-batches."""
    probe, model, optimizer = loop
    with probe.step():
        for _ in range(draws):
            model(next(batches)).sum().backward()
        optimizer.step()


def epoch(loop: Loop, losses: Callable[[torch.Tensor], Any] | None = None) -> None:
    probe, model, optimizer = loop
    for batch in probe.batches(BATCHES):
        with probe.step():
            loss = model(batch).square().mean()
            if losses is not None:
                probe.loss(losses(loss))
            loss.backward()
            optimizer.step()


def closed(probe: Probe) -> list[StepRecord | EventRecord]:
    """What was recorded, in its order, without the probe's own flushes; nothing of it is damaged."""
    probe.close()
    found, unreadable = probe.folder.records(0)[:2]
    assert not unreadable
    told = [each for each in found if isinstance(each, StepRecord | EventRecord)]
    return [each for each in told if not (isinstance(each, EventRecord) and each.event == "flush")]


def names(probe: Probe) -> list[str]:
    return [each.event if isinstance(each, EventRecord) else "step" for each in closed(probe)]


def state(probe: Probe) -> str:
    return probe.folder.read("status.json")["state"]


def test_a_loader_that_ends_within_a_step_is_the_loops_to_handle(alone: Loop, capsys: Say) -> None:
    """StopIteration comes out as it is; the half-made step is none, and the job has not failed."""
    for _ in range(2):
        batches = alone[0].batches(BATCHES)
        update(alone, batches, draws=4)
        with pytest.raises(StopIteration):
            update(alone, batches, draws=4)
    assert names(alone[0]) == ["step", "between_epochs", "step"]
    assert state(alone[0]) == "finished"
    assert capsys.readouterr().err.count(own_calls.ENDED_WITHIN) == 1


def test_a_step_that_takes_what_the_loader_had_left_is_one(alone: Loop) -> None:
    """Its inner loop ends with the loader; without any batch it is none."""
    probe, model, optimizer = alone
    batches = iter(BATCHES)
    for _ in range(3):
        with probe.step():
            for number, batch in enumerate(probe.batches(batches), start=1):
                model(batch).sum().backward()
                if number == 4:
                    break
            optimizer.step()
    assert [each.samples for each in closed(probe) if isinstance(each, StepRecord)] == [16, 8]


@pytest.mark.parametrize(
    "given",
    [None, "0.1", torch.ones(4), torch.ones(0), 1j, torch.ones((), dtype=torch.complex64), 10**400, [0.1]],
    ids=["none", "text", "vector", "empty", "complex", "complex_tensor", "beyond_floats", "list"],
)
def test_a_loss_that_is_no_number_is_left_out_and_said_once(alone: Loop, capsys: Say, given: Any) -> None:
    epoch(alone, lambda loss: given)
    assert names(alone[0]) == ["step"] * 6
    assert capsys.readouterr().err.count("Probe.loss: given a ") == 1
    assert state(alone[0]) == "finished"


@pytest.mark.parametrize("given", [2.5, torch.tensor([[2.5]]), torch.tensor(2.5).numpy(), torch.tensor([2.5]).numpy()])
def test_a_loss_may_be_any_number(alone: Loop, capsys: Say, given: Any) -> None:
    epoch(alone, lambda loss: given)
    assert [each.losses for each in closed(alone[0]) if isinstance(each, StepRecord)] == [[2.5]] * 6
    assert capsys.readouterr().err == ""


def test_a_loss_is_recorded_as_it_was_given(alone: Loop) -> None:
    """An integer, and a float to its last bit."""
    given = iter([3, 0.1, True, 1e300, float("inf"), float("nan")])
    epoch(alone, lambda loss: next(given))
    recorded = [each.losses for each in closed(alone[0]) if isinstance(each, StepRecord)]
    assert recorded == [[3.0], [0.1], [1.0], [1e300], [None], [None]]


def test_losses_that_are_not_finite_are_told_in_words(alone: Loop, capsys: Say) -> None:
    """In the terminal and in the report, and apart from steps whose loss nobody told."""
    probe = alone[0]
    epoch(alone, lambda loss: loss * float("nan"))
    epoch(alone)
    probe.close()
    assert probe.folder.read("summary.json")["steps"]["loss_not_finite"] == 6
    assert report.main([str(probe.folder.path)]) == 0
    assert "the loss was not finite in 6 of 12 steps" in " ".join(capsys.readouterr().out.split())
    page = (probe.folder.path / "report.md").read_text()
    assert "In 6 steps it was not finite" in page
    assert "Of 6 steps it was not told" in page


def test_a_step_within_a_step_is_refused(alone: Loop) -> None:
    with pytest.raises(ValueError, match=r"Probe\.step: a step is open; end it"), alone[0].step(), alone[0].step():
        pass
    epoch(alone)
    assert names(alone[0]) == ["failed_step", *["step"] * 6]


@pytest.mark.parametrize("inner", ["step", "event"])
def test_nothing_begins_within_an_event(alone: Loop, inner: str) -> None:
    """Its time would count twice."""
    probe = alone[0]
    epoch(alone)
    with pytest.raises(ValueError, match=rf"Probe\.{inner}: an event is open"), probe.event("evaluation"):
        with probe.step() if inner == "step" else probe.event("checkpoint"):
            pass
    epoch(alone)
    assert names(probe) == [*["step"] * 6, "between_epochs", "evaluation", "between_epochs", *["step"] * 6]


def test_batches_may_be_drawn_within_an_event(alone: Loop) -> None:
    """They are in no step: neither the wait for them nor their samples, to the loader's end or not."""
    probe, model, optimizer = alone
    held_out = probe.batches(BATCHES)
    for batch in probe.batches(BATCHES[:3]):
        with probe.event("evaluation"):
            next(held_out)
            assert len(list(probe.batches(BATCHES))) == 6
        with probe.step():
            model(batch).sum().backward()
            optimizer.step()
    found = closed(probe)
    assert names(probe) == ["evaluation", "step"] * 3
    assert [each.samples for each in found if isinstance(each, StepRecord)] == [4] * 3
    for before, after in itertools.pairwise(found):
        assert after.start_seconds == pytest.approx(before.start_seconds + before.seconds, abs=1e-9)


def test_an_unknown_event_is_refused_by_name(alone: Loop) -> None:
    unknown: Any = "hello"
    epoch(alone)
    with pytest.raises(ValueError, match="given 'hello', allowed 'evaluation' or 'checkpoint'"):
        with alone[0].event(unknown):
            pass
    assert names(alone[0]) == ["step"] * 6


def test_what_failed_and_was_caught_is_called_that(alone: Loop) -> None:
    """In the middle of an epoch, where nothing lies between two."""
    probe = alone[0]
    batches = probe.batches(BATCHES)
    update(alone, batches)
    with pytest.raises(RuntimeError, match="once"), probe.step():
        raise RuntimeError("once")
    update(alone, batches)
    with pytest.raises(RuntimeError, match="no such metric"), probe.event("evaluation"):
        raise RuntimeError("no such metric")
    update(alone, batches)
    assert names(probe) == ["step", "failed_step", "step", "evaluation", "step"]
    failed = {row["kind"]: row["failed"] for row in probe.folder.read("summary.json")["events"]}
    assert (failed["evaluation"], state(probe)) == (1, "finished")


def test_reasons_are_true_of_what_was_given_and_not_used(alone: Loop) -> None:
    """Another optimizer steps than that of the probe; each wait for a batch is an evaluation's."""
    probe, model, _ = alone
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in probe.batches(BATCHES):
        with probe.event("evaluation"):
            pass
        with probe.step():
            model(batch).sum().backward()
            other.step()
    probe.close()
    reasons = probe.folder.read("summary.json")["reasons"]
    assert reasons["phases.optimizer"].startswith("no optimizer that the probe was given made an update")
    assert reasons["phases.data"].startswith("no step drew from probe.batches(loader), in it or right before")


def test_a_closed_probe_says_so_once_and_ends_nothing(alone: Loop, capsys: Say) -> None:
    probe = alone[0]
    epoch(alone)
    with probe.event("checkpoint"):
        probe.close()
    for _ in range(2):
        epoch(alone, lambda loss: loss)
        with probe.event("evaluation"):
            pass
        probe.follow(alone[1], alone[2])
    assert names(probe) == [*["step"] * 6, "between_epochs"]
    assert capsys.readouterr().err == f"scalelab: {own_calls.CLOSED}\n"
    assert not alone[1]._forward_hooks


@pytest.mark.parametrize("raises", [False, True])
def test_a_probe_may_be_closed_within_a_step(alone: Loop, capsys: Say, raises: bool) -> None:
    """The step is none; an error in it passes on."""
    probe = alone[0]
    epoch(alone)
    try:
        with probe.step():
            alone[1](BATCHES[0])
            probe.close()
            if raises:
                raise RuntimeError("the user's")
    except RuntimeError:
        assert raises
    assert names(probe) == [*["step"] * 6, "between_epochs"]
    assert ("disk" in capsys.readouterr().err, state(probe)) == (False, "finished")


def test_a_second_probe_says_that_the_first_still_runs(alone: Loop, capsys: Say) -> None:
    """And not of one that is closed."""
    out = alone[0].folder.path.parent
    second = scalelab.Probe.attach(alone[1], alone[2], out=out)
    said = capsys.readouterr().err
    assert f"the probe of {alone[0].folder.path} still runs" in said
    assert str(second.folder.path) in said
    alone[0].close()
    second.close()
    scalelab.Probe.attach(alone[1], alone[2], out=out).close()
    assert "still runs" not in capsys.readouterr().err


@pytest.mark.parametrize("warmup", [-1, 2.5, None])
def test_a_warmup_that_is_no_number_of_steps_is_refused(tmp_path: Path, warmup: Any) -> None:
    """Before a folder is made."""
    with pytest.raises(ValueError, match=rf"warmup: given {warmup}, allowed a whole number at least 0"):
        scalelab.Probe.attach(nn.Linear(3, 1), out=tmp_path, warmup=warmup)
    assert list(tmp_path.iterdir()) == []
