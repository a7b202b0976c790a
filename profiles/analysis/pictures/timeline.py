"""The collectives of one step on every rank, on one clock."""

from __future__ import annotations

import math
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
        at = run.places[index][column]
        if rank.steps.begin_ns[at] < 0 or int(rank.steps.comm.plan[at]) not in rank.comm_plans:
            return None
        begins.append(int(rank.steps.begin_ns[at] + shared.offsets_ns[index, column]))
    first = min(begins)
    chosen = _chosen(run.step_seconds[:, column])
    rows = [
        _rank(run.ranks[index], int(run.places[index][column]), (begins[index] - first) * SECONDS) for index in chosen
    ]
    return {
        "step": step,
        "seconds": float(means[column]),
        "of_ranks": len(run.ranks),
        "clock_residual_seconds": shared.residual_seconds,
        "unseen_ends": sum(call["end_seconds"] is None for row in rows for call in row["calls"]),
        "ranks": rows,
    }


def _chosen(seconds: np.ndarray) -> list[int]:
    """At most RANKS ranks by their place in the order of `seconds`."""
    if len(seconds) <= RANKS:
        return list(range(len(seconds)))
    order = np.argsort(seconds, kind="stable")
    return sorted(int(order[round(place)]) for place in np.linspace(0, len(seconds) - 1, RANKS))


def _rank(rank: RankRecords, at: int, begin: float) -> dict[str, Any]:
    comm = rank.steps.comm.take(np.array([at]))
    shapes = rank.comm_plans[int(comm.plan[0])]
    calls = [
        {
            "kind": shape.kind,
            "payload_bytes": shape.payload_bytes,
            "phase": shape.phase,
            "handed_in_seconds": begin + handed * SECONDS,
            "end_seconds": None if math.isnan(end) else begin + end * SECONDS,
        }
        for shape, handed, end in zip(shapes, comm.handed_in.tolist(), comm.ended.tolist(), strict=True)
    ]
    waits = [
        {"collective": collective, "begin_seconds": begin + since * SECONDS, "end_seconds": begin + until * SECONDS}
        for collective, since, until in comm.waits.tolist()
    ]
    return {
        "rank": rank.rank,
        "begin_seconds": begin,
        "end_seconds": begin + float(rank.steps.numbers["seconds"][at]),
        "of_calls": len(calls),
        "exact": bool(comm.exact[0]),
        "calls": calls[:CALLS],
        "waits": waits[:CALLS],
    }
