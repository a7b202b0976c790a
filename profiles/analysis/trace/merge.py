"""One trace of all ranks, for Perfetto: ranks as processes on one clock, phases and collectives as tracks of their own.

It is for looking at ranks side by side, and bounded in size: where there are too many events the shortest are left out,
which the file says. Each rank's own trace has all of them, with their arguments.
"""

from __future__ import annotations

import contextlib
import gzip
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from .breakdown import GLOO
from .events import ON_DEVICE, Kind, Trace, shown
from .window import profiler_steps

PHASE = "phase:"
OUTSIDE = "outside of the profiled steps"
# ProcessGroupGloo has no reduce-scatter of its own, and runs collectives on several threads in turn.
ON_GLOO = "a reduce_scatter is an all_reduce here"
# 400,000 events of a run on 8 ranks took 6 MB packed; the bound that is meant is 30.
MOST_EVENTS = 1_000_000
_PHASES, _COLLECTIVES, _THREADS, _STREAMS = 1, 2, 1_000, 1_000_000
_SHOWN = (*ON_DEVICE, Kind.OPERATOR, Kind.RUNTIME, Kind.ANNOTATION)
_PIECE = 20_000


def merge(traces: Mapping[int, Trace], ahead_ns: Mapping[int, int], path: Path, most: int = MOST_EVENTS) -> int:
    """Write the traces of all ranks to `path` (gzipped JSON), each shifted back by the nanoseconds that its clock is
    `ahead`; returns how many events were left out for the sake of size."""
    chosen = {rank: np.flatnonzero(np.isin(trace.kind, _SHOWN)) for rank, trace in traces.items()}
    lengths = np.concatenate([(trace.end - trace.begin)[chosen[rank]] for rank, trace in traces.items()])
    shortest = 0
    if len(lengths) > most:
        shortest = int(np.partition(lengths, len(lengths) - most)[len(lengths) - most])
        kept = np.zeros(len(lengths), dtype=bool)
        kept[np.argpartition(lengths, len(lengths) - most)[len(lengths) - most :]] = True
        parts = np.split(kept, np.cumsum([len(each) for each in chosen.values()])[:-1])
        chosen = {rank: chosen[rank][part] for rank, part in zip(chosen, parts, strict=True)}
    zero = min(_since(trace, int(trace.begin[0])) - ahead_ns.get(rank, 0) for rank, trace in traces.items())
    left_out = len(lengths) - sum(map(len, chosen.values()))
    with _whole(path) as partial, gzip.open(partial, "wb", compresslevel=6) as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        file.write(b",\n".join(orjson.dumps(each) for rank in traces for each in _process(rank)))
        for rank, trace in traces.items():
            shift = _since(trace, 0) - ahead_ns.get(rank, 0) - zero
            if outside := _outside(rank, trace, shift):
                file.write(b",\n" + b",\n".join(map(orjson.dumps, outside)))
            for piece in _events(rank, trace, chosen[rank], shift):
                file.write(b",\n" + b",\n".join(map(orjson.dumps, piece)))
        note = {"left_out_events": left_out, "up_to_nanoseconds": shortest}
        file.write(b'\n],"scalelab":' + orjson.dumps(note) + b"}\n")
    return left_out


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what is at `path` afterwards: all of it, or nothing of it."""
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _since(trace: Trace, at: int) -> int:
    """The nanosecond `at` of a trace on its clock: the trace counts from a base of its own."""
    return at + round(trace.base_microseconds * 1000) + (base_ns(trace) or 0)


def base_ns(trace: Trace) -> int | None:
    """From when the file counts, as it says; others count from 1970, or from when they like."""
    base = trace.metadata.get("baseTimeNanoseconds")
    return base if isinstance(base, int) and 0 <= base < 1 << 62 else None


def _process(rank: int) -> list[dict[str, Any]]:
    name = {"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}}
    order = {"ph": "M", "pid": rank, "name": "process_sort_index", "args": {"sort_index": rank}}
    return [name, order, _thread(rank, _PHASES, "phases")]


def _outside(rank: int, trace: Trace, shift: int) -> list[dict[str, Any]]:
    """What the profiler saw before its first step and after its last, on the track of phases: all that runs there is
    of no profiled step."""
    steps, shown_ones = profiler_steps(trace), np.isin(trace.kind, _SHOWN)
    if not steps or not shown_ones.any():
        return []
    first, last = int(trace.begin[shown_ones].min()), int(trace.end[shown_ones].max())
    spans = [(first, steps[0][1]), (steps[-1][2], last)]
    return [_complete(rank, _PHASES, OUTSIDE, begin + shift, end - begin) for begin, end in spans if begin < end]


def _complete(rank: int, track: int, name: str, begin_ns: int, took_ns: int) -> dict[str, Any]:
    return {"ph": "X", "pid": rank, "tid": track, "name": name, "ts": begin_ns / 1000, "dur": took_ns / 1000}


def _told(trace: Trace, thread: int) -> str:
    return shown(str(trace.threads[thread][1]))


def _thread(rank: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": rank, "tid": tid, "name": "thread_name", "args": {"name": name}}


def _events(rank: int, trace: Trace, chosen: np.ndarray, shift: int) -> Iterator[Sequence[dict[str, Any]]]:
    """The events at `chosen` as the format has them, in pieces."""
    named_phase = [name.startswith(PHASE) for name in trace.names]
    gloo = [name.startswith(GLOO) for name in trace.names]
    named: set[int] = set()
    # Intervals of one track must nest: what runs side by side needs tracks of its own.
    streams: dict[tuple[int, int], int] = {}
    lanes: dict[tuple[int, int], int] = {}
    for start in range(0, len(chosen), _PIECE):
        rows: list[dict[str, Any]] = []
        for index in chosen[start : start + _PIECE].tolist():
            kind, name, thread = int(trace.kind[index]), int(trace.name[index]), int(trace.thread[index])
            text, place = trace.names[name], (int(trace.device[index]), int(trace.stream[index]))
            if kind <= Kind.MEMSET:
                track = _STREAMS + streams.setdefault(place, len(streams))
                words = f"device {place[0]} stream {place[1]}"
            elif kind == Kind.ANNOTATION and named_phase[name]:
                track, words, text = _PHASES, "", text.removeprefix(PHASE)
            elif gloo[name]:
                track = _COLLECTIVES + lanes.setdefault((-1, thread), len(lanes))
                words = f"collectives, gloo thread {_told(trace, thread)} ({ON_GLOO})"
            else:
                track, words = _THREADS + thread, f"thread {_told(trace, thread)}"
            if words and track not in named:
                named.add(track)
                rows.append(_thread(rank, track, words))
            begin, end = int(trace.begin[index]), int(trace.end[index])
            rows.append(_complete(rank, track, text, begin + shift, end - begin))
            if kind == Kind.COLLECTIVE:
                lane = _COLLECTIVES + lanes.setdefault(place, len(lanes))
                if lane not in named:
                    named.add(lane)
                    rows.insert(-1, _thread(rank, lane, f"collectives, device {place[0]} stream {place[1]}"))
                rows.append({**rows[-1], "tid": lane})
        yield rows
