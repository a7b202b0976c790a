"""One trace of all ranks: on one clock, in tracks, bounded."""

from __future__ import annotations

import errno
import gzip
import os
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from scalelab.profiles.analysis.trace.merge import ON_GLOO, OUTSIDE, merge
from scalelab.profiles.analysis.trace.reader import read_trace

from tests.support.traces import event, kernel, step, write_trace


def merged(tmp_path: Path, ahead_ns: dict[int, int], most: int = 1000) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Two ranks, the second's file counting from another base; its events and what the file says beside them."""
    traces = {}
    for rank, base in ((0, 0), (1, 1_000_000)):
        events = [
            event("phase:forward", 100 - base / 1000, 150 - base / 1000, "user_annotation"),
            event("aten::mm", 110 - base / 1000, 120 - base / 1000),
            event("f.py(1): f", 100 - base / 1000, 150 - base / 1000, "python_function"),
            event("gloo:all_reduce", 130 - base / 1000, 140 - base / 1000, "user_annotation", tid=5),
            kernel("ncclDevKernel_AllReduce", 160 - base / 1000, 170 - base / 1000),
        ]
        path = write_trace(tmp_path / f"r{rank}.json", events, {"baseTimeNanoseconds": base})
        traces[rank] = read_trace(path)
    merge(traces, ahead_ns, tmp_path / "all.json.gz", most)
    found = orjson.loads(gzip.decompress((tmp_path / "all.json.gz").read_bytes()))
    return found["traceEvents"], found["scalelab"]


def test_ranks_are_processes_on_one_clock(tmp_path: Path) -> None:
    """Each file counts from its own base; a clock that is 7 us ahead is put back."""
    events, _ = merged(tmp_path, {1: 7000})
    begins = {(row["pid"], row["name"]): row["ts"] for row in events if row["ph"] == "X"}
    assert begins[0, "aten::mm"] - begins[0, "forward"] == 10
    assert begins[0, "aten::mm"] - begins[1, "aten::mm"] == 7
    names = {row["pid"]: row["args"]["name"] for row in events if row["name"] == "process_name"}
    assert names == {0: "rank 0", 1: "rank 1"}
    assert min(row["ts"] for row in events if row["ph"] == "X") == 0


def test_phases_and_collectives_have_tracks_of_their_own(tmp_path: Path) -> None:
    """A collective kernel is on its stream as well; frames of Python stay in the rank's own file."""
    events, said = merged(tmp_path, {})
    tracks = {(row["pid"], row["tid"]): row["args"]["name"] for row in events if row["name"] == "thread_name"}
    placed = Counter((tracks[row["pid"], row["tid"]], row["name"]) for row in events if row["ph"] == "X")
    nccl = "ncclDevKernel_AllReduce"
    assert placed == {
        ("phases", "forward"): 2, (f"collectives, gloo thread 5 ({ON_GLOO})", "gloo:all_reduce"): 2,
        ("collectives, device 0 stream 7", nccl): 2,
        ("device 0 stream 7", nccl): 2, ("thread 1", "aten::mm"): 2,
    }  # fmt: skip
    assert said == {"left_out_events": 0, "up_to_nanoseconds": 0}


def test_what_is_of_no_profiled_step_is_marked_and_no_two_tracks_are_called_alike(tmp_path: Path) -> None:
    """The step that pays for the profiler's set-up runs collectives too, on either thread of gloo."""
    events = [
        event("gloo:all_reduce", 10, 40, "user_annotation", tid=5),
        step(3, 100, 200),
        event("gloo:all_reduce", 120, 150, "user_annotation", tid=6),
        event("gloo:all_reduce", 130, 140, "user_annotation", tid=5),
        event("aten::mm", 110, 260),
    ]
    merge({0: read_trace(write_trace(tmp_path / "r0.json", events))}, {}, tmp_path / "all.json.gz", 1000)
    found = orjson.loads(gzip.decompress((tmp_path / "all.json.gz").read_bytes()))["traceEvents"]
    names = [row["args"]["name"] for row in found if row["name"] == "thread_name"]
    assert len(names) == len(set(names)) == 4
    outside = [(row["ts"], row["ts"] + row["dur"]) for row in found if row["name"] == OUTSIDE]
    assert outside == [(0, 90), (190, 250)]


def test_one_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        merged(tmp_path, {})
    assert {path.name for path in tmp_path.iterdir()} == {"r0.json", "r1.json"}


def test_too_many_events_lose_the_shortest_and_say_so(tmp_path: Path) -> None:
    events, said = merged(tmp_path, {}, most=3)
    names = [row["name"] for row in events if row["ph"] == "X" and row["dur"] == 50]
    assert names == ["forward"] * 2
    assert said == {"left_out_events": 5, "up_to_nanoseconds": 10_000}
