"""Traces for tests: events made by hand, files of them, and where traces recorded by others may lie."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

ROOT = Path(__file__).parents[2]
RECORDED = Path(os.environ.get("SCALELAB_TRACES", ROOT.parent / "shared" / "traces"))
Event = dict[str, Any]


def recorded(name: str) -> Path:
    """A trace of CUDA that others recorded; the test is skipped where it is not at hand."""
    path = RECORDED / f"{name}.pt.trace.json.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here (SCALELAB_TRACES names the folder)")
    return path


def event(name: str, begin: float, end: float, category: str = "cpu_op", tid: Any = 1, **args: Any) -> Event:
    """A complete event of a host thread, from `begin` to `end` microseconds."""
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "pid": 7,
        "tid": tid,
        "ts": begin,
        "dur": end - begin,
        "args": args,
    }


def kernel(
    name: str, begin: float, end: float, correlation: int = -1, category: str = "kernel", stream: int = 7
) -> Event:
    """One on device 0."""
    return {**event(name, begin, end, category, stream, device=0, stream=stream, correlation=correlation), "pid": 0}


def launched(
    name: str, call: tuple[float, float], ran: tuple[float, float], correlation: int, **more: Any
) -> list[Event]:
    """A kernel and the call that launched it."""
    launch = event("cudaLaunchKernel", *call, "cuda_runtime", correlation=correlation)
    return [launch, kernel(name, *ran, correlation=correlation, **more)]


def step(number: int, begin: float, end: float) -> Event:
    return event(f"ProfilerStep#{number}", begin, end, "user_annotation")


def write_trace(path: Path, events: Sequence[Any], metadata: Mapping[str, Any] | None = None) -> Path:
    """A trace file, gzipped if its name says so."""
    content = orjson.dumps({"schemaVersion": 1, **(metadata or {}), "traceEvents": events, "traceName": "x"})
    path.write_bytes(gzip.compress(content, 1) if path.name.endswith(".gz") else content)
    return path
