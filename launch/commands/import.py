"""`scalelab import TRACE...`: a run folder from profiler traces that others recorded, one per rank. No torch."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict

from ...profiles.analysis.imported import config_of
from ...profiles.analysis.load import load_run
from ...profiles.analysis.summary import summarise
from ...profiles.analysis.traces import SUFFIXES, read_traces
from ...profiles.records import SCHEMA
from ...profiles.runfolder import RunFolder
from ...profiles.storage import writing
from ...reports.console import Console, Steady
from ...reports.trace import trace_table
from .. import environment
from ..config import PlainText, option
from ..errors import ConfigError, Exit
from ..options import read_options
from ..supervision.verdict import status
from ..text import plain, redacted_argument

SUMMARY = (
    "Make a run folder from traces of torch.profiler (export_chrome_trace, tensorboard_trace_handler), one per rank: "
    "files, or folders of them. What a trace does not tell is null."
)
FLAGS = {"json": "print the summary as JSON on stdout"}
_RANK = re.compile(r"(?:^|[^a-z])r(?:ank)?[-_.]?(\d+)", re.IGNORECASE)


class ImportOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    trace: list[str] = option("what", "trace files, .json or .json.gz, or folders that hold them", [])
    out: PlainText = option("where", "folder in which the run folder is made", "runs")
    name: PlainText | None = option("where", "a word for the run folder's name", None)


def main(argv: Sequence[str]) -> int:
    """The exit code of `scalelab import ARGV`."""
    options, flags = read_options("import", SUMMARY, ImportOptions, FLAGS, argv, positional="trace")
    if options is None:
        return Exit.OK
    files = _files(options.trace)
    rows = read_traces(dict(enumerate(files)))
    usable = [row for row in rows if row["unusable"] is None]
    if not usable:
        raise ConfigError([row["unusable"] for row in rows], hint="give traces that torch.profiler has written")
    ranks, world_size = _ranks(files, rows), _world_size(rows)
    folder = RunFolder.create(Path(options.out), options.name or files[0].name.partition(".")[0])
    with writing(folder.path):
        (folder.path / "traces").mkdir()
        for rank, path in zip(ranks, files, strict=True):
            packed = ".gz" if path.name.endswith(".gz") else ""
            shutil.copyfile(path, folder.path / "traces" / f"r{rank:03d}.pt.trace.json{packed}")
    facts = [row["facts"] for row in usable]
    on_device = any(device["device"] is not None for row in usable for device in row["devices"])
    names = [fact["device_name"] for fact in facts if fact["device_name"] is not None]
    folder.write(
        "run.json",
        {
            "schema": SCHEMA,
            "run_id": folder.run_id,
            "name": options.name or "imported",
            "source": "imported",
            "command": ["scalelab", "import", *map(redacted_argument, argv)],
            "config": config_of("cuda" if on_device else "cpu"),
            "precision": None,
            "target": None,
            "world_size": world_size or len(files),
            "oversubscribed": None,
            "device_name": names[0] if names else None,
            "imported": {f"{rank:03d}": str(path) for rank, path in zip(ranks, files, strict=True)},
            "data": None,
            "environment": environment.capture(),
            "calibration": None,
        },
    )
    folder.write("status.json", status("finished", Exit.OK))
    by_rank = sorted(
        ({**row, "rank": rank} for rank, row in zip(ranks, rows, strict=True)), key=lambda row: row["rank"]
    )
    summary = summarise(load_run(folder), by_rank)
    folder.write("summary.json", summary)
    if "json" in flags:
        print(orjson.dumps({**summary, "run_folder": str(folder.path)}).decode())
        return Exit.OK
    Console(sys.stdout).print(trace_table(summary))
    print(plain(f"run folder: {folder.path}"), file=Steady(sys.stdout))
    return Exit.OK


def _files(given: Sequence[str]) -> list[Path]:
    """The trace files among `given`, those of a folder in the order of their names."""
    if not given:
        raise ConfigError("TRACE: none was given", hint="scalelab import rank0.pt.trace.json.gz rank1.pt.trace.json.gz")
    found: list[Path] = []
    for text in given:
        path = Path(text)
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if each.name.endswith(SUFFIXES) and each.is_file())
            if not inside:
                raise ConfigError(f"{text}: the folder holds no .json or .json.gz file", hint="give trace files")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"{text}: no such file", hint="give trace files, or folders that hold them")
    return found


def _ranks(files: Sequence[Path], rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Each file's rank: what the trace says, else what its name says, else its place. Raises ConfigError for two traces
    of one rank."""
    told = [row.get("facts", {}).get("rank") for row in rows]
    named = [int(match[1]) if (match := _RANK.search(path.name)) else None for path in files]
    for ranks in (told, named):
        known = [rank for rank in ranks if rank is not None]
        if len(known) == len(set(known)) == len(files):
            return known
    if len(known := [rank for rank in told if rank is not None]) == len(files):
        twice = next(rank for rank in known if known.count(rank) > 1)
        both = " and ".join(str(path) for path, rank in zip(files, told, strict=True) if rank == twice)
        raise ConfigError(f"{both}: all are of rank {twice}", hint="give one trace a rank, all of one job and window")
    return list(range(len(files)))


def _world_size(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of ranks that the traces tell. Raises ConfigError where they tell different ones."""
    worlds = sorted({row["facts"]["world_size"] for row in rows if row["unusable"] is None} - {None})
    if len(worlds) > 1:
        sizes = ", ".join(map(str, worlds))
        raise ConfigError(
            f"the traces are of different jobs: of {sizes} ranks", hint="import those of one job at a time"
        )
    return worlds[0] if worlds else None
