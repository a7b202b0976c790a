"""`scalelab import TRACE...`: a run folder from profiler traces that others recorded, one per rank. No torch."""

from __future__ import annotations

import itertools
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict

from ...profiles.analysis.imported import config_of
from ...profiles.analysis.load import Run, load_run
from ...profiles.analysis.summary import summarise
from ...profiles.analysis.trace.said import NO_KERNELS
from ...profiles.analysis.traces import MERGED, SUFFIXES, merge_traces, read_traces, trace_files
from ...profiles.records import SCHEMA
from ...profiles.runfolder import RunFolder
from ...profiles.storage import OutputError, writing
from ...reports.console import Console
from ...reports.page.write import write_run_report
from ...reports.steady import Steady
from ...reports.trace import trace_table
from ..errors import ConfigError, Exit
from ..options import PlainText, option, read_options
from ..supervision.verdict import status
from ..text import plain, redacted_argument

SUMMARY = (
    "Make a run folder from traces of torch.profiler (export_chrome_trace, tensorboard_trace_handler), one per rank: "
    "files, or folders of them. What a trace does not tell is null."
)
FLAGS = {"json": "print the summary as JSON on stdout"}
_RANK = re.compile(r"(?:^|[^a-z])rank[-_.]?(\d{1,7})(?!\d)", re.IGNORECASE)
_OURS = re.compile(r"r(\d{3,7})\.pt\.trace\.json")


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
    world_size = _world_size(usable)
    ranks = _ranks(files, rows, world_size)
    folder = RunFolder.create(Path(options.out), options.name or files[0].name.partition(".")[0])
    copies = _copied(folder, ranks, files)
    devices = [row["facts"]["device_name"] for row in usable if row["facts"]["device_name"] is not None]
    about = {
        "schema": SCHEMA,
        "run_id": folder.run_id,
        "name": options.name or "imported",
        "source": "imported",
        "command": ["scalelab", "import", *map(redacted_argument, argv)],
        "config": config_of("cuda" if any(map(_on_gpus, usable)) else "cpu"),
        "world_size": world_size,
        "device_name": devices[0] if devices else None,
        "imported": {f"{rank:03d}": str(path) for rank, path in zip(ranks, files, strict=True)},
        # What only a run of ours can know, of the job and of the machine that it ran on.
        **dict.fromkeys(("precision", "target", "oversubscribed", "data", "environment", "calibration")),
    }
    folder.write("run.json", about)
    folder.write("status.json", status("finished", Exit.OK))
    named = [
        {**row, "rank": rank} | ({} if row["unusable"] else {"file": copy})
        for rank, row, copy in zip(ranks, rows, copies, strict=True)
    ]
    run = load_run(folder)
    merged = merge_traces(folder.path, trace_files(folder.path), run)
    summary = summarise(run, sorted(named, key=lambda row: row["rank"]), merged)
    folder.write("summary.json", summary)
    reported = _reported(folder, run, summary)
    if "json" in flags:
        print(orjson.dumps({**summary, "run_folder": str(folder.path)}).decode())
        return Exit.OK
    Console(sys.stdout).print(trace_table(summary))
    print(plain(f"run folder: {folder.path}"), file=Steady(sys.stdout))
    if reported:
        print(plain(f"report: {folder.path / 'report.html'}"), file=Steady(sys.stdout))
    return Exit.OK


def _reported(folder: RunFolder, run: Run, summary: Mapping[str, Any]) -> bool:
    """Write the report; where the disk does not take it, say so: the summary is there."""
    try:
        write_run_report(folder, run, summary)
    except OutputError as error:
        told = f"the report could not be written: {error}\nhint: {error.hint}; then: scalelab report {folder.path}"
        print(plain(told), file=Steady(sys.stderr))
        return False
    return True


def _copied(folder: RunFolder, ranks: Sequence[int], files: Sequence[Path]) -> list[str]:
    """Copy the traces into the folder, each under its rank's name; the names."""
    ends = [".gz" if path.name.endswith(".gz") else "" for path in files]
    names = [f"r{rank:03d}.pt.trace.json{end}" for rank, end in zip(ranks, ends, strict=True)]
    with writing(folder.path):
        (folder.path / "traces").mkdir()
        for name, path in zip(names, files, strict=True):
            shutil.copyfile(path, folder.path / "traces" / name)
    return names


def _on_gpus(row: Mapping[str, Any]) -> bool:
    return row["why_no_device"] == NO_KERNELS or any(each["device"] is not None for each in row["devices"])


def _files(given: Sequence[str]) -> list[Path]:
    """The trace files among `given`, those of a folder in the order of their names."""
    if not given:
        raise ConfigError("TRACE: none was given", hint="scalelab import rank0.pt.trace.json.gz rank1.pt.trace.json.gz")
    found: list[Path] = []
    for text in given:
        path = Path(text)
        if path.is_dir():
            found_here = [each for each in path.iterdir() if each.name.endswith(SUFFIXES) and each.is_file()]
            inside = sorted((each for each in found_here if each.name != MERGED), key=_natural)
            if not inside:
                raise ConfigError(f"{text}: the folder holds no .json or .json.gz file", hint="give trace files")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"{text}: no such file", hint="give trace files, or folders that hold them")
    return found


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts rank2 before rank10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _ranks(files: Sequence[Path], rows: Sequence[Mapping[str, Any]], world_size: int | None) -> list[int]:
    """Each file's rank: what the trace says, else what its name says; where neither does of any file, its place; else
    the next free one. Raises ConfigError for two traces of one rank, and for a rank that the job does not have."""
    told = [_rank_of(path, row) for path, row in zip(files, rows, strict=True)]
    known = [rank for rank in told if rank is not None]
    if len(known) != len(set(known)):
        twice = next(rank for rank in known if known.count(rank) > 1)
        both = " and ".join(str(path) for path, rank in zip(files, told, strict=True) if rank == twice)
        raise ConfigError(f"{both}: all are of rank {twice}", hint="give one trace a rank, all of one job and window")
    if world_size is not None and known and max(known) >= world_size:
        raise ConfigError(
            f"a trace is of rank {max(known)}, in a job of {world_size} ranks by another: of different jobs",
            hint="import those of one job at a time",
        )
    free = (rank for rank in itertools.count(max(known, default=-1) + 1))
    return [next(free) if rank is None else rank for rank in told]


def _rank_of(path: Path, row: Mapping[str, Any]) -> int | None:
    if (rank := row.get("facts", {}).get("rank")) is not None:
        return rank
    match = _OURS.match(path.name) or _RANK.search(path.name)
    return int(match[1]) if match else None


def _world_size(rows: Sequence[Mapping[str, Any]]) -> int | None:
    """The number of ranks that the traces tell; None where none does. Raises ConfigError for different ones."""
    worlds = sorted({row["facts"]["world_size"] for row in rows} - {None})
    if len(worlds) > 1:
        told = f"the traces are of different jobs: of {', '.join(map(str, worlds))} ranks"
        raise ConfigError(told, hint="import those of one job at a time")
    return worlds[0] if worlds else None
