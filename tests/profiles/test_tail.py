"""What the tail says: savings of known size, in blocks that drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pytest
from scalelab.profiles.analysis.columns import Steps
from scalelab.profiles.analysis.load import RankRecords, Run
from scalelab.profiles.analysis.tail import counterfactual, overhead, savings
from scalelab.profiles.records import BlockRecord, Cause

CAUSES: tuple[Cause, ...] = ("bare", "free_wire")


def chain(rounds: int, causes: Sequence[Cause] = CAUSES) -> list[tuple[int, Cause | None]]:
    plan: list[tuple[int, Cause | None]] = [(0, None)]
    for number in range(rounds):
        for cause in causes:
            plan += [(number, cause), (number, cause), (number, None)]
    return plan


def run_of(*ranks: Sequence[BlockRecord], asked: bool = True) -> Run:
    rows = tuple(
        RankRecords(
            rank=index,
            start=None,
            steps=Steps.of([]),
            events=(),
            memory=None,
            window=None,
            end=None,
            unreadable=0,
            blocks=tuple(blocks),
        )
        for index, blocks in enumerate(ranks)
    )
    return Run(run_id="", run_json={"config": {"counterfactual": asked}}, status={}, ranks=rows)


def blocks(seconds: Callable[[int, Cause | None], float], rounds: int = 3) -> list[BlockRecord]:
    """Blocks of 20 steps behind two long ones that do not count."""
    return [
        BlockRecord(round=number, cause=cause, dropped=2, step_seconds=[9.0, 9.0, *[seconds(place, cause)] * 20])
        for place, (number, cause) in enumerate(chain(rounds))
    ]


def test_a_drift_that_is_linear_cancels() -> None:
    """A B B A: each block is 1 ms slower than the one before; the wire costs 5 ms."""
    found = savings(run_of(blocks(lambda place, cause: 0.1 + 0.001 * place - 0.005 * (cause == "free_wire"))))
    assert found["free_wire"].seconds == pytest.approx(0.005)
    assert found["bare"].seconds == pytest.approx(0.0, abs=1e-12)
    low, high = found["free_wire"].ci95
    assert low < 0.005 < high


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Blocks that vary as a whole: of 400 runs about 95 % have the true saving in their interval."""
    generator = np.random.Generator(np.random.Philox(0))
    inside = 0
    for _ in range(400):
        run = run_of(blocks(lambda place, cause: 0.1 - 0.005 * (cause == "bare") + 0.01 * generator.standard_normal()))
        low, high = savings(run)["bare"].ci95
        inside += low <= 0.005 <= high
    assert 0.92 <= inside / 400 <= 0.99


def test_ranks_are_averaged() -> None:
    """The saving is the mean over ranks."""
    one = blocks(lambda place, cause: 0.1 - 0.02 * (cause == "free_wire"))
    two = blocks(lambda place, cause: 0.3)
    assert savings(run_of(one, two))["free_wire"].seconds == pytest.approx(0.01)


def test_what_ended_early_says_what_is_whole() -> None:
    """A chain cut short, or blocks that differ between ranks, tell of the rounds before."""
    whole = blocks(lambda place, cause: 0.1 - 0.005 * (cause == "bare"), rounds=1)
    assert set(savings(run_of(whole, whole[:5]))) == {"bare"}
    assert set(savings(run_of(whole, whole[:3]))) == set()
    other = [*whole[:4], msgspec.structs.replace(whole[4], cause="cached_batch"), *whole[5:]]
    assert set(savings(run_of(whole, other))) == {"bare"}


def test_the_summary_gives_headroom_and_overhead_or_says_why_not() -> None:
    run = run_of(blocks(lambda place, cause: 0.1 - 0.005 * (cause == "free_wire") - 0.002 * (cause == "bare")))
    told: dict[str, str] = {}
    found = counterfactual(run, told.__setitem__)
    assert found is not None
    assert set(found) == {"free_wire"}
    assert found["free_wire"]["headroom_seconds"] == pytest.approx(0.005)
    cost = overhead(run, told.__setitem__)
    assert cost is not None
    assert cost["share_of_step"] == pytest.approx(0.002 / 0.098)
    assert cost["calls_share_of_step"] is None
    assert set(told) == {"overhead.calls_share_of_step"}
    told.clear()
    timed = BlockRecord(round=0, cause="timed", dropped=2, step_seconds=[0.1] * 22, call_seconds=0.00049)
    cost = overhead(run_of([*run.ranks[0].blocks, timed]), told.__setitem__)
    assert cost is not None
    assert cost["calls_share_of_step"] == pytest.approx(0.005)
    assert told == {}
    for empty in (run_of([], asked=False), run_of([])):
        assert counterfactual(empty, told.__setitem__) is None
        assert overhead(empty, told.__setitem__) is None
        assert set(told) == {"counterfactual", "overhead"}


def test_the_way_through_python_that_a_bare_step_keeps_is_counted() -> None:
    """Measuring costs 5 ms; a bare step keeps 1 of them, and one that keeps it twice has 2."""
    kept = {None: 5, "bare": 1, "passed_twice": 2}
    records = [
        BlockRecord(round=number, cause=cause, dropped=0, step_seconds=[0.1 + 0.001 * kept[cause]] * 20)
        for number, cause in chain(3, ("bare", "passed_twice"))
    ]
    cost = overhead(run_of(records), lambda path, why: None)
    assert cost is not None
    assert cost["share_of_step"] == pytest.approx(0.05)
    assert cost["ci95"] == pytest.approx([0.05, 0.05])
    assert "twice" in cost["method"]
    found = counterfactual(run_of(records), lambda path, why: None)
    assert found is None
