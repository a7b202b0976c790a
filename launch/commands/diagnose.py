"""`scalelab diagnose RUN`: what holds a run back, why, and what to do first."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict

from ...profiles.analysis.diagnosis.diagnose import FILE, write_diagnosis
from ...profiles.analysis.load import load_run
from ...profiles.analysis.summary import analyse_as_priced, given_before
from ...profiles.runfolder import RunFolder
from ...profiles.storage import OutputError
from ...reports.console import Console
from ...reports.diagnosis_card import diagnosis_card
from ...reports.steady import Steady
from .. import devices
from ..errors import ConfigError, Exit, ScalelabError, exit_code_of
from ..options import PlainText, option, read_options
from ..scenarios import scenarios
from ..scenarios._contract import Planted
from ..scenarios._run import make_within, run_scenario
from ..sweep.child import make_run
from ..text import plain
from ..validation import unknown

SUMMARY = "Say what holds a run back: a verdict, the evidence for it, what to change, and what that would buy."
FLAGS = {
    "verify": "make the change that the diagnosis proposes: run both sides in turn, and say what it bought",
    "json": "print the diagnosis as JSON on stdout; everything else goes to stderr",
}
ONLY_WITH = {"rounds": "--verify", "steps": "--verify", "seed": "--scenario", "gpus": "--scenario"}
# From as many on two sides are held against each other round by round.
ROUNDS = 5


class DiagnoseOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str | None = option("which", "a run folder (runs/latest)", None)
    scenario: PlainText | None = option("which", "run this built-in fault first, and diagnose that", None)
    seed: int = option("scenario", "draws the strength of the fault, and the run's data and weights", 0, ge=0, lt=2**32)
    gpus: int | None = option("scenario", "ranks; by default the scenario's own", None, ge=1, le=1024)
    rounds: int = option("verify", "runs of each side, in turn", ROUNDS, ge=2, le=1000)
    steps: int | None = option(
        "verify", "measured steps of each of these runs; as the run has, 100 at most", None, ge=1
    )
    out: PlainText = option("where", "folder in which run folders are made", "runs")


def main(argv: Sequence[str]) -> int:
    """Diagnose, print the card, leave diagnosis.json; returns the exit code."""
    options, flags = read_options("diagnose", SUMMARY, DiagnoseOptions, FLAGS, argv, positional="run")
    if options is None:
        print("\nscenarios:")
        for name, each in scenarios().items():
            print(f"  {name:24} {each.says} ({each.label})")
        return Exit.OK
    if ignored := _ignored(options, flags):
        raise ConfigError(ignored, hint="scalelab diagnose --help lists every option")
    if options.scenario is not None:
        planted, folder = _scenario(options)
    else:
        planted, folder = None, _folder(options.run or "runs/latest")
    diagnosis, code, why = _diagnose(folder), Exit.OK, None
    if "verify" in flags:
        try:
            code = _verify(folder, diagnosis, options, planted)
        except (ScalelabError, OutputError) as error:  # the diagnosis itself is none the worse
            why = error
            diagnosis["verification"], diagnosis["reasons"]["verification"] = None, str(error)
            nothing = isinstance(error, ConfigError) and not any(row["counts"] for row in diagnosis["findings"])
            code = Exit.OK if nothing else exit_code_of(error)
    if "json" in flags:
        print(orjson.dumps({**diagnosis, "run_folder": str(folder.path)}).decode())
        return code
    Console(sys.stdout).print(diagnosis_card(diagnosis))
    if options.scenario is not None:
        print(f"\n{_planted(options.scenario, diagnosis)}")
    print(plain(f"\nrun folder: {folder.path}"), file=Steady(sys.stdout))
    if why is not None:
        _say(
            f"{'note' if code == Exit.OK else 'error'}: not verified: {why}"
            + (f"\nhint: {why.hint}" if why.hint else "")
        )
    return code


def _ignored(options: DiagnoseOptions, flags: set[str]) -> list[str]:
    """Options that would do nothing."""
    there = {"--verify": "verify" in flags, "--scenario": options.scenario is not None}
    return [
        f"--{name} does nothing without {needs}"
        for name, needs in ONLY_WITH.items()
        if name in options.model_fields_set and not there[needs]
    ]


def _planted(scenario: str, diagnosis: Mapping[str, Any]) -> str:
    """What was planted beside what was said."""
    label, said = scenarios()[scenario].label, diagnosis["verdict"]["label"]
    named = label != said and any(row["label"] == label for row in diagnosis["findings"])
    return f"planted: {label}; said: {said}{f' (and {label} under Also)' if named else ''}"


def _folder(name: str) -> RunFolder:
    path = Path(name)
    if not path.is_dir():
        raise ConfigError(f"{name}: no such run folder", hint="give a folder that holds a run.json, or make a run")
    return RunFolder(path.resolve())


def _diagnose(folder: RunFolder) -> dict[str, Any]:
    try:
        run = load_run(folder)
        summary = analyse_as_priced(folder, run)
    except ValueError as error:
        raise ConfigError(str(error), hint=getattr(error, "hint", "give a folder that a run has made")) from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ConfigError(
            f"{folder.path}: of another version, or damaged: {type(error).__name__}: {error}",
            hint="diagnose it with the version that made it, or make the run again",
        ) from error
    return write_diagnosis(folder, run, summary)


def _verify(folder: RunFolder, diagnosis: dict[str, Any], options: DiagnoseOptions, planted: Planted | None) -> Exit:
    """Add what the proposed change has bought to `diagnosis`, and to the folder's diagnosis.json."""
    from ..verification import around_seconds, change_of, verify

    verified = verify(
        folder.read("run.json") or {},
        change_of(diagnosis),
        out=Path(options.out),
        rounds=options.rounds,
        steps=options.steps,
        devices=devices.detect(),
        stream=sys.stderr,
        make=make_run if planted is None else make_within(planted),
        around_seconds=around_seconds(folder.read("summary.json") or {}),
        around="" if planted is None else f"{options.scenario} {options.seed}",
    )
    if verified.bought is None:
        failed = [each for each in verified.outcome.attempts.values() if each.exit_code]
        told = f": {failed[-1].cause}" if failed else ""
        said = f"not every run of {verified.folder} has ended well{told}"
        diagnosis["verification"], diagnosis["reasons"]["verification"] = None, said
        _say(f"not verified: {said}; the same command for {folder.path} goes on with what is missing")
        return verified.outcome.exit_code
    diagnosis["verification"] = {**verified.bought, "folder": str(verified.folder)}
    folder.write(FILE, diagnosis)
    _report_again(folder)
    return Exit.OK


def _report_again(folder: RunFolder) -> None:
    """The run's report, with what the change bought; where it cannot be written, that is said: the verification stands
    in diagnosis.json."""
    from ..reporting import summarise_and_report

    try:
        summarise_and_report(folder, given_before(folder))
    except OutputError as error:
        _say(f"note: the run's report could not be written, and lacks this: {error}; scalelab report {folder.path}")


def _scenario(options: DiagnoseOptions) -> tuple[Planted, RunFolder]:
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
    folder = run_scenario(found, seed=options.seed, world_size=world, device=device, out=Path(options.out), say=_say)
    return found.plant(found.strength(options.seed), world), folder


def _say(text: str) -> None:
    print(plain(text), file=Steady(sys.stderr), flush=True)
