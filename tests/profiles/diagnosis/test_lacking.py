"""What is no rule's: a run that failed or goes on, and time that no cause has. It leads, and is said once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from scalelab.profiles.analysis.load import Run
from scalelab.profiles.records import EventRecord
from scalelab.reports.diagnosis_card import verdict_line

from tests.profiles.diagnosis.made import STEPS, made, readings, told
from tests.profiles.diagnosis.test_rules import crowded

OWN = {
    "strategy": "own", "launcher": "own", "device": "cpu", "nodes": 1, "model": "tiny", "probe": "on", "engine": "own",
    "record_grad_norm": False, "memory_step": "off",
    **dict.fromkeys(("micro_batch", "grad_accumulation", "global_batch", "checkpointing", "compile")),
}  # fmt: skip


def own_loop(outside: float, unmarked: bool = False, **more: Any) -> Run:
    """A loop of its own with so many seconds a step outside of its phases."""
    run = made(ranks=1, hosts=readings(), **more)
    for rank in run.ranks:
        rank.steps.numbers["seconds"] += outside
        if unmarked:
            rank.steps.numbers["seconds"] -= rank.steps.phases["data"]
            rank.steps.phases["data"][:] = 0.0
    return replace(run, run_json={**run.run_json, "config": OWN})


def test_of_a_run_that_failed_the_failure_leads() -> None:
    """Before the cause that its steps show, and first of what cannot be told."""
    run = crowded(0.08, others=2.0)
    run.status.update(state="failed", cause="RuntimeError: boom")
    found = told(run)
    assert found["verdict"]["label"] == "cpu_contention"
    assert found["verdict"]["ended"] == f"the run failed: RuntimeError: boom; of its {STEPS} measured steps before that"
    assert "the run, which failed" in found["cannot_tell"][0]["lacks"]
    assert verdict_line(found).startswith("diagnosis: the run failed: RuntimeError: boom")


def test_a_loop_without_a_step_is_told_what_it_lacks() -> None:
    """Not its files, which are there."""
    run = made(ranks=1, steps=0, batches=None)
    run.status.update(state="finished")
    (lack, *_) = told(replace(run, run_json={**run.run_json, "config": OWN}))["cannot_tell"]
    assert "probe.step()" in lack["lacks"]


def test_of_a_run_that_goes_on_that_is_said() -> None:
    run = made()
    run.status.update(state="running")
    assert f"still running, or killed before it could say so: {STEPS} measured steps" in told(run)["verdict"]["ended"]
    assert told(made())["verdict"]["ended"] is None


@pytest.mark.parametrize(("given", "says"), [("off", "with --memory-step on"), ("on", "to its end")])
def test_no_option_is_proposed_that_was_given(given: str, says: str) -> None:
    run = made(config={"memory_step": given})
    bare = replace(run, ranks=tuple(replace(rank, memory_step=None) for rank in run.ranks))
    lack = next(each for each in told(bare)["cannot_tell"] if each["label"] == "launch_bound")
    assert says in lack["rerun"]


def test_a_loop_of_its_own_is_told_no_option_that_it_does_not_have() -> None:
    """But what the same model under scalelab run would tell."""
    config = {"config": OWN}
    run = made(fields=lambda rank, step: {"run_delay_seconds": 0.05}, batches=None)
    ranks = tuple(replace(rank, memory_step=None, comm_plans={0: []}) for rank in run.ranks)
    lacks = told(replace(run, run_json={**run.run_json, **config}, ranks=ranks))["cannot_tell"]
    assert {"comm_bandwidth", "straggler_rank", "launch_bound", "cpu_contention"} <= {each["label"] for each in lacks}
    for each in lacks:
        assert "--" not in each["rerun"] or "under scalelab run" in each["rerun"]
        assert not each["rerun"].startswith("the run again")


def test_time_that_no_cause_has_leads_where_it_is_more_than_the_verdicts() -> None:
    """A sleep outside of the loop's phases beside a smaller checkpoint."""
    events = [EventRecord(event="checkpoint", step=step, start_seconds=0.0, seconds=0.2) for step in range(1, STEPS, 4)]
    found = told(own_loop(0.1, events=events))
    assert found["verdict"]["label"] == "periodic_stall"
    assert "more than periodic_stall, and not known" in found["verdict"]["says"]
    assert "outside of the loop's phases" in found["verdict"]["says"]
    less = told(own_loop(0.04, events=events))
    assert less["verdict"]["label"] == "periodic_stall"
    assert less["verdict"]["says"] == ""


def test_a_wait_for_batches_that_is_not_marked_is_said_once() -> None:
    """With the time in which it lies, and how to mark it."""
    found = told(own_loop(0.1, unmarked=True))
    lacks = [each for each in found["cannot_tell"] if "batch" in each["lacks"] and each["label"] != "data_imbalance"]
    assert len(lacks) == 1
    assert "probe.batches" in lacks[0]["rerun"]
    assert "100 ms" in lacks[0]["lacks"]
