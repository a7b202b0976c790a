"""Trace files as they come: by any version, cut off, damaged, hostile. What can be read is; what cannot is counted."""

from __future__ import annotations

import contextlib
import gzip
import random
from pathlib import Path
from typing import Any

import orjson
import pytest
from scalelab.profiles.analysis.trace import json_stream, reader
from scalelab.profiles.analysis.trace.events import Kind
from scalelab.profiles.analysis.trace.reader import UnusableTraceError, read_trace

from tests.support.traces import event, kernel, write_trace


def many(count: int) -> list[dict[str, Any]]:
    """Events whose arguments hold what a cutter of text may stumble over."""
    traps = ['a "quoted" }, { text', "}},{{", "\\", "\u2028 \u00e9", "[1, 2]"]
    return [event(f"op{i}", i, i + 1, Shapes=[{"a": {}}, {"b": traps[i % 5]}], note=traps[i % 5]) for i in range(count)]


@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_pieces_of_any_size_give_the_same_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = write_trace(tmp_path / name, many(200), {"distributedInfo": {"rank": 3}})
    for size in (1 << 20, 5000, 700, 97):
        monkeypatch.setattr(json_stream, "PIECE_BYTES", size)
        trace = read_trace(path)
        assert [trace.names[number] for number in trace.name] == [f"op{i}" for i in range(200)]
        assert (trace.end - trace.begin).tolist() == [1000] * 200
        assert trace.metadata["distributedInfo"] == {"rank": 3}
        assert trace.metadata["traceName"] == "x"
        assert not trace.damage
        assert not trace.dropped


def test_a_list_alone_is_a_trace(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_bytes(b"\n " + orjson.dumps(many(3), option=orjson.OPT_INDENT_2))
    assert len(read_trace(tmp_path / "t.json")) == 3


@pytest.mark.fault(63)
@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_is_cut_off_gives_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    """At any place; that it was cut off is said, but where only what follows the events is gone."""
    monkeypatch.setattr(json_stream, "PIECE_BYTES", 2000)
    whole = write_trace(tmp_path / ("w.json.gz" if packed else "w.json"), many(100)).read_bytes()
    path = tmp_path / "t.json"
    counts = []
    for share in (0.3, 0.6, 0.9, 0.97):
        path.write_bytes(whole[: int(len(whole) * share)])
        trace = read_trace(path)
        counts.append(len(trace))
        assert trace.damage
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1] < 100


@pytest.mark.fault(63)
def test_damage_in_the_middle_costs_the_events_around_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "PIECE_BYTES", 2000)
    content = bytearray(write_trace(tmp_path / "w.json", many(300)).read_bytes())
    place = content.index(b'"op150"')
    content[place : place + 3] = b"\x00}}"
    (tmp_path / "t.json").write_bytes(content)
    trace = read_trace(tmp_path / "t.json")
    assert len(trace) >= 297
    assert trace.dropped == {"not readable": 300 - len(trace)}


@pytest.mark.fault(63)
def test_bit_flips_raise_nothing_but_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "PIECE_BYTES", 1500)
    generator = random.Random(0)
    for name in ("w.json", "w.json.gz"):
        whole = write_trace(tmp_path / name, many(60)).read_bytes()
        for _ in range(60):
            flipped = bytearray(whole)
            flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
            (tmp_path / "t.json").write_bytes(flipped)
            with contextlib.suppress(UnusableTraceError):
                assert len(read_trace(tmp_path / "t.json")) <= 60


@pytest.mark.fault(63)
@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"traceEvents": []}', b"PK\x03\x04", gzip.compress(b"", mtime=0), b"[1, 2]"]
)
def test_what_holds_no_event_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.json").write_bytes(content)
    with pytest.raises(UnusableTraceError, match=r"t\.json: not a trace that can be used: "):
        read_trace(tmp_path / "t.json")


@pytest.mark.fault(63)
def test_times_that_cannot_be_are_left_out_and_counted(tmp_path: Path) -> None:
    good = [event("good", i, i + 1) for i in range(20)]
    text = orjson.dumps([*good, event("negative", 5, 2)])[:-1]
    for bad in (b"1e300", b"-1e300", b"NaN", b"Infinity", b"99999999999999999999999", b'"soon"', b"null"):
        text += b',{"ph":"X","cat":"cpu_op","name":"bad","pid":1,"tid":1,"dur":1,"ts":' + bad + b"}"
    (tmp_path / "t.json").write_bytes(text + b"]")
    trace = read_trace(tmp_path / "t.json")
    assert {trace.names[number] for number in trace.name} == {"good"}
    assert sum(trace.dropped.values()) == 8
    assert not trace.damage


@pytest.mark.fault(63)
def test_work_of_a_device_far_from_its_host_is_no_work(tmp_path: Path) -> None:
    """kineto writes 0 for a time that it lacks: counted, and no idle time of days."""
    day = 86_400e6
    events = [event("aten::mm", day + i, day + i + 1) for i in range(5)]
    events += [kernel("gemm", day + 2, day + 3), kernel("gemm", 0, 1)]
    trace = read_trace(write_trace(tmp_path / "t.json", events))
    assert len(trace) == 6
    assert sum(trace.dropped.values()) == 1


def test_who_stops_reading_knows_what_stood_before_the_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "PIECE_BYTES", 700)
    monkeypatch.setattr(reader, "MOST_EVENTS", 20)
    trace = read_trace(write_trace(tmp_path / "t.json", many(200), {"distributedInfo": {"rank": 3}}))
    assert 20 < len(trace) < 200
    assert trace.metadata["distributedInfo"] == {"rank": 3}


@pytest.mark.fault(63)
def test_names_obey_no_terminal(tmp_path: Path) -> None:
    """Control characters, raw as no JSON may hold them, and written out; and what is no text at all."""
    raw = b'[{"ph":"X","cat":"cpu_op","name":"a\x1b[2J\nb","pid":1,"tid":1,"ts":1,"dur":1},'
    raw += b'{"ph":"X","cat":"cpu_op","name":"\\u001b]0;owned\\u0007","pid":1,"tid":1,"ts":2,"dur":1},'
    raw += b'{"ph":"X","cat":"cpu_op","name":"\xff\xfe","pid":1,"tid":1,"ts":3,"dur":1},'
    raw += b'{"ph":"X","cat":"cpu_op","name":["list"],"pid":1,"tid":1,"ts":3,"dur":1}]'
    (tmp_path / "t.json").write_bytes(raw)
    trace = read_trace(tmp_path / "t.json")
    assert len(trace) == 3
    assert all(name.isprintable() for name in trace.names)
    assert trace.dropped == {"without what an event needs": 1}


def test_categories_of_every_age_become_the_same_kinds(tmp_path: Path) -> None:
    events = [
        kernel("k", 0, 1),
        kernel("k", 1, 2, category="Kernel"),
        kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)", 3, 4),
        kernel("void ncclKernel_SendRecv", 4, 5),
        kernel("Memcpy HtoD (Pinned -> Device)", 5, 6, category="gpu_memcpy"),
        kernel("Memset", 6, 7, category="Memset"),
        event("aten::mm", 7, 8, "Operator"),
        event("hipLaunchKernel", 9, 10, "cuda_runtime"),
        event("f.py(1): f", 10, 11, "python_function"),
        event("none of ours", 11, 12, "overhead"),
    ]
    trace = read_trace(write_trace(tmp_path / "t.json", events))
    expected = [Kind.KERNEL] * 2 + [Kind.COLLECTIVE] * 2 + [Kind.MEMCPY, Kind.MEMSET]
    assert trace.kind.tolist() == [*expected, Kind.OPERATOR, Kind.RUNTIME, Kind.PYTHON]


def test_the_profiler_before_kineto_is_refused_by_name(tmp_path: Path) -> None:
    """What it gives for a device are operators that nest, not kernels."""
    events = [{**event("forward", 0, 9), "cat": None, "pid": f"{place} functions"} for place in ("CPU", "CUDA")]
    with pytest.raises(UnusableTraceError, match="before kineto"):
        read_trace(write_trace(tmp_path / "t.json", events))
