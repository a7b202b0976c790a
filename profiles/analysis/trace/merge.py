"""One trace of all ranks, for Perfetto: ranks as processes on one clock, phases and collectives as tracks of their own.

It is for looking at ranks side by side, and bounded in size: where there are too many events the shortest are left out,
which the file says. Each rank's own trace has all of them, with their arguments.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from .breakdown import GLOO
from .events import ON_DEVICE, Kind, Trace

PHASE = "phase:"
# 400,000 events of a run on 8 ranks took 6 MB packed; the bound that is meant is 30.
MOST_EVENTS = 1_000_000
_PHASES, _COLLECTIVES, _THREADS, _STREAMS = 1, 2, 100, 10_000
_SHOWN = (*ON_DEVICE, Kind.OPERATOR, Kind.RUNTIME, Kind.ANNOTATION)
_PIECE = 20_000


def merge(traces: Mapping[int, Trace], ahead_ns: Mapping[int, int], path: Path, most: int = MOST_EVENTS) -> int:
    """Write the traces of all ranks to `path` (gzipped JSON), each shifted back by the nanoseconds that its clock is
    `ahead`; returns how many events were left out for the sake of size."""
    chosen = {rank: np.flatnonzero(np.isin(trace.kind, _SHOWN)) for rank, trace in traces.items()}
    lengths = np.concatenate([(trace.end - trace.begin)[chosen[rank]] for rank, trace in traces.items()])
    shortest = 0
    if len(lengths) > most:
        shortest = int(np.partition(lengths, len(lengths) - most)[len(lengths) - most]) + 1
    zero = min(_since(trace, int(trace.begin[0])) - ahead_ns.get(rank, 0) for rank, trace in traces.items())
    left_out, partial = 0, path.with_name(f".partial-{path.name}")
    with gzip.open(partial, "wb", compresslevel=6) as file:
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[\n')
        file.write(b",\n".join(orjson.dumps(each) for rank in traces for each in _process(rank)))
        for rank, trace in traces.items():
            mine = chosen[rank]
            kept = mine[(trace.end - trace.begin)[mine] >= shortest]
            left_out += len(mine) - len(kept)
            shift = _since(trace, 0) - ahead_ns.get(rank, 0) - zero
            for piece in _events(rank, trace, kept, shift):
                file.write(b",\n" + b",\n".join(map(orjson.dumps, piece)))
        note = {"left_out_events": left_out, "shorter_than_nanoseconds": shortest}
        file.write(b'\n],"scalelab":' + orjson.dumps(note) + b"}\n")
    os.replace(partial, path)
    return left_out


def _since(trace: Trace, at: int) -> int:
    """The nanosecond `at` of a trace on its clock: the trace counts from a base of its own."""
    base = trace.metadata.get("baseTimeNanoseconds")
    return at + round(trace.base_microseconds * 1000) + (base if isinstance(base, int) else 0)


def _process(rank: int) -> list[dict[str, Any]]:
    name = {"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}}
    tracks = ((_PHASES, "phases"), (_COLLECTIVES, "collectives"))
    return [
        name,
        {"ph": "M", "pid": rank, "name": "process_sort_index", "args": {"sort_index": rank}},
        *({"ph": "M", "pid": rank, "tid": tid, "name": "thread_name", "args": {"name": text}} for tid, text in tracks),
    ]


def _events(rank: int, trace: Trace, chosen: np.ndarray, shift: int) -> Iterator[Sequence[dict[str, Any]]]:
    """The events at `chosen` as the format has them, in pieces."""
    named_phase = [name.startswith(PHASE) for name in trace.names]
    gloo = [name.startswith(GLOO) for name in trace.names]
    named: set[int] = set()
    for start in range(0, len(chosen), _PIECE):
        rows: list[dict[str, Any]] = []
        for index in chosen[start : start + _PIECE].tolist():
            kind, name = int(trace.kind[index]), int(trace.name[index])
            text = trace.names[name]
            if kind <= Kind.MEMSET:
                track, words = _STREAMS + max(0, int(trace.stream[index])), f"stream {int(trace.stream[index])}"
            elif kind == Kind.ANNOTATION and named_phase[name]:
                track, words, text = _PHASES, "", text.removeprefix(PHASE)
            elif gloo[name]:
                track, words = _COLLECTIVES, ""
            else:
                track, words = _THREADS + int(trace.thread[index]), f"thread {trace.threads[trace.thread[index]][1]}"
            if words and track not in named:
                named.add(track)
                rows.append({"ph": "M", "pid": rank, "tid": track, "name": "thread_name", "args": {"name": words}})
            rows.append(
                {
                    "ph": "X",
                    "pid": rank,
                    "tid": track,
                    "name": text,
                    "ts": (int(trace.begin[index]) + shift) / 1000,
                    "dur": int(trace.end[index] - trace.begin[index]) / 1000,
                }
            )
            if kind == Kind.COLLECTIVE:
                rows.append({**rows[-1], "tid": _COLLECTIVES})
        yield rows
