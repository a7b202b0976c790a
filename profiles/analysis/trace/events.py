"""A trace as columns: what each event is, where it ran, when. Names are kept once.

Categories and names differ by version of torch and by vendor; here they become the few kinds that analysis knows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from .json_stream import JsonStream


class Kind(IntEnum):
    """What an event is. Those up to MEMSET ran on a device."""

    KERNEL = 0
    COLLECTIVE = 1
    MEMCPY = 2
    MEMSET = 3
    OPERATOR = 4
    RUNTIME = 5
    """A call of the device's runtime or driver, by the host."""
    PYTHON = 6
    ANNOTATION = 7
    """A range that was named by a program: `record_function`, the profiler's own steps, gloo's collectives."""


ON_DEVICE = (Kind.KERNEL, Kind.COLLECTIVE, Kind.MEMCPY, Kind.MEMSET)
# Categories of kineto by now and of 2021 (capitals), and of the profiler before it, which had none.
_KINDS = {
    "kernel": Kind.KERNEL,
    "gpu_memcpy": Kind.MEMCPY,
    "memcpy": Kind.MEMCPY,
    "gpu_memset": Kind.MEMSET,
    "memset": Kind.MEMSET,
    "cpu_op": Kind.OPERATOR,
    "operator": Kind.OPERATOR,
    "cuda_runtime": Kind.RUNTIME,
    "cuda_driver": Kind.RUNTIME,
    "hip_runtime": Kind.RUNTIME,
    "runtime": Kind.RUNTIME,
    "xpu_runtime": Kind.RUNTIME,
    "privateuse1_runtime": Kind.RUNTIME,
    "python_function": Kind.PYTHON,
    "user_annotation": Kind.ANNOTATION,
}
# Kernels of communication: NCCL's and RCCL's, those of torch's symmetric memory, of NVSHMEM and of oneCCL.
_COLLECTIVE = re.compile(
    r"^(void )?(nccl|rccl|msccl|mscclpp|nvshmem|oneccl|ccl_)|ncclDevKernel|ncclKernel|"
    r"(one|two)_shot_all_reduce|multimem_(all|one|reduce|two)|cross_device_reduce",
    re.IGNORECASE,
)
# Two hundred days: what is further from the rest of a trace overflowed.
FARTHEST_MICROSECONDS = 200 * 86_400e6


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The complete events of one file in order of their begin. Times are nanoseconds since `base_microseconds` of the
    file. `name`, `thread` and `device` are numbers of `names`, `threads` and a device; -1 where there is none. `bytes`
    were moved, `correlation` ties what a device ran to the call that launched it, `stack` is the number in `names` of a
    call stack that the event carries.

    `dropped` counts events that could not be used, by reason; `damage` says what of the file could not be read.
    """

    path: Path
    metadata: Mapping[str, Any]
    base_microseconds: float
    names: list[str]
    threads: list[tuple[Any, Any]]
    kind: np.ndarray
    name: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    thread: np.ndarray
    device: np.ndarray
    stream: np.ndarray
    correlation: np.ndarray
    bytes: np.ndarray
    stack: np.ndarray
    dropped: Mapping[str, int]
    damage: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.kind)

    def of(self, *kinds: Kind) -> np.ndarray:
        """Indices of the events of `kinds`."""
        return np.flatnonzero(np.isin(self.kind, kinds))

    def named(self, kind: Kind, pattern: str) -> np.ndarray:
        """Indices of the events of `kind` whose name matches `pattern` from its begin."""
        wanted = np.array([re.match(pattern, name) is not None for name in self.names], dtype=bool)
        found = self.of(kind)
        return found[wanted[self.name[found]]]


@dataclass
class _Numbers:
    """Distinct values in the order in which they came up, each under its number."""

    number: dict[Any, int] = field(default_factory=dict)

    def of(self, value: Any) -> int:
        found = self.number.get(value)
        if found is None:
            found = self.number[value] = len(self.number)
        return found


_COLUMNS = {
    "kind": np.int8,
    "name": np.int32,
    "thread": np.int32,
    "device": np.int16,
    "stream": np.int64,
    "correlation": np.int64,
    "bytes": np.int64,
    "stack": np.int32,
}


def read_trace(path: Path) -> Trace:
    """Read the file at `path`.

    Raises OSError where it cannot be opened and ValueError where it holds no event that could be used.
    """
    stream = JsonStream(path)
    names, threads, kinds = _Numbers(), _Numbers(), _Kinds()
    dropped: dict[str, int] = {}
    parts: list[dict[str, np.ndarray]] = []
    times: list[np.ndarray] = []
    base: float | None = None
    for events in stream:
        rows = _rows(events, names, threads, kinds, dropped)
        if not rows:
            continue
        at = np.array([row[:2] for row in rows], dtype=np.float64)
        if base is None:
            finite = at[np.isfinite(at[:, 0]), 0]
            base = float(math.floor(np.median(finite))) if len(finite) else None
        if base is None:
            dropped["times that cannot be"] = dropped.get("times that cannot be", 0) + len(rows)
            continue
        usable = (np.abs(at[:, 0] - base) < FARTHEST_MICROSECONDS) & (at[:, 1] >= 0)
        usable &= at[:, 1] < FARTHEST_MICROSECONDS
        if lost := int(len(rows) - usable.sum()):
            dropped["times that cannot be"] = dropped.get("times that cannot be", 0) + lost
        kept = [row for row, good in zip(rows, usable, strict=True) if good]
        times.append(np.rint((at[usable] - (base, 0.0)) * 1000).astype(np.int64))
        columns = zip(*(row[2:] for row in kept), strict=True) if kept else ((),) * len(_COLUMNS)
        parts.append(
            {key: np.array(column, dtype=dtype) for (key, dtype), column in zip(_COLUMNS.items(), columns, strict=True)}
        )
    if stream.lost_events:
        dropped["not readable"] = stream.lost_events
    if base is None or not sum(map(len, times)):
        why = "; ".join(stream.damage) or "it holds no event with a begin and a duration"
        raise ValueError(f"{path}: not a trace that can be used: {why}")
    at = np.concatenate(times)
    order = np.lexsort((-at[:, 1], at[:, 0]))
    begin, seconds = at[order, 0], at[order, 1]
    del at, times
    columns = {key: np.concatenate([part[key] for part in parts])[order] for key in _COLUMNS}
    return Trace(
        path=path,
        metadata=stream.metadata,
        base_microseconds=base,
        names=[shown(name) for name in names.number],
        threads=list(threads.number),
        begin=begin,
        end=begin + seconds,
        dropped=dropped,
        damage=tuple(stream.damage),
        **columns,
    )


def shown(name: str) -> str:
    """`name` without characters that a terminal would obey."""
    return name if name.isprintable() else "".join(each if each.isprintable() else " " for each in name)


class _Kinds(dict[Any, int]):
    """The kind of an event by its category and name; -1 for what is none of ours."""

    def __missing__(self, key: tuple[Any, str]) -> int:
        category, name = key
        if not isinstance(name, str):
            raise TypeError("a name is a text")
        kind = _KINDS.get(category.lower() if isinstance(category, str) else "", -1)
        if kind is Kind.KERNEL and _COLLECTIVE.search(name):
            kind = Kind.COLLECTIVE
        self[key] = int(kind)
        return int(kind)


def _rows(
    events: Iterable[Any], names: _Numbers, threads: _Numbers, kinds: _Kinds, dropped: dict[str, int]
) -> list[tuple[Any, ...]]:
    """Begin and duration (microseconds) and the columns of each complete event of a kind that we know."""
    rows = []
    for event in events:
        try:
            if event.get("ph") != "X":
                continue
            name = event["name"]
            kind = kinds[event.get("cat"), name]
            if kind < 0 and (kind := _legacy_kind(event)) < 0:
                continue
            args = event.get("args") or {}
            on_device = kind <= Kind.MEMSET
            device = args.get("device", event.get("pid")) if on_device else -1
            stream = args.get("stream", -1) if on_device else -1
            rows.append(
                (
                    float(event["ts"]),
                    float(event["dur"]),
                    kind,
                    names.of(name),
                    threads.of((event.get("pid"), event.get("tid"))),
                    device if isinstance(device, int) and -1 <= device < 1 << 15 else 0,
                    stream if isinstance(stream, int) and abs(stream) < 1 << 62 else -1,
                    _whole(args.get("correlation", -1)),
                    _whole(args.get("bytes", args.get("Bytes", -1))),
                    names.of(args["Call stack"]) if "Call stack" in args else -1,
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            dropped["without what an event needs"] = dropped.get("without what an event needs", 0) + 1
    return rows


def _legacy_kind(event: Mapping[str, Any]) -> int:
    """The kind of an event as the profiler before kineto wrote it: its process says where it ran."""
    place = event.get("pid")
    if place == "CPU functions":
        return Kind.OPERATOR
    if place != "CUDA functions":
        return -1
    name = str(event.get("name"))
    return Kind.COLLECTIVE if _COLLECTIVE.search(name) else Kind.KERNEL


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and -1 <= value < 1 << 62 else -1
