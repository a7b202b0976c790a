"""Clocks of several hosts are brought together: an offset and a drift that were put in are found again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from scalelab.launch.ranks import Rank, control_group
from scalelab.profiles.analysis.clocks import Clocks, clocks
from scalelab.profiles.analysis.columns import Steps
from scalelab.profiles.analysis.load import RankRecords, Run
from scalelab.profiles.capture.clocks import ROUNDS, compare_clocks, over
from scalelab.profiles.records import ClockRecord, StartRecord, StepRecord
from torch import distributed

from tests.support import ranks

OFFSET_NS = 5_000_000_000
DRIFT = 2e-4
BOOTS = ["a", "a", "b", "b"]


def skewed(start: int) -> Callable[[], int]:
    """A clock that runs DRIFT too fast and is OFFSET_NS behind at `start`."""
    return lambda: round((time.perf_counter_ns() - start) * (1 + DRIFT)) + start - OFFSET_NS


def read_twice(rank: Rank, start: int) -> dict[str, Any]:
    """The readings of a rank before and after a pause, and moments within it by both clocks."""
    clock = time.perf_counter_ns if BOOTS[rank.rank] == "a" else skewed(start)
    send, receive = over(control_group())
    readings = [compare_clocks(rank.rank, BOOTS, send, receive, clock)]
    moments = []
    for _ in range(5):
        time.sleep(0.1)
        moments.append((time.perf_counter_ns(), clock()))
    distributed.barrier()
    readings.append(compare_clocks(rank.rank, BOOTS, send, receive, clock))
    return {"readings": [msgspec.structs.asdict(each) for each in readings if each is not None], "moments": moments}


def run_of(found: list[dict[str, Any]], boots: list[str] = BOOTS) -> Run:
    rows = []
    for rank, row in enumerate(found):
        start = StartRecord(
            rank=rank, local_rank=0, world_size=4, host="h", boot_id=boots[rank], pid=1, device="cpu", device_name="c",
            wall_seconds=0, monotonic_seconds=0, threads=1, versions={},
        )  # fmt: skip
        steps = tuple(
            StepRecord(
                step=index, role="measured", start_seconds=0, seconds=1, phases={}, host_data_seconds=0, losses=[],
                samples=1, lr=0, begin_ns=own,
            )
            for index, (_, own) in enumerate(row["moments"])
        )  # fmt: skip
        rows.append(
            RankRecords(
                rank=rank, start=start, steps=Steps.of(steps), events=(), memory=None, window=None,
                end=None, unreadable=0,
                clocks=tuple(ClockRecord(**reading) for reading in row["readings"]),
            )
        )  # fmt: skip
    return Run(run_id="", run_json={}, status={}, ranks=tuple(rows))


@pytest.mark.fault(52)
def test_offset_and_drift_are_recovered_within_the_residual() -> None:
    """Both ranks of the other host get the true clock back, to within what is stated; rank 0's host is left alone."""
    found = ranks.run_ranks(read_twice, 4, time.perf_counter_ns())
    assert [len(row["readings"]) for row in found] == [0, 0, 2, 0]
    known = clocks(run_of(found))
    assert isinstance(known, Clocks)
    assert not known.offsets_ns[:2].any()
    for rank in (2, 3):
        true, own = np.array(found[rank]["moments"]).T
        # The moments' two clocks are read one after the other.
        assert np.abs(own + known.offsets_ns[rank] - true).max() <= known.residual_seconds * 1e9 + 200_000
        assert abs(known.offsets_ns[rank][0] - OFFSET_NS) < OFFSET_NS * 0.01
        assert np.ptp(known.offsets_ns[rank]) > 0.5 * DRIFT * np.ptp(own)


def test_the_shortest_round_trip_counts() -> None:
    """Of rounds that take 9, 3 and 7 the one of 3 is taken, its middle, and half of it, rounded up."""
    ticks = iter([0, 9, 10, 13, 20, 27, *range(100, 100 + 40 * ROUNDS, 20)])
    reading = compare_clocks(1, ["a", "b"], lambda number, to: None, lambda sender: 1000, lambda: next(ticks))
    assert reading == ClockRecord(at_ns=11, offset_ns=989, residual_ns=2)


@pytest.mark.parametrize("missing", ["both", "last", "start"])
def test_clocks_that_were_not_compared_are_not_taken_for_one(missing: str) -> None:
    """Null with a reason: a run that ended early has one reading, one without a first record none."""
    reading = {"at_ns": 1, "offset_ns": 2, "residual_ns": 3}
    rows = [{"readings": [], "moments": [(1, 1)]}, {"readings": [reading] * (missing == "last"), "moments": [(1, 1)]}]
    run = run_of(rows, ["a", "b"])
    if missing == "start":
        run = Run(
            run_id="",
            run_json={},
            status={},
            ranks=(run.ranks[0], RankRecords(**{**vars(run.ranks[1]), "start": None})),
        )
    assert isinstance(clocks(run), str)
    same = clocks(run_of(rows, ["a", "a"]))
    assert isinstance(same, Clocks)
    assert same.residual_seconds == 0
