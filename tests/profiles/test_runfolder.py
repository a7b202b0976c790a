"""The run folder keeps what was written, whatever happens while it is written."""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scalelab.profiles import runfolder
from scalelab.profiles.records import EventRecord, Record, StepRecord, WindowRecord
from scalelab.profiles.runfolder import RunFolder, appending


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


@given(cut=st.integers(min_value=0), junk=st.binary(max_size=20))
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    """A crash leaves a half last line, damage leaves garbage: readers keep the rest and count what they skip."""
    folder = RunFolder.create(tmp_path_factory.mktemp("runs"), "x")
    whole = b"".join(orjson.dumps(record.model_dump()) + b"\n" for record in RECORDS)
    kept = whole[: cut % (len(whole) + 1)]
    folder.rank_file(0).write_bytes(kept + junk)
    records, unreadable = folder.records(0)
    complete = kept.count(b"\n")
    assert records[:complete] == RECORDS[:complete]
    assert len(records) + unreadable == len((kept + junk).splitlines())


@given(st.text(min_size=0, max_size=300))
def test_any_name_makes_a_folder_inside_the_given_one(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    """Names with spaces, quotes, slashes, newlines or dots stay names."""
    out = tmp_path_factory.mktemp("runs")
    folder = RunFolder.create(out, name)
    assert folder.path.parent == out
    assert folder.path.name.isascii()
    assert not set(folder.path.name) & set(" /\\'\"\n$;`[]")
    assert (out / "latest").resolve() == folder.path


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call fails, the file is the old one or the new one, and nothing is left beside it."""
    folder = RunFolder.create(tmp_path, "x")
    folder.write("status.json", {"state": "old"})
    for name in ("fsync", "replace", "chmod"):

        def fail(*args: object, name: str = name) -> None:
            raise OSError(f"planted in {name}")

        with monkeypatch.context() as patch:
            patch.setattr(runfolder.os, name, fail)
            with pytest.raises(OSError, match="planted"):
                folder.write("status.json", {"state": "new"})
        assert folder.read("status.json") == {"state": "old"}
        assert not list(folder.path.glob(".*partial"))
    folder.write("status.json", {"state": "new"})
    assert folder.read("status.json") == {"state": "new"}
    assert os.stat(folder.path / "status.json").st_mode & 0o777 == 0o644


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A run.json that is no JSON is an error that names it, a missing one is None."""
    folder = RunFolder.create(tmp_path, "x")
    assert folder.read("run.json") is None
    (folder.path / "run.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"run\.json"):
        folder.read("run.json")
