"""Ranks that are late: several at once, in several phases, by turns; and what comes now and then."""

from __future__ import annotations

from typing import Any

import pytest
from scalelab.profiles.analysis.diagnosis.diagnose import diagnose
from scalelab.profiles.analysis.load import Run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import EventRecord

from tests.profiles.diagnosis.made import STEPS, made
from tests.profiles.diagnosis.test_rules import on_device


def told(run: Run) -> dict[str, Any]:
    return diagnose(run, summarise(run))


def test_several_slow_ranks_are_all_named() -> None:
    """Two of four, as on one throttled host: as much would be bought as if there were one, and both are told."""
    slow = {2, 3}
    found = told(made(ranks=4, extra=lambda rank, step, name: 0.04 * (rank in slow and name == "forward")))
    assert found["verdict"]["label"] == "straggler_rank"
    values = found["findings"][0]["evidence"][0]["values"]
    assert {values["rank"], *values["late_too"]} == slow
    assert found["verdict"]["headroom_seconds"] == pytest.approx(0.04, rel=0.1)


def test_what_a_late_rank_costs_is_all_that_it_takes_longer() -> None:
    """In forward and in backward, not in the worse of the two alone."""
    extra = {"forward": 0.02, "backward": 0.03}
    found = told(made(extra=lambda rank, step, name: extra.get(name, 0.0) * rank))
    assert found["verdict"]["label"] == "straggler_rank"
    assert found["verdict"]["headroom_seconds"] == pytest.approx(0.05, rel=0.1)


def test_ranks_that_are_late_by_turns_are_no_healthy_run() -> None:
    """Each waits for the other half of the time: no rank is late, and why they wait is not known."""
    found = told(made(extra=lambda rank, step, name: 0.08 * (step % 2 == rank and name == "forward")))
    assert found["verdict"]["label"] == "cannot_tell"
    assert "no one rank is late" in found["verdict"]["says"]


def test_a_run_that_failed_is_not_called_healthy() -> None:
    run = made()
    run.status.update(state="failed", cause="rank 1: CUDA out of memory", hint="lower --micro-batch")
    found = told(run)
    assert found["verdict"]["label"] == "cannot_tell"
    assert "CUDA out of memory" in found["verdict"]["ended"]
    assert "lower --micro-batch" in found["verdict"]["says"]


@pytest.mark.parametrize("every", [10, 18])
def test_rare_checkpoints_are_named_by_what_they_cost(every: int) -> None:
    """Two or four of a second each, in steps of a tenth: how often they come is known, and has no spread. One at the
    end, which only the end asked for, does not come again."""
    config = {"save_every": every, "warmup": 0, "steps": STEPS}
    due = [step for step in range(STEPS) if (step + 1) % every == 0]
    events = [
        EventRecord(event="checkpoint", step=step, start_seconds=0.0, seconds=1.0 + 0.01 * (step % 3))
        for step in sorted({*due, STEPS - 1})
    ]
    found = told(made(config=config, events=events))
    assert found["verdict"]["label"] == "periodic_stall"
    assert found["verdict"]["headroom_seconds"] == pytest.approx(len(due) / STEPS, rel=0.05)
    assert found["findings"][0]["evidence"][0]["values"]["count"] == len(due)


def test_a_stall_is_seen_beside_the_collectors_pauses() -> None:
    """A little garbage in every step hides no stop of a tenth of a second every ten steps."""
    run = made(
        extra=lambda rank, step, name: 0.4 * (step % 10 == 5 and name == "backward"),
        fields=lambda rank, step: {"gc_seconds": 0.005},
    )
    found = told(run)
    assert found["verdict"]["label"] == "periodic_stall"
    assert found["verdict"]["headroom_seconds"] == pytest.approx(0.045, rel=0.1)


def test_idle_time_of_a_device_is_counted_whole_and_once() -> None:
    """More of it than forward takes; what follows a wait of the host is the wait's, the rest the launches'."""
    found = on_device(not_launched=0.07, after_sync=0.04)
    seconds = {row["label"]: row["headroom_seconds"] for row in found["findings"]}
    assert seconds["host_sync"] == pytest.approx(0.04, rel=0.05)
    assert seconds["launch_bound"] == pytest.approx(0.03, rel=0.05)
