"""`scalelab diagnose RUN`: what holds a run back, why, and what to do first."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict

from ...profiles.analysis.diagnosis.diagnose import write_diagnosis
from ...profiles.analysis.load import load_run
from ...profiles.analysis.summary import summarise
from ...profiles.analysis.traces import merge_traces, read_traces, trace_files
from ...profiles.runfolder import RunFolder
from ...reports.console import Console
from ...reports.diagnosis_card import diagnosis_card
from ...reports.steady import Steady
from .. import devices
from ..errors import ConfigError, Exit
from ..options import PlainText, option, read_options
from ..scenarios import scenarios
from ..scenarios._run import run_scenario
from ..text import plain
from ..validation import unknown

SUMMARY = "Say what holds a run back: a verdict, the evidence for it, what to change, and what that would buy."
FLAGS = {"json": "print the diagnosis as JSON on stdout; everything else goes to stderr"}


class DiagnoseOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str | None = option("which", "a run folder (runs/latest)", None)
    scenario: PlainText | None = option("which", "run this built-in fault first, and diagnose that", None)
    seed: int = option("scenario", "draws the strength of the fault, and the run's data and weights", 0, ge=0, lt=2**32)
    gpus: int | None = option("scenario", "ranks; by default the scenario's own", None, ge=1, le=1024)
    out: PlainText = option("scenario", "folder in which its run folder is made", "runs")


def main(argv: Sequence[str]) -> int:
    """Diagnose, print the card, leave diagnosis.json; returns the exit code."""
    options, flags = read_options("diagnose", SUMMARY, DiagnoseOptions, FLAGS, argv, positional="run")
    if options is None:
        print("\nscenarios:")
        for name, each in scenarios().items():
            print(f"  {name:24} {each.says} ({each.label})")
        return Exit.OK
    folder = _scenario(options) if options.scenario is not None else _folder(options.run or "runs/latest")
    diagnosis = _diagnose(folder)
    if "json" in flags:
        print(orjson.dumps({**diagnosis, "run_folder": str(folder.path)}).decode())
        return Exit.OK
    Console(sys.stdout).print(diagnosis_card(diagnosis))
    print(plain(f"\nrun folder: {folder.path}"), file=Steady(sys.stdout))
    return Exit.OK


def _folder(name: str) -> RunFolder:
    path = Path(name)
    if not path.is_dir():
        raise ConfigError(f"{name}: no such run folder", hint="give a folder that holds a run.json, or make a run")
    return RunFolder(path.resolve())


def _diagnose(folder: RunFolder) -> dict[str, object]:
    try:
        run, files = load_run(folder), trace_files(folder.path)
        summary = summarise(run, read_traces(files), merge_traces(folder.path, files, run))
    except ValueError as error:
        raise ConfigError(str(error), hint=getattr(error, "hint", "give a folder that a run has made")) from error
    return write_diagnosis(folder, run, summary)


def _scenario(options: DiagnoseOptions) -> RunFolder:
    if options.run is not None:
        raise ConfigError("--scenario makes a run of its own: leave RUN out, or leave --scenario out")
    found = scenarios().get(str(options.scenario))
    if found is None:
        raise ConfigError(unknown("--scenario", str(options.scenario), list(scenarios())))
    device = devices.detect().kind
    worlds = ", ".join(map(str, found.world_sizes))
    world = options.gpus or (2 if 2 in found.world_sizes else found.world_sizes[0])
    if world not in found.world_sizes:
        raise ConfigError(f"--gpus: given {world}, allowed {worlds} with --scenario {found.name}")
    return run_scenario(found, seed=options.seed, world_size=world, device=device, out=Path(options.out), say=_say)


def _say(text: str) -> None:
    print(plain(text), file=Steady(sys.stderr), flush=True)
