"""The part of the summary that profiler traces tell, one trace a rank."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .clocks import wall_clocks_ahead_ns
from .load import Run
from .reasons import Null
from .trace.merge import merge
from .trace.reader import read_trace
from .trace.said import facts_of, said_by

SUFFIXES = (".json", ".json.gz")
MERGED = "all_ranks.json.gz"
MOST_MERGED_BYTES = 256 << 20
_RANK_FILE = re.compile(r"r(\d{3,})\.pt\.trace\.json(\.gz)?")
# What is compared between ranks, each the mean over them of that of a rank's first device.
DEVICE_SECONDS = (
    "span_seconds",
    "compute_seconds",
    "exposed_communication_seconds",
    "overlapped_communication_seconds",
    "communication_seconds",
    "exposed_copies_seconds",
    "idle_seconds",
)


def trace_files(folder: Path) -> dict[int, Path]:
    """The trace of each rank in a run's folder."""
    matches = {path: _RANK_FILE.fullmatch(path.name) for path in (folder / "traces").glob("r*")}
    return {int(match[1]): path for path, match in sorted(matches.items()) if match}


def read_traces(files: dict[int, Path]) -> list[dict[str, Any]]:
    """What each rank's trace says, with `rank` and `facts`; `unusable` holds why, where nothing could be used."""
    rows = []
    for rank, path in files.items():
        try:
            trace = read_trace(path)
        except (OSError, ValueError) as error:
            rows.append(without_trace(rank, str(error)))
            continue
        rows.append({"rank": rank, "facts": facts_of(trace), "unusable": None, **said_by(trace)})
    return rows


def without_trace(rank: int, why: str) -> dict[str, Any]:
    """The row of a rank whose trace cannot be used, or was not written."""
    return {"rank": rank, "unusable": why}


def merge_traces(folder: Path, files: dict[int, Path], run: Run) -> dict[str, Any]:
    """Write one trace of all ranks beside theirs: its `file` and the events that were `left_out`; or `why` there is
    none."""
    if not files:
        return {"why": "there is no trace"}
    if sum(path.stat().st_size for path in files.values()) > MOST_MERGED_BYTES:
        return {"why": f"the traces take more than {MOST_MERGED_BYTES >> 20} MiB together"}
    ahead = wall_clocks_ahead_ns(run) if run.ranks else {}
    if isinstance(ahead, str):
        return {"why": ahead}
    usable = {}
    for rank, path in files.items():
        with contextlib.suppress(OSError, ValueError):
            usable[rank] = read_trace(path)
    if not usable:
        return {"why": "no trace could be used"}
    return {"file": f"traces/{MERGED}", "left_out": merge(usable, ahead, folder / "traces" / MERGED)}


def traces(rows: Sequence[dict[str, Any]], merged: Mapping[str, Any], null: Null, why: str) -> dict[str, Any] | None:
    """`rows` (of `read_traces`) with their means over ranks, and the trace of all; null, because of `why`, without."""
    usable = [row for row in rows if row["unusable"] is None]
    for row in rows:
        if row["unusable"] is not None:
            null(f"trace.per_rank.{row['rank']}", row["unusable"])
    if not usable:
        null("trace", why if not rows else "no trace could be used")
        return None
    first = [row["devices"][0] for row in usable if row["devices"]]
    if not first:
        null("trace.device_mean", "the traces show neither kernels nor operators")
    mean = {name: float(np.mean([each[name] for each in first])) for name in DEVICE_SECONDS} if first else None
    return {
        "steps": min(len(row["steps"]) for row in usable),
        "device_mean": mean,
        "merged": _merged(merged, null),
        "per_rank": [{key: value for key, value in row.items() if key != "facts"} for row in rows],
    }


def _merged(found: Mapping[str, Any], null: Null) -> dict[str, Any] | None:
    if "why" in found:
        null("trace.merged", found["why"])
        return None
    return {"file": found["file"], "left_out_events": found["left_out"]}


def mean_of(rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> float | None:
    """The mean over ranks of `value(row)`; None where one of them has none."""
    values = [value(row) for row in rows]
    known = [each for each in values if each is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
