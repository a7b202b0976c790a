"""The part of the summary that profiler traces tell, one trace a rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .reasons import Null
from .trace.events import read_trace
from .trace.said import facts_of, said_by

SUFFIXES = (".json", ".json.gz")
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
            rows.append({"rank": rank, "file": path.name, "unusable": str(error)})
            continue
        rows.append({"rank": rank, "facts": facts_of(trace), "unusable": None, **said_by(trace)})
    return rows


def traces(rows: Sequence[dict[str, Any]], null: Null, why: str) -> dict[str, Any] | None:
    """`rows` (of `read_traces`) with their means over ranks; null, because of `why`, without any."""
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
        "per_rank": [{key: value for key, value in row.items() if key != "facts"} for row in rows],
    }


def mean_of(rows: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> float | None:
    """The mean over ranks of `value(row)`; None where one of them has none."""
    values = [value(row) for row in rows]
    known = [each for each in values if each is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
