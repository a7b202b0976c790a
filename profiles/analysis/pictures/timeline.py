"""The collectives of one step on every rank, on one clock."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..clocks import Clocks, clocks
from ..load import RankRecords, Run

RANKS = 8
CALLS = 400
"""Collectives drawn of a rank; of a step with more, the first."""
SECONDS = 1e-9


def timeline(run: Run) -> dict[str, Any] | None:
    """The measured step whose mean over ranks is nearest to the median: for each collective when it was handed in and
    when it had ended, and when the rank waited for it, in seconds from the first rank's begin.

    Of more than RANKS ranks, those at even quantiles of own step time, the fastest and the slowest among them. None
    where the ranks' clocks cannot be compared or collectives were not recorded.
    """
    shared = clocks(run)
    if not run.complete_steps or len(run.ranks) < 2 or not isinstance(shared, Clocks):
        return None
    means = run.step_seconds.mean(axis=0)
    column = int(np.abs(means - np.median(means)).argmin())
    step = run.complete_steps[column]
    begins = []
    for index, rank in enumerate(run.ranks):
        record = rank.measured[step]
        if record.begin_ns is None or record.comm is None or record.comm.plan not in rank.comm_plans:
            return None
        begins.append(record.begin_ns + int(shared.offsets_ns[index, column]))
    first = min(begins)
    chosen = _chosen(run.step_seconds[:, column])
    return {
        "step": step,
        "seconds": float(means[column]),
        "of_ranks": len(run.ranks),
        "clock_residual_seconds": shared.residual_seconds,
        "ranks": [_rank(run.ranks[index], step, (begins[index] - first) * SECONDS) for index in chosen],
    }


def _chosen(seconds: np.ndarray) -> list[int]:
    """At most RANKS ranks by their place in the order of `seconds`."""
    if len(seconds) <= RANKS:
        return list(range(len(seconds)))
    order = np.argsort(seconds, kind="stable")
    return sorted(int(order[round(place)]) for place in np.linspace(0, len(seconds) - 1, RANKS))


def _rank(rank: RankRecords, step: int, begin: float) -> dict[str, Any]:
    record = rank.measured[step]
    comm = record.comm
    assert comm is not None
    shapes = rank.comm_plans[comm.plan]
    calls = [
        {
            "kind": shape.kind,
            "payload_bytes": shape.payload_bytes,
            "phase": shape.phase,
            "handed_in_seconds": begin + handed * SECONDS,
            "end_seconds": None if end is None else begin + end * SECONDS,
        }
        for shape, handed, end in zip(shapes, comm.handed_in_ns, comm.ended_ns, strict=True)
    ]
    waits = [
        {
            "collective": comm.waits[at],
            "begin_seconds": begin + comm.waits[at + 1] * SECONDS,
            "end_seconds": begin + comm.waits[at + 2] * SECONDS,
        }
        for at in range(0, len(comm.waits), 3)
    ]
    return {
        "rank": rank.rank,
        "begin_seconds": begin,
        "end_seconds": begin + record.seconds,
        "of_calls": len(calls),
        "exact": comm.exact,
        "calls": calls[:CALLS],
        "waits": waits[:CALLS],
    }
