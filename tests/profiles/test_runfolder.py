"""The run folder keeps what was written, whatever happens while it is written."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.encoding import MAX_RECORD_BYTES
from scalelab.profiles.records import SCHEMA, EventRecord, Record, StartRecord, StepRecord, WindowRecord
from scalelab.profiles.runfolder import RunFolder, SchemaError, appending


def step_record(index: int) -> StepRecord:
    return StepRecord(
        step=index,
        role="measured",
        start_seconds=float(index),
        seconds=1.0,
        phases={"forward": 0.5},
        host_data_seconds=0.0,
        losses=[1.0, None],
        samples=4,
        lr=1e-3,
    )


RECORDS: list[Record] = [
    step_record(0),
    EventRecord(event="evaluation", step=0, start_seconds=1.0, seconds=2.0, values={"ap": None, "name": "ü ] \n x"}),
    step_record(1),
    WindowRecord(steps=1, samples=4, seconds=1.0),
]


def test_records_round_trip(tmp_path: Path) -> None:
    """What is appended is what is read."""
    folder = RunFolder.create(tmp_path, "x")
    with appending(folder.rank_file(0)) as write:
        for record in RECORDS:
            write(record)
    assert folder.records(0) == (RECORDS, 0)
    assert folder.ranks() == [0]


@pytest.mark.fault(53)
@given(cut=st.integers(min_value=0), junk=st.binary(max_size=20))
@example(cut=0, junk=b'{"kind":"\xff"}')
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    """A crash leaves a half last line, damage leaves garbage: readers keep the rest and count what they skip."""
    folder = RunFolder.create(tmp_path_factory.mktemp("runs"), "x")
    whole = b"".join(msgspec.json.encode(record) + b"\n" for record in RECORDS)
    kept = whole[: cut % (len(whole) + 1)]
    folder.rank_file(0).write_bytes(kept + junk)
    records, unreadable = folder.records(0)
    complete = kept.count(b"\n")
    assert records[:complete] == RECORDS[:complete]
    assert len(records) + unreadable == len((kept + junk).splitlines())


@pytest.mark.fault(60)
@pytest.mark.fault(60)
@given(st.text(min_size=0, max_size=300))
def test_any_name_makes_a_folder_inside_the_given_one(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Names with spaces, quotes, slashes, newlines or dots stay names."""
    out = tmp_path_factory.mktemp("runs")
    folder = RunFolder.create(out, name)
    assert folder.path.parent == out
    assert folder.path.name.isascii()
    assert not set(folder.path.name) & set(" /\\'\"\n$;`[]")
    assert (out / "latest").resolve() == folder.path


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A run.json that is no JSON is an error that names it, a missing one is None."""
    folder = RunFolder.create(tmp_path, "x")
    assert folder.read("run.json") is None
    (folder.path / "run.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"run\.json"):
        folder.read("run.json")


START = StartRecord(
    rank=0,
    local_rank=0,
    world_size=1,
    host="h",
    boot_id="b",
    pid=1,
    device="cpu",
    device_name="d",
    wall_seconds=0.0,
    monotonic_seconds=0.0,
    threads=1,
    versions={},
)


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    """A report is read by more than the user who ran: what the process's mask allows holds."""
    folder = RunFolder.create(tmp_path, "x")
    mask = os.umask(0o022)
    folder.write("status.json", {})
    os.umask(mask)
    assert os.stat(folder.path / "status.json").st_mode & 0o777 == 0o644


def write_lines(folder: RunFolder, *lines: bytes) -> None:
    folder.rank_file(0).write_bytes(b"".join(line + b"\n" for line in lines))


def without(record: Record, *fields: str) -> dict[str, Any]:
    return {name: value for name, value in msgspec.to_builtins(record).items() if name not in fields}


def as_line(record: Record, **changes: Any) -> bytes:
    return orjson.dumps({**msgspec.to_builtins(record), **changes})


@pytest.mark.fault(53)
def test_lines_of_no_known_kind_are_counted(tmp_path: Path) -> None:
    """Garbage, binary, other people's JSON, an unknown kind and unknown fields: one unreadable line each."""
    folder = RunFolder.create(tmp_path, "x")
    step = step_record(0)
    bad = [
        b"garbage",
        bytes(range(1, 10)) + bytes(range(128, 256)),
        b"[" * 100_000,
        b"null",
        b"[1]",
        b'{"kind": "spell"}',
        b'{"kind": "start", "schema_version": "new"}',
        as_line(step, spell=1),
        as_line(step, seconds=None),
    ]
    for line in bad:
        write_lines(folder, as_line(step), line, as_line(step))
        assert folder.records(0) == ([step, step], 1), line


@pytest.mark.fault(53)
def test_records_of_an_older_scalelab_are_read(tmp_path: Path) -> None:
    """Fields that came later have values that say nothing."""
    folder = RunFolder.create(tmp_path, "x")
    old = without(step_record(0), "grad_square_sum", "grad_replicas", "skipped")
    start = without(START, "schema_version")
    write_lines(folder, orjson.dumps(start), orjson.dumps(old))
    assert folder.records(0) == ([START, step_record(0)], 0)
    folder.write("run.json", {"name": "from before there were schemas"})
    assert load_run(folder).run_json["name"]


@pytest.mark.fault(53)
def test_files_of_a_newer_scalelab_are_refused(tmp_path: Path) -> None:
    """With the file's name, its schema and what to do: what a newer one means by a field cannot be known."""
    folder = RunFolder.create(tmp_path, "x")
    for line in (as_line(START, schema_version=SCHEMA + 1), as_line(START, schema_version=SCHEMA + 1, new=[1])):
        write_lines(folder, line, as_line(step_record(0)))
        with pytest.raises(
            SchemaError, match=rf"r000\.jsonl: written by a newer scalelab \(schema {SCHEMA + 1}.*upgrade"
        ):
            folder.records(0)
    write_lines(folder)
    for name in ("run.json", "summary.json"):
        folder.write(name, {"schema": SCHEMA + 1})
        with pytest.raises(ValueError, match=rf"{name}: written by a newer scalelab"):
            folder.read(name)
    with pytest.raises(SchemaError, match="upgrade") as caught:
        load_run(folder)
    assert "upgrade" not in caught.value.hint  # it says the other way out


@pytest.mark.fault(53)
def test_a_rank_without_records_is_no_error(tmp_path: Path) -> None:
    """A rank that died before its first record leaves an empty file or none; a file of another name is no rank's."""
    folder = RunFolder.create(tmp_path, "x")
    folder.write("run.json", {"schema": SCHEMA})
    assert folder.records(3) == ([], 0)
    folder.rank_file(1).write_bytes(b"")
    (folder.path / "ranks" / "r001.jsonl.jsonl").write_bytes(b"")
    (folder.path / "ranks" / "rx.jsonl").write_bytes(b"")
    assert folder.ranks() == [1]
    assert [len(rank.steps) for rank in load_run(folder).ranks] == [0]


NUMBERS = st.floats() | st.integers(min_value=-(2**70), max_value=2**70)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters(), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
)


@pytest.mark.fault(54, 60)
@given(values=st.dictionaries(st.text(st.characters(), max_size=5), VALUES, max_size=4))
def test_whatever_an_event_holds_is_one_line_of_json(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    """Numbers that are not finite become null, names that are no text lose what is none; the line is read again."""
    folder = RunFolder.create(tmp_path_factory.mktemp("runs"), "x")
    with appending(folder.rank_file(0)) as write:
        write(EventRecord(event="checkpoint", step=0, start_seconds=0.0, seconds=0.0, values=values))
    records, unreadable = folder.records(0)
    assert (len(records), unreadable) == (1, 0)
    folder.write("status.json", values)
    folder.read("status.json")


@pytest.mark.fault(54)
@pytest.mark.parametrize(
    "values",
    [
        {"text": "x" * 3_000_000},
        {"text": "🚗" * 1_000_000, "ap": 0.5},
        {"list": [math.nan] * 1_000_000},
        {str(index): index for index in range(300_000)},
        {"deep": [["x" * 20] * 300] * 1000},
    ],
    ids=["text", "emoji", "list", "many", "deep"],
)
def test_a_record_is_bounded(tmp_path: Path, values: dict[str, Any]) -> None:
    """What holds more than a record may is cut, and the record read again."""
    folder = RunFolder.create(tmp_path, "x")
    with appending(folder.rank_file(0)) as write:
        write(EventRecord(event="evaluation", step=7, start_seconds=0.0, seconds=0.0, values=values))
        write(step_record(8))
    assert folder.rank_file(0).stat().st_size < MAX_RECORD_BYTES + 1000
    (event, step), unreadable = folder.records(0)
    assert unreadable == 0
    assert isinstance(event, EventRecord)
    assert event.step == 7
    assert event.values.keys() <= values.keys()
    assert event.values.get("ap") == values.get("ap")
    assert step == step_record(8)


@pytest.mark.fault(54)
def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    """NaN and infinity have no place in JSON."""
    folder = RunFolder.create(tmp_path, "x")
    with appending(folder.rank_file(0)) as write:
        write(replace(step_record(0), losses=[math.nan, math.inf, 1.0], grad_square_sum=-math.inf))
    expected = replace(step_record(0), losses=[None, None, 1.0])
    assert folder.records(0) == ([expected], 0)
