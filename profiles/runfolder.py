"""The run folder: the only thing that crosses from training to analysis. Imports no torch.

run.json            resolved config, environment, data; written first
lock                which process writes here
status.json         {"state", "exit_code", "culprit", "cause", "hint"}
ranks/r000.jsonl    one record per step per rank, append-only
errors/r000.json    what ended a rank, when something did
logs/r000.log       what a rank printed
telemetry/h000.jsonl  on CUDA, readings of a host's cards, append-only
telemetry/m000.jsonl  readings of a host's cores and memory, append-only
traces/             a profiler's trace of each rank, r000.pt.trace.json.gz, and one of all, merged
checkpoints/        sharded checkpoints, one folder a save, and a link `latest`
summary.json        written by analysis
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import orjson

from .encoding import encode, line_of
from .records import SCHEMA, Record, StartRecord, any_record
from .storage import Sleep, point, replace_file, retried, sync_folder, writing
from .used import TelemetryStartRecord


class SchemaError(ValueError):
    """A file of a newer scalelab. `hint` is the way out, one line."""

    def __init__(self, path: Path, schema: int) -> None:
        super().__init__(
            f"{path}: written by a newer scalelab (schema {schema}; this one reads up to {SCHEMA}): upgrade"
        )
        self.hint = "or read it with the scalelab that wrote it"


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on disk. Whole files are replaced atomically; records are appended a line at a time."""

    path: Path

    @classmethod
    def create(cls, out: Path, name: str) -> RunFolder:
        """A new folder `<utc>-<name>-<rand>` in `out`, with `out/latest` pointing at it.

        Characters of `name` that shells or terminals read as more than text become dashes. Raises OutputError when
        the place cannot be written; no half-made folder is left then.
        """
        utc = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"
        path = out.resolve() / f"{utc}-{safe}-{secrets.token_hex(3)}"
        try:
            with writing(path):
                for part in ("ranks", "errors", "logs"):
                    (path / part).mkdir(parents=True)
                retried(lambda: sync_folder(path.parent))
            point(path.parent / "latest", path.name)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        return cls(path)

    @classmethod
    def join(cls, out: Path, run_id: str) -> tuple[RunFolder, bool]:
        """The folder of a run that another host began, in this host's `out`, and whether it was there: a shared disk.

        Raises ValueError for what is no run's id, OutputError when the place cannot be written.
        """
        if not re.fullmatch(r"[0-9]{8}T[0-9]{6}Z-[A-Za-z0-9._-]{1,100}", run_id):
            raise ValueError(f"{run_id[:100]!r} is no run's id")
        path = out.resolve() / run_id
        if (path / "run.json").is_file():
            return cls(path), True
        with writing(path):
            for part in ("ranks", "errors", "logs"):
                (path / part).mkdir(parents=True)
        point(path.parent / "latest", path.name)
        return cls(path), False

    @property
    def run_id(self) -> str:
        return self.path.name

    def rank_file(self, rank: int) -> Path:
        return self.path / "ranks" / f"r{rank:03d}.jsonl"

    def log_file(self, rank: int) -> Path:
        return self.path / "logs" / f"r{rank:03d}.log"

    def trace_file(self, rank: int) -> Path:
        return self.path / "traces" / f"r{rank:03d}.pt.trace.json.gz"

    def error_file(self, rank: int) -> Path:
        return self.path / "errors" / f"r{rank:03d}.json"

    def telemetry_file(self, host: int) -> Path:
        return self.path / "telemetry" / f"h{host:03d}.jsonl"

    def host_file(self, host: int) -> Path:
        return self.path / "telemetry" / f"m{host:03d}.jsonl"

    def write(self, name: str, value: Any) -> None:
        """Replace file `name` by `value` as JSON: a reader sees the old file or the new one, whole.

        Raises OutputError.
        """
        replace_file(self.path / name, encode(value, orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))

    def read(self, name: str) -> Any:
        """File `name` as JSON; None when there is none. Raises ValueError naming the file when it is damaged, and
        SchemaError when a newer scalelab wrote it."""
        path = self.path / name
        try:
            value = orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON ({error}); the file was damaged after it was written") from error
        _refuse_newer(path, value, "schema")
        return value

    def ranks(self) -> list[int]:
        """The ranks that wrote records."""
        names = [re.fullmatch(r"r(\d+)\.jsonl", path.name) for path in (self.path / "ranks").glob("r*.jsonl")]
        return sorted(int(name[1]) for name in names if name)

    def records(self, rank: int) -> tuple[list[Record], int]:
        """The rank's records in order, and how many lines could not be read (a half last line, damage).

        A rank without a file has none. Raises SchemaError for the file of a newer scalelab.
        """
        return _records_in(self.rank_file(rank))

    def telemetry(self) -> list[tuple[list[Record], int]]:
        """The same of each host whose cards were watched."""
        return [_records_in(path) for path in sorted((self.path / "telemetry").glob("h*.jsonl"))]

    def hosts(self) -> list[tuple[list[Record], int]]:
        """The same of each host whose cores and memory were watched."""
        return [_records_in(path) for path in sorted((self.path / "telemetry").glob("m*.jsonl"))]


def _records_in(path: Path) -> tuple[list[Record], int]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return [], 0
    records: list[Record] = []
    unreadable = 0
    for line in lines:
        try:
            record = any_record.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            _refuse_newer_start(path, line)
            unreadable += 1
            continue
        if isinstance(record, StartRecord | TelemetryStartRecord):
            _refuse_newer(path, {"schema_version": record.schema_version}, "schema_version")
        records.append(record)
    return records, unreadable


def _refuse_newer_start(path: Path, line: bytes) -> None:
    """Raise SchemaError for the first line of a newer scalelab's file, which may hold fields unknown here."""
    if b'"schema_version"' not in line:
        return
    with contextlib.suppress(orjson.JSONDecodeError):
        _refuse_newer(path, orjson.loads(line), "schema_version")


def _refuse_newer(path: Path, value: Any, field: str) -> None:
    schema = value.get(field) if isinstance(value, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise SchemaError(path, schema)


@contextlib.contextmanager
def appending(path: Path, *, sleep: Sleep = time.sleep) -> Iterator[RecordWriter]:
    """A writer of records to `path`. What it wrote is forced to disk once, at the end. Raises OutputError."""
    with writing(path):
        writer = RecordWriter(path, sleep)
    try:
        yield writer
    except BaseException:
        # What ended the run comes first; a disk that then fails too has nothing to add to it.
        with contextlib.suppress(OSError):
            writer.close()
        raise
    with writing(path):
        writer.close()


class RecordWriter:
    """Appends records to `path`, by one `write` call where the system takes it whole, never synced: a line is there
    whole, or it is the last one and cut short.

    After such a cut the next record starts on a line of its own, so that nothing but the cut one is lost.
    """

    def __init__(self, path: Path, sleep: Sleep = time.sleep) -> None:
        self._path = path
        self._sleep = sleep
        self._descriptor = retried(self._open, sleep)
        size = os.fstat(self._descriptor).st_size
        self._torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"

    def __call__(self, *records: Record) -> None:
        """Append `records`, each cut to what may be read again. Raises OutputError."""
        self.lines(b"".join(map(line_of, records)))

    def lines(self, content: bytes) -> None:
        """Append whole lines as they are. Raises OutputError."""
        line = b"\n" * self._torn + content
        rest = line

        def write() -> None:
            nonlocal rest
            try:
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                if error.errno == errno.ESTALE:
                    self._reopen()
                raise

        try:
            with writing(self._path, len(line)):
                retried(write, self._sleep)
            self._torn = False
        finally:
            self._torn = self._torn or 0 < len(rest) < len(line)

    def close(self) -> None:
        """Force to disk and close. Raises OSError: some file systems say only here that a write has failed."""
        try:
            os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def _open(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def _reopen(self) -> None:
        """Take a fresh handle for one that the file server no longer knows."""
        with contextlib.suppress(OSError):
            fresh = self._open()
            os.dup2(fresh, self._descriptor, inheritable=False)
            os.close(fresh)
