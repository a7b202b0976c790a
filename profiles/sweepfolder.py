"""The sweep folder: what a sweep leaves beside its run folders. Imports no torch.

sweep.json          the matrix: every cell, refused ones too, and the order of its runs; written first
attempts.jsonl      one line per finished attempt at a run, append-only; the last one of a cell and repeat counts
trials.jsonl, batches.jsonl, trials/   of --best-batch: its trial runs, and what was found for each cell
lock                which sweep writes here
logs/               what each run printed, <cell>-r<repeat>.log
<utc>-<cell>-<rand>/  run folders, as `scalelab run` leaves them
sweep-summary.json  written by analysis
report.html, report.md
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .runfolder import RunFolder, SchemaError, appending
from .storage import replace_file

# Of sweep.json.
SCHEMA = 1
# Exit codes of a run that a signal ended, which says nothing against it: preempted, Ctrl-C, SIGTERM.
INTERRUPTED = (75, 130, 143)


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Cell(_Kept):
    """One cell of the matrix. `config` holds the options of `scalelab run` by field name, as they were resolved for it.

    `refused`: why it cannot run here, in the words of the refusal; null where it can. `gated`: whether its losses are
    held against DDP's at the same world size and batch.
    """

    name: str
    strategy: str
    precision: str
    world_size: int
    micro_batch: int | None
    grad_accumulation: int
    global_batch: int | None
    config: dict[str, Any]
    refused: str | None = None
    gated: bool = True


class SweepPlan(_Kept):
    """sweep.json. `order` names (cell, repeat) in the order in which they are run: repeats interleaved at random, so
    that a machine's drift hits all cells alike.

    `references`: short runs of DDP, made only because the matrix holds none that a cell's losses could be held against.
    They are no cells, have no place in `order`, and no figure of theirs is shown.
    """

    schema_version: int = SCHEMA
    sweep_id: str
    created_utc: str
    command: list[str]
    scaling: Literal["strong", "weak"]
    repeats: int
    seed: int
    best_batch: bool = False
    cells: list[Cell]
    order: list[tuple[str, int]]
    references: list[Cell] = []


class Attempt(_Kept):
    """One finished attempt at a run. `run` is its folder's name, null where none was made. Exit code 8 with a cause
    that begins with `loss parity` stands for a run that trained something else than DDP did.

    `parity`: how its losses compared with DDP's, or why they were not compared; null as long as that is open.
    """

    cell: str
    repeat: int
    run: str | None
    exit_code: int
    cause: str | None = None
    parity: str | None = None
    started_utc: str
    seconds: float = Field(ge=0)

    @property
    def interrupted(self) -> bool:
        """Whether a signal ended it: it is missing, not failed."""
        return self.exit_code in INTERRUPTED

    @property
    def failed(self) -> bool:
        return self.exit_code != 0 and not self.interrupted


@dataclass(frozen=True)
class SweepFolder:
    """A sweep's folder on disk."""

    path: Path

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether `path` is a sweep's folder."""
        return (path / "sweep.json").is_file()

    def plan(self) -> SweepPlan:
        """Raises ValueError naming the file where it is missing or damaged, SchemaError where it is a newer one's."""
        path = self.path / "sweep.json"
        try:
            content = orjson.loads(path.read_bytes())
            if (
                isinstance(content, dict)
                and isinstance(schema := content.get("schema_version"), int)
                and schema > SCHEMA
            ):
                raise SchemaError(path, schema)
            return SweepPlan.model_validate(content)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror}), so this is no sweep's folder") from error
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{path}: not JSON ({error}); the file was damaged after it was written") from error
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    def write_plan(self, plan: SweepPlan) -> None:
        """Replace sweep.json. Raises OutputError."""
        replace_file(self.path / "sweep.json", plan.model_dump_json(indent=2).encode() + b"\n")

    def append(self, attempt: Attempt) -> None:
        """Add a line to attempts.jsonl, on disk when this returns. Raises OutputError."""
        with appending(self.path / "attempts.jsonl") as write:
            write.lines(attempt.model_dump_json().encode() + b"\n")

    def log_file(self, cell: str, repeat: int) -> Path:
        return self.path / "logs" / f"{cell}-r{repeat}.log"

    def attempts(self) -> tuple[dict[tuple[str, int], Attempt], int]:
        """The last attempt at each (cell, repeat), and how many lines could not be read (a half last line, damage)."""
        found: dict[tuple[str, int], Attempt] = {}
        unreadable = 0
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / "attempts.jsonl").read_bytes().splitlines():
                try:
                    attempt = Attempt.model_validate(orjson.loads(line))
                except (ValidationError, orjson.JSONDecodeError):
                    unreadable += 1
                    continue
                found[attempt.cell, attempt.repeat] = attempt
        return found, unreadable

    def run(self, attempt: Attempt) -> RunFolder | None:
        """The run folder of `attempt`, where it is there."""
        if attempt.run is None or not (self.path / attempt.run / "run.json").is_file():
            return None
        return RunFolder(self.path / attempt.run)
