"""When ranks count as lost or hung, and who is blamed: by times that are handed in, without a process."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scalelab.launch.supervision.collectives import odd_one_out
from scalelab.launch.supervision.report import Evidence, Report
from scalelab.launch.supervision.sighting import Sighting
from scalelab.launch.supervision.verdict import conclude, decide, of_hang
from scalelab.launch.supervision.watchdog import FLOOR_SECONDS, PATIENT_SECONDS, STEP_FACTOR, Watchdog

NOW = 10_000.0


def rank(number: int = 0, **values) -> Sighting:
    """A rank in the forward of step 9, alive, one second after its last sign."""
    fields = {"pid": 1000 + number, "phase": "forward", "step": 9, "since": NOW - 1, "beat_at": NOW - 0.2,
              "p99_seconds": 0.1, "steps": 9, "process": "running"}  # fmt: skip
    return Sighting(rank=number, **{**fields, **values})


def error(number: int, at: float, *, consequence: bool = False, code: int = 5) -> Evidence:
    return Evidence(
        rank=number, host="a", at=at, phase="forward", step=3, exit_code=code, cause=f"c{number}",
        consequence=consequence,
    )  # fmt: skip


@given(st.floats(0.001, 100), st.floats(0.01, 1000))
def test_a_step_may_take_three_times_its_percentile(p99: float, age: float) -> None:
    """A hang is what lasts longer than 3 x p99 and longer than 30 s, on all ranks."""
    stuck = [rank(number, since=NOW - age, p99_seconds=p99) for number in (0, 1)]
    hung = age > max(STEP_FACTOR * p99, FLOOR_SECONDS)
    assert Watchdog().look(stuck, NOW) == ("hung" if hung else None)
    assert Watchdog().look([stuck[0], rank(1)], NOW) is None


@pytest.mark.parametrize(
    "values",
    [{"step": None, "phase": "building"}, {"phase": "checkpoint"}, {"phase": "evaluation"}, {"steps": 1, "step": 1}],
)
def test_what_no_percentile_covers_has_more_time(values: dict) -> None:
    """Start-up, the first steps and what lies between steps."""
    for age, found in ((PATIENT_SECONDS - 1, None), (PATIENT_SECONDS + 1, "hung")):
        assert Watchdog().look([rank(since=NOW - age, **values)], NOW) == found


def test_a_process_that_does_not_beat_hangs_in_every_phase() -> None:
    """Stopped or with its interpreter held: found by its beats, whatever the others do."""
    silent = rank(1, beat_at=NOW - FLOOR_SECONDS - 1, step=None, phase="building")
    assert Watchdog().look([rank(0), silent], NOW) == "hung"
    assert Watchdog(0).look([rank(0), silent], NOW) is None
    assert Watchdog(5).look([rank(0), rank(1, beat_at=NOW - 6)], NOW) == "hung"


def test_a_profiler_that_writes_its_trace_keeps_the_interpreter() -> None:
    """For minutes, where there are many events: such a rank is no hung one, and is not blamed for another."""
    writes = rank(1, phase="profiler", beat_at=NOW - FLOOR_SECONDS - 1)
    assert Watchdog().look([rank(0), writes], NOW) is None
    assert Watchdog().look([rank(0), rank(1, phase="profiler", beat_at=NOW - PATIENT_SECONDS - 1)], NOW) == "hung"
    silent = rank(0, beat_at=NOW - FLOOR_SECONDS - 1)
    assert of_hang([writes, silent], None, "a", NOW, FLOOR_SECONDS).rank == 0


@pytest.mark.parametrize("values", [{"state": "failed"}, {"process": None}, {"process": "zombie"}, {"end_code": -9}])
def test_a_rank_that_is_gone_is_lost_at_once(values: dict) -> None:
    """Unless it has said that it was done."""
    assert Watchdog().look([rank(0), rank(1, **values)], NOW) == "lost"
    if "state" not in values:
        assert Watchdog().look([rank(0), rank(1, state="finished", **values)], NOW) is None


def test_a_rank_that_has_not_begun_is_not_lost() -> None:
    """Before its process is known there is nothing to miss."""
    assert Watchdog().look([Sighting(rank=0), Sighting(rank=1)], NOW) is None


@given(st.permutations(range(4)), st.integers(0, 3))
def test_the_earliest_cause_is_blamed_and_never_a_consequence(order: list[int], culprit: int) -> None:
    """Whatever the order in which ranks are heard, and though consequences may carry earlier times."""
    evidence = [error(number, at=float(number), consequence=number != culprit) for number in order]
    found = decide(evidence)
    assert found["culprit"]["rank"] == culprit
    assert [other["rank"] for other in found["consequences"]] == [number for number in range(4) if number != culprit]


def test_ranks_with_the_same_trouble_are_named_together() -> None:
    """Two ranks that ran out of memory: the first is the culprit, the other is not its consequence."""
    found = decide([error(1, 1.0, code=7), error(0, 2.0, code=7)])
    assert (found["exit_code"], found["culprit"]["rank"], found["cause"]) == (7, 1, "c1 (rank 0 too)")


def call(sequence: int, operation: str = "all_reduce", sizes: list | None = None, group: str = "0") -> dict:
    return {"group": group, "sequence": sequence, "operation": operation, "sizes": sizes or [[8]]}


@given(st.integers(2, 5), st.integers(0, 4), st.integers(1, 20), st.integers(0, 15))
def test_the_rank_that_skips_is_the_odd_one(world: int, skips: int, last: int, forgotten: int) -> None:
    """Of ranks that list the same collectives, one has left out the last; older ones may have fallen off its ring."""
    skips %= world
    lists = {n: [call(s) for s in range(1, last + (n != skips) + 1)][-max(1, 16 - forgotten) :] for n in range(world)}
    found = odd_one_out(lists)
    assert found is not None
    assert found.rank == skips
    assert f"collective {last + 1} is all_reduce of 8" in found.text


def test_other_operations_and_sizes_are_odd() -> None:
    """A difference in kind or size at the same number; equal lists have none; one list alone says nothing."""
    same = [call(1), call(2)]
    assert odd_one_out({0: same, 1: same, 2: same}) is None
    assert odd_one_out({0: same}) is None
    found = odd_one_out({0: same, 1: [call(1), call(2, "all_gather")], 2: same})
    assert found is not None
    assert (found.rank, found.text) == (1, "collective 2 is all_reduce of 8 on rank 0, 2, rank 1 is in all_gather of 8")
    found = odd_one_out({0: same, 1: same, 2: [call(1), call(2, sizes=[[4, 2]])]})
    assert found is not None
    assert "rank 2 is in all_reduce of 4x2" in found.text


def test_a_hang_is_blamed_over_all_hosts() -> None:
    """Each host sees its own ranks wait; which one the others wait for shows when their reports meet."""
    waiting = [rank(number, phase="backward", since=NOW - 40) for number in (0, 1, 2)]
    late = rank(3, phase="data", since=NOW - 40)
    reports = [Report(host="a", ranks=waiting[:2], stuck=waiting[:2], silence_seconds=1e9),
               Report(host="b", ranks=[waiting[2], late], stuck=[waiting[2], late], silence_seconds=1e9)]  # fmt: skip
    sent = [Report.from_json(report.to_json(NOW), NOW) for report in reports]
    assert [list(report.stuck) for report in sent] == [list(report.stuck) for report in reports]
    assert {seen.rank for report in sent for seen in report.ranks} == {0, 1, 2, 3}
    found = conclude(sent)
    assert (found["exit_code"], found["culprit"]["rank"], found["culprit"]["phase"]) == (6, 3, "data")
    alike = conclude([replace(reports[0])])
    assert (alike["exit_code"], alike["culprit"]) == (6, None)
    assert "same place" in alike["cause"]


def test_times_of_another_host_are_read_on_ones_own_clock() -> None:
    """Clocks of hosts have nothing to do with each other: what was 3 s ago there was 3 s ago here."""
    report = Report(host="b", ranks=[rank(since=NOW - 3)], evidence=[error(0, NOW - 3)])
    here = Report.from_json(report.to_json(NOW), 50.0)
    assert (here.ranks[0].since, here.evidence[0].at) == (47.0, 47.0)


@pytest.mark.parametrize(("overran", "words"), [(False, "at once"), (True, "--grace")])
def test_ranks_that_did_not_leave_in_time_are_told_from_those_ended_at_once(overran: bool, words: str) -> None:
    """Of a second Ctrl-C, and of a first that ranks were too slow for."""
    found = conclude([Report(host="a", ranks=[rank()], signal=signal.SIGINT, overran=overran)])
    assert found["state"] == "interrupted"
    assert words in found["cause"]
