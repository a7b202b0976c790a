"""The run folder: the only thing that crosses from training to analysis. Imports no torch.

run.json            resolved config, environment, data; written first
status.json         {"state", "exit_code", "culprit", "cause", "hint"}
ranks/r000.jsonl    one record per step per rank, append-only
errors/r000.json    what ended a rank, when something did
logs/r000.log       what a rank printed
checkpoints/        sharded checkpoints, one folder a save
summary.json        written by analysis
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from .records import Record, any_record


@dataclass(frozen=True)
class RunFolder:
    """A run's folder on disk. Whole files are replaced atomically; records are appended a line at a time."""

    path: Path

    @classmethod
    def create(cls, out: Path, name: str) -> RunFolder:
        """A new folder `<utc>-<name>-<rand>` in `out`, with `out/latest` pointing at it.

        Characters of `name` that shells or terminals read as more than text become dashes. Raises OSError when
        the place cannot be written.
        """
        utc = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
        safe = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "run"
        path = out.resolve() / f"{utc}-{safe}-{secrets.token_hex(3)}"
        path.mkdir(parents=True)
        for part in ("ranks", "errors", "logs"):
            (path / part).mkdir()
        _point(out.resolve() / "latest", path.name)
        return cls(path)

    @property
    def run_id(self) -> str:
        return self.path.name

    def rank_file(self, rank: int) -> Path:
        return self.path / "ranks" / f"r{rank:03d}.jsonl"

    def log_file(self, rank: int) -> Path:
        return self.path / "logs" / f"r{rank:03d}.log"

    def error_file(self, rank: int) -> Path:
        return self.path / "errors" / f"r{rank:03d}.json"

    def write(self, name: str, value: Any) -> None:
        """Replace file `name` by `value` as JSON: a reader sees the old file or the new one, whole."""
        replace_file(self.path / name, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))

    def read(self, name: str) -> Any:
        """File `name` as JSON; None when there is none. Raises ValueError naming the file when it is damaged."""
        path = self.path / name
        try:
            return orjson.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON ({error}); the file was damaged after it was written") from error

    def ranks(self) -> list[int]:
        """The ranks that wrote records."""
        return sorted(int(path.stem[1:]) for path in (self.path / "ranks").glob("r*.jsonl"))

    def records(self, rank: int) -> tuple[list[Record], int]:
        """The rank's records in order, and how many lines could not be read (a half last line, damage)."""
        records: list[Record] = []
        unreadable = 0
        for line in self.rank_file(rank).read_bytes().splitlines():
            try:
                records.append(any_record.validate_json(line))
            except ValidationError:
                unreadable += 1
        return records, unreadable


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, force it to disk and rename it over `path`."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def appending(path: Path) -> Iterator[RecordWriter]:
    """A writer of records to `path`, closed at the end."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        yield RecordWriter(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RecordWriter:
    """Appends records, each by one `write` call, so that a line is there whole or at the very end cut short."""

    descriptor: int

    def __call__(self, record: Record) -> None:
        os.write(self.descriptor, orjson.dumps(record.model_dump()) + b"\n")


def _point(link: Path, target: str) -> None:
    """Make `link` point to `target` atomically."""
    temporary = link.with_name(f".latest.{secrets.token_hex(4)}.partial")
    temporary.symlink_to(target)
    os.replace(temporary, link)
