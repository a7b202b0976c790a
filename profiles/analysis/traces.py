"""The part of the summary that profiler traces tell, one trace a rank."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .clocks import wall_clocks_ahead_ns
from .load import Run
from .reasons import Null
from .trace.merge import base_ns, merge
from .trace.reader import MOST_EVENTS, read_trace
from .trace.said import facts_of, launching_processes, said_by

SUFFIXES = (".json", ".json.gz")
MERGED = "all_ranks.json.gz"
CUT = "every trace is cut off: how much of each step is missing is not known"
MOST_MERGED_BYTES = 256 << 20
_RANK_FILE = re.compile(r"r(\d{3,})\.pt\.trace\.json(\.gz)?")
# What is compared between ranks.
# Below it another device's work is a stray allocation or a fill.
OTHER_DEVICE_SHARE = 0.05
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


def read_traces(files: dict[int, Path], *, on_cpu: bool = False) -> list[dict[str, Any]]:
    """What each rank's trace says, with `rank` and `facts`; `unusable` holds why, where nothing could be used. Of a job
    that is known to have run `on_cpu`, the devices that a file names are its machine's."""
    rows = []
    for rank, path in files.items():
        try:
            trace = read_trace(path)
            if on_cpu:
                said = {key: value for key, value in trace.metadata.items() if key != "deviceProperties"}
                trace = dataclasses.replace(trace, metadata=said)
            if (processes := launching_processes(trace)) > 1:
                raise ValueError(f"{path}: {processes} processes launch in it, whose work cannot be told apart")
            rows.append({"rank": rank, "facts": facts_of(trace), "unusable": None, **said_by(trace)})
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            rows.append(without_trace(rank, str(error)))
    return rows


def without_trace(rank: int, why: str) -> dict[str, Any]:
    """The row of a rank whose trace cannot be used, or was not written."""
    return {"rank": rank, "unusable": why}


def merge_traces(folder: Path, files: dict[int, Path], run: Run) -> dict[str, Any]:
    """Write one trace of all ranks beside theirs: its `file` and the events that were `left_out`; or `why` there is
    none."""
    if not files:
        return {"why": "there is no trace"}
    if len(files) == 1:
        return {"why": "one trace: there is nothing to merge it with"}
    if sum(path.stat().st_size for path in files.values()) > MOST_MERGED_BYTES:
        return {"why": f"the traces take more than {MOST_MERGED_BYTES >> 20} MiB together"}
    ahead = wall_clocks_ahead_ns(run) if run.ranks else {}
    if isinstance(ahead, str):
        return {"why": ahead}
    usable = {}
    for rank, path in files.items():
        with contextlib.suppress(OSError, ValueError, RecursionError):
            usable[rank] = read_trace(path)
        if sum(map(len, usable.values())) > MOST_EVENTS:
            return {"why": f"the traces hold more than {MOST_EVENTS:,} events together"}
    if not usable:
        return {"why": "no trace could be used"}
    if len(usable) == 1:
        return {"why": "one usable trace: there is nothing to merge it with"}
    if len({base_ns(trace) is None for trace in usable.values()}) > 1:
        return {"why": "some traces say from when they count, and others do not"}
    try:
        left_out = merge(usable, ahead, folder / "traces" / MERGED)
    except OSError as error:
        return {"why": f"it could not be written: {error}"}
    clocks = "compared" if run.ranks else "as the files have them"
    return {"file": f"traces/{MERGED}", "left_out_events": left_out, "clocks": clocks}


def traces(rows: Sequence[dict[str, Any]], merged: Mapping[str, Any], null: Null, why: str) -> dict[str, Any] | None:
    """`rows` (of `read_traces`) with their means over ranks, and the trace of all; null, because of `why`, without."""
    usable = [row for row in rows if row["unusable"] is None]
    for row in rows:
        if row["unusable"] is not None:
            null(f"trace.per_rank.{row['rank']}", row["unusable"])
    if not usable:
        null("trace", why if not rows else "no trace could be used")
        return None
    mean, why_no_mean = device_mean(whole(rows))
    if mean is None:
        null("trace.device_mean", why_no_mean)
    for row in usable:
        if row["why_no_device"] is not None:
            null(f"trace.per_rank.{row['rank']}.devices", row["why_no_device"])
    return {
        "steps": min(len(row["steps"]) for row in usable),
        "device_mean": mean,
        "merged": _merged(merged, null),
        "per_rank": [{key: value for key, value in row.items() if key != "facts"} for row in rows],
    }


def whole(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of `rows` whose steps can be counted on: of a trace that is cut off, nobody knows what is missing."""
    return [row for row in rows if row["unusable"] is None and not row["cut"]]


def _merged(found: Mapping[str, Any], null: Null) -> dict[str, Any] | None:
    if "why" in found:
        null("trace.merged", found["why"])
        return None
    return dict(found)


def device_mean(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, float] | None, str]:
    """Seconds a step of each rank's device, mean over ranks; or None, and why. A rank's device is the one that was
    busiest, where no other was at work."""
    found: list[dict[str, float]] = []
    if not rows:
        return None, CUT
    for row in rows:
        if not row["steps"]:
            return None, f"the trace of rank {row['rank']} marks no step"
        if not row["devices"]:
            return None, f"rank {row['rank']}: {row['why_no_device']}"
        busiest, *others = sorted(row["devices"], key=_busy, reverse=True)
        if others and _busy(others[0]) > OTHER_DEVICE_SHARE * _busy(busiest):
            return None, f"rank {row['rank']} worked on {len(row['devices'])} devices: see trace.per_rank"
        found.append({name: busiest[name] / len(row["steps"]) for name in DEVICE_SECONDS})
        if (loading := (busiest["idle"] or {}).get("loading_seconds")) is not None:
            found[-1]["loading_seconds"] = loading / len(row["steps"])
    if len({device["device"] is None for row in rows for device in row["devices"]}) > 1:
        return None, "some traces show devices, and others their hosts alone"
    names = [name for name in (*DEVICE_SECONDS, "loading_seconds") if all(name in each for each in found)]
    return {name: float(np.mean([each[name] for each in found])) for name in names}, ""


def _busy(device: Mapping[str, Any]) -> float:
    return device["compute_seconds"] + device["communication_seconds"]
