"""Whichever call to the system fails, or is the last one of a killed process, what was written before is whole."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from scalelab.profiles import storage
from scalelab.profiles.records import StepRecord
from scalelab.profiles.runfolder import RunFolder, appending
from scalelab.profiles.storage import OutputError, replace_file

from tests.support.planted import KILLED, each_call_failing, each_call_killed, failing, planted

OLD, NEW = b"old " * 100, b"new content " * 100

FAULTS = [
    pytest.param(errno.ENOSPC, False, id="full once"),
    pytest.param(errno.EIO, False, id="EIO once"),
    pytest.param(errno.EIO, True, id="EIO for good"),
    pytest.param(errno.ESTALE, True, id="stale for good"),
]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_SECONDS", (0.0, 0.0))


def step_record(index: int) -> StepRecord:
    return StepRecord(
        step=index,
        role="measured",
        start_seconds=float(index),
        seconds=1.0,
        phases={"forward": 0.5},
        host_data_seconds=0.0,
        losses=[1.0],
        samples=4,
        lr=1e-3,
    )


@pytest.mark.fault(29, 31)
@pytest.mark.parametrize(("code", "lasting"), FAULTS)
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, code: int, lasting: bool) -> None:
    """Whichever call fails, the file is the old or the new one, no temporary is left, and the error says what to do."""
    path = tmp_path / "status.json"
    replace_file(path, OLD)
    failures = []
    for failure in each_call_failing(lambda: replace_file(path, NEW), code, lasting=lasting):
        assert path.read_bytes() in (OLD, NEW)
        assert os.listdir(tmp_path) == [path.name]
        if failure is None:
            assert path.read_bytes() == NEW
        else:
            failures.append(failure)
        path.write_bytes(OLD)
    assert failures or code in storage.PASSING
    for failure in failures:
        assert isinstance(failure, ValueError)
        assert str(path) in str(failure)
        assert f"{len(NEW):,} needed" in str(failure)
        assert "bytes free" in str(failure)
        assert failure.hint  # pyright: ignore[reportAttributeAccessIssue]
    # A lasting error of the disk meets the same call again: each of the six calls fails but for the closing ones.
    assert not lasting or len(failures) >= 5


@pytest.mark.fault(29)
def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content first, then the name, then the folder that holds the name; in as many writes as the system wants."""
    with planted(0, failing(0)) as came:
        replace_file(tmp_path / "file", NEW)
    assert came == ["open", "write", "fsync", "replace", "open", "fsync"]
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, content[:7]))
    replace_file(tmp_path / "file", OLD)
    assert (tmp_path / "file").read_bytes() == OLD


@pytest.mark.fault(29)
def test_a_killed_process_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """kill -9 at each call of a replacement."""
    path = tmp_path / "status.json"
    path.write_bytes(OLD)
    ends = []
    for code in each_call_killed(lambda: replace_file(path, NEW)):
        ends.append(code)
        assert path.read_bytes() in (OLD, NEW)
        assert all(name == path.name or name.endswith(".partial") for name in os.listdir(tmp_path))
        if code != KILLED:
            assert path.read_bytes() == NEW
        path.write_bytes(OLD)
    assert len(ends) >= 6


@pytest.mark.fault(30, 31)
@pytest.mark.parametrize(("code", "lasting"), FAULTS)
def test_a_run_folder_is_made_whole_or_not_at_all(tmp_path: Path, code: int, lasting: bool) -> None:
    """Whichever call fails, no half-made folder is left, and `latest` is what it was or points to the new one."""
    first = RunFolder.create(tmp_path, "first")
    for failure in each_call_failing(lambda: RunFolder.create(tmp_path, "second"), code, lasting=lasting):
        made = list(tmp_path.glob("*-second-*"))
        assert (tmp_path / "latest").resolve() in (first.path, *made)
        assert not list(tmp_path.glob(".*partial"))
        if failure is None:
            assert {part.name for path in made for part in path.iterdir()} == {"ranks", "errors", "logs"}
        else:
            # A disk that opens no folder any more does not let it be emptied either.
            assert lasting or not made
        for path in made:
            path.rename(tmp_path / f"kept-{path.name[-6:]}")
        (tmp_path / "latest").unlink()
        (tmp_path / "latest").symlink_to(first.path.name)


@pytest.mark.fault(30)
def test_a_place_that_cannot_hold_a_folder_is_named(tmp_path: Path) -> None:
    """A file, and a folder in a file, as --out; a missing parent is made."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(OutputError, match="a file is in the place of a folder") as caught:
            RunFolder.create(out, "x")
        assert "--out" in caught.value.hint
    assert RunFolder.create(tmp_path / "a" / "b", "x").path.is_dir()


@pytest.mark.fault(28, 31)
@pytest.mark.parametrize(("code", "lasting"), FAULTS)
def test_records_before_a_failed_one_stay(tmp_path: Path, code: int, lasting: bool) -> None:
    """Whichever call fails, what was recorded before is there, and what comes later can be recorded and read."""
    folder = RunFolder.create(tmp_path, "x")
    path, written = folder.rank_file(0), []

    def append() -> None:
        written.clear()
        with appending(path) as write:
            for index in range(3):
                write(step_record(index))
                written.append(step_record(index))

    for _ in each_call_failing(append, code, lasting=lasting):
        records, unreadable = folder.records(0) if path.exists() else ([], 0)
        assert (records, unreadable) == (written, 0)
        path.unlink(missing_ok=True)


@pytest.mark.fault(28, 53)
def test_a_record_written_in_part_is_finished_or_the_only_one_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may take a part of a line; when the rest does not fit, the next record starts on a line of its own,
    in this process and in one that goes on with the file."""
    folder = RunFolder.create(tmp_path, "x")
    real, room = os.write, [10**6]

    def write_some(descriptor: int, content: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "planted")
        written = real(descriptor, content[: min(7, room[0])])
        room[0] -= written
        return written

    with monkeypatch.context() as patch, appending(folder.rank_file(0)) as write:
        patch.setattr(os, "write", write_some)
        write(step_record(0))
    assert folder.records(0) == ([step_record(0)], 0)
    with appending(folder.rank_file(0)) as write:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_some)
            room[0] = 30
            with pytest.raises(OutputError, match="the disk is full"):
                write(step_record(1))
        write(step_record(2))
    assert folder.records(0) == ([step_record(0), step_record(2)], 1)
    with open(folder.rank_file(0), "ab") as file:
        file.write(b'{"kind":"st')
    with appending(folder.rank_file(0)) as write:
        write(step_record(3))
    assert folder.records(0) == ([step_record(0), step_record(2), step_record(3)], 2)


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Within, no file of this process grows beyond `size` bytes: a full disk that needs no disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault(28)
def test_a_full_disk_stops_records_before_any_is_lost(tmp_path: Path) -> None:
    """At each size of the half line: an error with the numbers, the whole lines kept, the half one counted."""
    folder = RunFolder.create(tmp_path, "x")
    path = folder.rank_file(0)
    line = len(msgspec.json.encode(step_record(0))) + 1
    for room in range(0, line, 37):
        with appending(path) as write:
            write(step_record(0))
            with file_size_limit(line + room):
                with pytest.raises(OutputError, match=r"bytes free, \d+ needed") as caught:
                    write(step_record(1))
        assert caught.value.errno == errno.EFBIG
        assert folder.records(0) == ([step_record(0)], int(room > 0))
        path.unlink()


@pytest.mark.fault(31)
def test_a_stale_handle_is_taken_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the file server has lost the file's handle, the file is opened again and the record is there once."""
    folder = RunFolder.create(tmp_path, "x")
    pauses: list[float] = []
    with appending(folder.rank_file(0), sleep=pauses.append) as write:
        monkeypatch.setattr(storage, "PAUSES_SECONDS", (0.5, 1.0))
        with planted(1, failing(errno.ESTALE)) as came:
            write(step_record(0))
    assert came == ["write", "open", "write"]
    assert pauses == [0.5]
    assert folder.records(0) == ([step_record(0)], 0)


def test_steps_never_wait_for_the_disk(tmp_path: Path) -> None:
    """A record is one write and no sync; the one sync comes when the file is closed."""
    folder = RunFolder.create(tmp_path, "x")
    with planted(0, failing(0)) as came, appending(folder.rank_file(0)) as write:
        came.clear()
        for index in range(3):
            write(step_record(index))
        assert came == ["write"] * 3
    assert came == ["write"] * 3 + ["fsync"]
