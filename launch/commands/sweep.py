"""`scalelab sweep`: a matrix of runs, from the command line to its table."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ...profiles.runfolder import RunFolder
from ...profiles.sweepfolder import Attempt, SweepFolder, SweepPlan
from ...reports.steady import Steady
from ...reports.units import counted
from .. import devices
from ..config import RunConfig
from ..devices import Devices
from ..errors import ConfigError, Exit, PreflightError
from ..options import Options
from ..sweep.gate import references
from ..sweep.matrix import Planned, cells
from ..sweep.opening import opened, plan_of, refilled
from ..sweep.options import Request, SweepOptions, request
from ..text import plain, redacted_argument

if TYPE_CHECKING:
    from ...profiles.analysis.prices import Given
    from ..sweep.runner import Outcome

SUMMARY = "Make every run of a matrix on equal terms, resumably: a second call repeats only what is missing or failed."
PRICES = ("usd_per_gpu_hour", "usd_per_kwh")
FLAGS = {
    "dry-run": "print the cells, refused ones with the reason, and the order of the runs; start nothing",
    "json": "print the sweep's summary as JSON on stdout; everything else goes to stderr",
}


def main(argv: Sequence[str]) -> int:
    """The exit code of `scalelab sweep ARGV`."""
    options = Options("sweep", SUMMARY, SweepOptions, FLAGS)
    values, flags, problems = options.read(argv)
    if "help" in flags:
        print(options.help())
        return Exit.OK
    asked = request(values, problems)
    here = devices.detect()
    matrix = cells(asked, here)
    _refuse_all(matrix)
    hidden = references(matrix, here)
    plan = plan_of(matrix, hidden, asked, here, ["scalelab", "sweep", *map(redacted_argument, argv)])
    if "dry-run" in flags:
        return _dry_run(plan, as_json="json" in flags)
    if asked.repeats == 1:
        _say("note: one repeat is a quick look: without a spread between runs there are no verdicts")
    return _sweep(plan, matrix, hidden, asked, here, as_json="json" in flags)


def _refuse_all(matrix: Sequence[Planned]) -> None:
    """Raise what refuses the cells when there is none that can run."""
    if any(each.error is None for each in matrix):
        return
    lines = dict.fromkeys(f"{each.cell.name}: {each.cell.refused}" for each in matrix)
    kind = ConfigError if any(isinstance(each.error, ConfigError) for each in matrix) else PreflightError
    raise kind("\n".join(["no cell of this matrix can run here", *lines]))


def _sweep(
    plan: SweepPlan,
    matrix: Sequence[Planned],
    hidden: Sequence[Planned],
    asked: Request,
    here: Devices,
    *,
    as_json: bool,
) -> int:
    # Here and not above: `--help` and errors of usage answer without them.
    from ...reports.sweep_live import SweepLive
    from ..supervision.interrupts import Interrupts
    from ..sweep.best_batch import fitted
    from ..sweep.runner import run_sweep

    out = Path(asked.common.get("out", RunConfig.model_fields["out"].default))
    with opened(out, plan, _say) as (folder, plan):
        _say(f"sweep folder: {folder.path}")
        with Interrupts() as interrupts, SweepLive(sys.stderr, folder, plan, plain) as display:
            if asked.best_batch:
                matrix = fitted(folder, matrix, here, asked.best_batch_max, display, interrupts)
                plan = refilled(folder, plan, matrix)
                display.plan = plan
            _announce(folder, plan, asked.repeats, here)
            given = {each.cell.name: each.given for each in (*matrix, *hidden)}
            outcome = run_sweep(folder, plan, given, display, interrupts, repeats=asked.repeats)
        given_now = _repriced(folder, outcome.attempts.values(), asked.common)
        unreadable = _conclude(folder, outcome, given_now, as_json=as_json)
    return Exit.SOME_FAILED if unreadable and outcome.exit_code == Exit.OK else outcome.exit_code


def _announce(folder: SweepFolder, plan: SweepPlan, repeats: int, here: Devices) -> None:
    """Say what is to be done and how long it takes, as far as that is known."""
    from ...reports.sweep_live import duration
    from ..sweep.emulated import emulated_notes
    from ..sweep.runner import expected_seconds, missing

    for cell in plan.cells:
        if cell.refused is not None:
            _say(f"refused: {cell.name}: {cell.refused}")
    attempts, _ = folder.attempts()
    todo = missing(folder, plan, attempts, repeats)
    names = {name for name, _ in todo}
    for note in emulated_notes([cell for cell in plan.cells if cell.name in names], here):
        _say(f"note: {note}")
    done = len({key for key in plan.order if key[1] <= repeats} - set(todo))
    before = f" ({done} {'is' if done == 1 else 'are'} there)" if done else ""
    seconds = expected_seconds(todo, attempts)
    known = "unknown until one has ended" if seconds is None else f"{duration(seconds)}, by those that have ended here"
    _say(f"{counted(len(todo), 'run')} to make{before}" + (f"; time they take: {known}" if todo else ""))


def _repriced(folder: SweepFolder, attempts: Iterable[Attempt], given: Mapping[str, Any]) -> Given | None:
    """The prices given to this call, where a run was made without them or with others; None where none was: prices are
    no part of what makes a run another one."""
    from ...profiles.analysis.prices import Given

    told = {name: given[name] for name in PRICES if given.get(name) is not None}
    runs = [run for each in attempts if (run := folder.run(each)) is not None]
    if not told or all(told.items() <= _config(run).items() for run in runs):
        return None
    options = ", ".join(f"--{name.replace('_', '-')} {price:g}" for name, price in told.items())
    _say(f"note: runs made at other prices are shown at {options}; their own come back with scalelab report")
    return Given(**told)


def _config(run: RunFolder) -> Mapping[str, Any]:
    """The run's options; none where they cannot be read, which the sweep's report tells."""
    try:
        return (run.read("run.json") or {})["config"]
    except (ValueError, KeyError, TypeError):
        return {}


def _conclude(folder: SweepFolder, outcome: Outcome, given: Given | None, *, as_json: bool) -> list[str]:
    """Print what the sweep came to and what to do about what is lacking; returns the folders of the runs that ended
    well and cannot be read all the same."""
    from ...reports.console import Console
    from ...reports.sweep_results import sweep_results
    from ..reporting import summarise_and_report_sweep

    summary = summarise_and_report_sweep(folder, given)
    if as_json:
        print(orjson.dumps({**summary, "sweep_folder": str(folder.path)}).decode(), file=Steady(sys.stdout), flush=True)
    else:
        Console(sys.stdout).print(sweep_results(summary))
    if outcome.left:
        left = counted(outcome.left, "run")
        _say(f"{left} {'is' if outcome.left == 1 else 'are'} missing: the same command goes on from here")
    failed = sum(attempt.failed for attempt in outcome.attempts.values())
    if failed:
        _say(f"error: {failed} of the runs failed; the same command makes them again")
    rows = [row for cell in summary["cells"] for row in cell["runs"] if row["state"] == "unreadable"]
    if unreadable := [row["run"] for row in rows]:
        _say(f"error: {counted(len(unreadable), 'run')} cannot be read: {', '.join(unreadable)}")
        _say("hint: put back what is missing, or move it out of the sweep's folder: the same command makes it again")
    if not as_json:
        print(plain(f"sweep folder: {folder.path}"), file=Steady(sys.stdout), flush=True)
        print(plain(f"report: {folder.path / 'report.html'}"), file=Steady(sys.stdout), flush=True)
    return unreadable


def _dry_run(plan: SweepPlan, *, as_json: bool) -> int:
    from ...reports.console import Console
    from ...reports.sweep_plan import plan_table

    if as_json:
        print(plan.model_dump_json())
    else:
        Console(sys.stdout).print(plan_table(plan))
    return Exit.OK


def _say(text: str) -> None:
    """Print to stderr, where it does not mix with results. Nobody there to read it is no reason to stop."""
    print(plain(text), file=Steady(sys.stderr), flush=True)
