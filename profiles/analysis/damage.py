"""What is gone of the records and the traces of a run that had them: a part of it would pass for the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .load import RankRecords, Run

FINISHED = "finished"
RANKS_NAMED = 8


def expected_steps(run: Run) -> int:
    """Measured steps that a run is to make: as configured, else (a loop of its own) the most that a rank recorded."""
    return run.run_json["config"].get("steps") or max(map(_recorded, run.ranks), default=0)


def lost_records(run: Run, measured: int) -> list[str]:
    """What is not there of the records of a run that finished, of which `measured` steps are there of all ranks. Of
    one that did not, what it was to record is not known."""
    if run.status.get("state") != FINISHED:
        return []
    expected, configured = expected_steps(run), run.run_json["config"].get("steps")
    short = dict.fromkeys(run.missing_ranks, 0)
    short |= {
        rank.rank: _recorded(rank) for rank in run.ranks if _recorded(rank) < expected and _damaged(rank, configured)
    }
    lines = []
    if measured < expected and (short or not run.ranks):
        of_all = " of all ranks" if run.run_json["world_size"] != 1 else ""
        whose = [f"rank {rank} has {count or 'none'}" for rank, count in sorted(short.items())]
        more = [f"{len(whose) - RANKS_NAMED} more ranks lack some"] if len(whose) > RANKS_NAMED else []
        told = ", ".join([*whose[:RANKS_NAMED], *more])
        lines.append(
            f"{measured} of {expected} measured steps{of_all} {'is' if expected == 1 else 'are'} there"
            + (f": {told}" if told else "")
        )
    lines += [
        f"{_lines(rank.unreadable)} of ranks/r{rank.rank:03d}.jsonl cannot be read"
        for rank in run.ranks
        if rank.unreadable
    ]
    others = sum(each.unreadable for each in run.telemetry) + run.unreadable_of_hosts
    return [*lines, *([f"{_lines(others)} of telemetry/ cannot be read"] if others else [])]


def lost_traces(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The same of traces, `rows` of `read_traces`."""
    return [f"trace of rank {row['rank']}: {why}" for row in rows for why in row.get("damage") or ()]


def _recorded(rank: RankRecords) -> int:
    return rank.window.steps if rank.window else int(rank.steps.measured.sum())


def _damaged(rank: RankRecords, configured: int | None) -> bool:
    """Ranks of a loop of its own may make unlike many steps: those that wrote their end made what they have."""
    return configured is not None or rank.end is None or rank.unreadable > 0


def _lines(count: int) -> str:
    return f"{count} line{'s' * (count != 1)}"
