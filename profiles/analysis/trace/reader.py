"""Reading a trace file into columns, a piece at a time, whatever version of torch or vendor wrote it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..uncollected import uncollected
from .events import Kind, Trace, shown
from .json_stream import JsonStream

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


# A device works on what its host has launched: what is further from all that the host did is no time.
FAR_NS = 60_000_000_000
# 60 bytes each in memory.
MOST_EVENTS = 12_000_000
_SPARSE = {"device": np.int16, "stream": np.int64, "correlation": np.int64, "stack": np.int32}
# Processes of the profiler before kineto (torch up to 1.8): what it gives for a device are operators that nest.
_BEFORE_KINETO = ("CPU functions", "CUDA functions")
_NO_KINETO = "of the profiler before kineto, whose device times are those of operators: record it with torch.profiler"
_NO_TIME = "times that cannot be"
_NO_FIELDS = "without what an event needs"


class UnusableTraceError(ValueError):
    """A file that holds no event that could be used."""


def read_trace(path: Path) -> Trace:
    """Read the file at `path`. Raises OSError where it cannot be opened, and UnusableTraceError."""
    stream, rows = JsonStream(path), _Rows()
    with uncollected():
        for events in stream:
            rows.take(events)
            if rows.count > MOST_EVENTS:
                stream.cut = True
                stream.damage.append(f"it holds more than {MOST_EVENTS:,} events: the rest was not read")
                break
    if stream.lost_events:
        if not stream.cut:
            stream.damage.append("some of its events cannot be read")
        rows.dropped["not readable"] = stream.lost_events
    if rows.base is None or not rows.count:
        old = [_NO_KINETO] if _NO_KINETO in rows.dropped else []
        why = "; ".join([*stream.damage, *old]) or "it holds no event with a begin and a duration"
        raise UnusableTraceError(f"{path}: not a trace that can be used: {why}")
    columns = _near(rows.columns(), rows.dropped)
    order = np.lexsort((columns["begin"] - columns["end"], columns["begin"]))
    return Trace(
        path=path,
        metadata=stream.metadata,
        base_microseconds=rows.base,
        names=[shown(name) for name in rows.names],
        threads=list(rows.threads),
        dropped=rows.dropped,
        damage=tuple(stream.damage),
        cut=stream.cut,
        **{name: column[order] for name, column in columns.items()},
    )


def _near(columns: dict[str, np.ndarray], dropped: dict[str, int]) -> dict[str, np.ndarray]:
    """The columns without what a device did far from its host; kineto writes 0 for a time that it lacks."""
    on_device = columns["kind"] <= Kind.MEMSET
    if on_device.all():
        return columns
    first, last = columns["begin"][~on_device].min(), columns["end"][~on_device].max()
    far = on_device & ((columns["begin"] < first - FAR_NS) | (columns["begin"] > last + FAR_NS))
    if not far.any():
        return columns
    dropped[_NO_TIME] = dropped.get(_NO_TIME, 0) + int(far.sum())
    return {name: column[~far] for name, column in columns.items()}


class _Rows:
    """Complete events of the kinds that we know, as columns that grow a piece at a time."""

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.threads: dict[tuple[Any, Any], int] = {}
        self.dropped: dict[str, int] = {}
        self.base: float | None = None
        self.count = 0
        self._pieces: list[dict[str, np.ndarray]] = []
        self._kinds = _Kinds()
        self._collective: dict[str, int] = {}

    def take(self, events: Iterable[Any]) -> None:
        """Add the events of one piece."""
        begin: list[float] = []
        took: list[float] = []
        kinds: list[int] = []
        named: list[int] = []
        thread: list[int] = []
        sparse: list[tuple[int, int, int, int, int]] = []
        names, threads, known = self.names, self.threads, self._kinds
        for event in events:
            try:
                if event["ph"] != "X":
                    continue
                kind = known[event.get("cat")]
                if kind < 0:
                    if event.get("pid") in _BEFORE_KINETO:
                        self._drop(_NO_KINETO, 1)
                    continue
                at, seconds, name = float(event["ts"]), float(event["dur"]), event["name"]
                if type(name) is not str:
                    raise TypeError("a name is a text")
                number = names.setdefault(name, len(names))
                place = threads.setdefault((event.get("pid"), event.get("tid")), len(threads))
                if kind < Kind.PYTHON:
                    if kind == Kind.KERNEL:
                        kind = self._collective.get(name, -1)
                        if kind < 0:
                            kind = self._collective[name] = Kind.COLLECTIVE if _COLLECTIVE.search(name) else Kind.KERNEL
                    args = event.get("args") or {}
                    if kind != Kind.OPERATOR or "Call stack" in args:
                        sparse.append((len(begin), *_arguments(event, args, kind, names)))
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
                self._drop(_NO_FIELDS, 1)
                continue
            begin.append(at)
            took.append(seconds)
            kinds.append(kind)
            named.append(number)
            thread.append(place)
        if begin:
            self._piece(np.array(begin), np.array(took), kinds, named, thread, sparse)

    def _piece(
        self,
        begin: np.ndarray,
        took: np.ndarray,
        kinds: list[int],
        named: list[int],
        thread: list[int],
        sparse: list[tuple[int, ...]],
    ) -> None:
        if self.base is None and np.isfinite(begin).any():
            self.base = float(math.floor(np.median(begin[np.isfinite(begin)])))
        base = 0.0 if self.base is None else self.base
        usable = (np.abs(begin - base) < FARTHEST_MICROSECONDS) & (took >= 0) & (took < FARTHEST_MICROSECONDS)
        if lost := int(len(begin) - usable.sum()):
            self._drop(_NO_TIME, lost)
        piece = {
            "kind": np.array(kinds, dtype=np.int8),
            "name": np.array(named, dtype=np.int32),
            "thread": np.array(thread, dtype=np.int32),
            "begin": np.zeros(len(begin), dtype=np.int64),
            "end": np.zeros(len(begin), dtype=np.int64),
        }
        piece["begin"][usable] = np.rint((begin[usable] - base) * 1000).astype(np.int64)
        piece["end"][usable] = piece["begin"][usable] + np.rint(took[usable] * 1000).astype(np.int64)
        at = np.array([row[0] for row in sparse], dtype=np.int64)
        for index, (name, dtype) in enumerate(_SPARSE.items(), 1):
            piece[name] = np.full(len(begin), -1, dtype=dtype)
            piece[name][at] = [row[index] for row in sparse]
        self._pieces.append(piece if usable.all() else {name: column[usable] for name, column in piece.items()})
        self.count += int(usable.sum())

    def _drop(self, why: str, count: int) -> None:
        self.dropped[why] = self.dropped.get(why, 0) + count

    def columns(self) -> dict[str, np.ndarray]:
        """All of them, in the file's order."""
        pieces, self._pieces = self._pieces, []
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _arguments(
    event: Mapping[str, Any], args: Mapping[str, Any], kind: int, names: dict[str, int]
) -> tuple[int, int, int, int]:
    """Device, stream, correlation and stack of an event, -1 for what it has none of."""
    stack = args.get("Call stack")
    device = stream = -1
    if kind <= Kind.MEMSET:
        device, stream = args.get("device", event.get("pid")), args.get("stream", -1)
    return (
        device if isinstance(device, int) and -1 <= device < 1 << 15 else -1,
        stream if isinstance(stream, int) and abs(stream) < 1 << 62 else -1,
        _whole(args.get("correlation", -1)),
        names.setdefault(stack, len(names)) if isinstance(stack, str) else -1,
    )


class _Kinds(dict[Any, int]):
    """The kind of an event by its category; -1 for what is none of ours."""

    def __missing__(self, category: Any) -> int:
        kind = self[category] = int(_KINDS.get(category.lower() if isinstance(category, str) else "", -1))
        return kind


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and -1 <= value < 1 << 62 else -1
