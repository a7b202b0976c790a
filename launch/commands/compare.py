"""`scalelab compare A B`: how B differs from A, with an interval and a verdict. No torch."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict

from ...profiles.analysis.alike import CHECKS, unlike
from ...reports.steady import Steady
from ..errors import ConfigError, Exit
from ..gates import judged, parse_gates
from ..options import option, read_options
from ..text import all_plain, plain

if TYPE_CHECKING:
    from ...profiles.analysis.compared import ComparedRun, Side
    from ...profiles.analysis.comparison import Stored
    from ...profiles.calibration import Calibration

SUMMARY = (
    "Hold the runs of B against those of A: effect, interval between runs, and a verdict. Each side is a run folder, "
    "several by commas, a pattern, a folder of runs, or a cell of a sweep as SWEEP:CELL."
)
FLAGS = {"json": "print the comparison as JSON on stdout; everything else goes to stderr"}


def _gates(text: str) -> str:
    parse_gates(text)
    return text


def _allowed(text: str) -> str:
    for part in text.split(","):
        if part.strip() not in CHECKS:
            raise ValueError(f"{', '.join(CHECKS)}, several by commas")
    return text


def _share(text: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)%", str(text).strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise ValueError("a share such as 5%, more than 0% and at most 100%")
    return float(match[1]) / 100


class CompareOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    sides: list[str] = option("which", "A, then B", [])
    fail_if: Annotated[str, BeforeValidator(_gates)] | None = option(
        "what",
        "exit with code 9 when B is worse for certain, and by this much: slower:5%, memory:10%, cost:5%",
        None,
    )
    allow: Annotated[str, BeforeValidator(_allowed)] | None = option(
        "what", f"compare although the sides differ in it, several by commas: {', '.join(CHECKS)}", None
    )
    margin: Annotated[float, BeforeValidator(_share)] | None = option(
        "what", "the smallest effect that matters, such as 3%: `no change` lies within it (5%)", None
    )


def main(argv: Sequence[str]) -> int:
    """Exit code 0 whatever the verdict, 9 when a gate of `--fail-if` fails."""
    options, flags = read_options("compare", SUMMARY, CompareOptions, FLAGS, argv, positional="sides")
    if options is None:
        return Exit.OK
    if len(options.sides) != 2:
        hint = "several runs of a side by commas, or by a pattern in quotes, which the shell leaves alone"
        raise ConfigError(f"SIDES: given {len(options.sides)}, allowed two: A and B", hint=hint)
    # Here and not above: `--help` and errors of usage answer without them.
    from ...profiles.analysis.comparison import compare, stored_for
    from ...profiles.analysis.verdict import MARGIN
    from ...reports.compare_table import compare_table
    from ...reports.console import Console
    from ..sides import find_side

    a, b = (find_side(letter, text) for letter, text in zip("AB", options.sides, strict=True))
    allowed = {part.strip() for part in (options.allow or "").split(",")}
    _refuse(a, b, allowed)
    result = compare(a, b, stored=stored_for(a, b) or _stored_here(a, b), margin=options.margin or MARGIN)
    outcomes = [judged(gate, result) for gate in parse_gates(options.fail_if)] if options.fail_if else []
    result = {**result, "gates": outcomes}
    if "json" in flags:
        print(orjson.dumps(result).decode(), file=Steady(sys.stdout))
    else:
        Console(sys.stdout).print(compare_table(all_plain(result)))
    for outcome in outcomes:
        _warn(outcome, result)
    return Exit.GATE_FAILED if any(each["outcome"] == "failed" for each in outcomes) else Exit.OK


def _refuse(a: Side, b: Side, allowed: set[str]) -> None:
    """Raise ConfigError for the same run on both sides, and for sides that differ in what they must share."""
    of_b = {run.run_id: run.name for run in b.runs}
    both = sorted((run.name, of_b[run.run_id]) for run in a.runs if run.run_id in of_b)
    if both:
        told = [f"{one} is on both sides" if one == other else f"{one} and {other} are one run" for one, other in both]
        raise ConfigError("; ".join(told), hint="a run belongs to one side, and a copy of it is the same run")
    found = {word: fields for word, fields in unlike(a.runs[0], b.runs[0]).items() if word not in allowed}
    problems = [
        f"{word}: {name} is {left} in A ({a.runs[0].name}) and {right} in B ({b.runs[0].name})"
        for word, fields in found.items()
        for name, (left, right) in fields.items()
    ]
    if not problems and "different-batch" in unlike(a.runs[0], b.runs[0]):
        path = "throughput.samples_per_second"
        lacking = [run for run in (*a.runs, *b.runs) if run.at(path) is None]
        if lacking:
            told = [f"{run.name}: samples per second are not known: {run.why_not(path)}" for run in lacking]
            raise ConfigError(
                told, hint="of different batches only rates can be compared: count samples, or give one batch"
            )
    if problems:
        raise ConfigError(problems, hint=f"--allow {','.join(found)} compares them all the same")


def _stored_here(a: Side, b: Side) -> Stored | None:
    """The spread of like runs in this machine's own calibration, where the runs were made on a machine like it."""
    from ...profiles.analysis.comparison import Stored
    from .. import calibrations

    facts = a.runs[0].facts
    found = calibrations.fitting(facts["config"]["device"], facts["device_name"], facts["world_size"])
    if found is None or found.run_spread is None or not all(_fits(found, run) for run in (*a.runs, *b.runs)):
        return None
    return Stored.of(found.run_spread, f"{found.label}, of this machine")


def _fits(calibration: Calibration, run: ComparedRun) -> bool:
    return calibration.fits(
        device=run.facts["config"]["device"],
        device_name=run.facts["device_name"],
        cores=run.environment.get("cores") or 0,
    )


def _warn(outcome: dict[str, Any], result: dict[str, Any]) -> None:
    """What a gate came to, on stderr."""
    gate = f"--fail-if {outcome['gate']}:{outcome['threshold'] * 100:g}%"
    effect = f"{outcome['effect'] * 100:+.1f} %"
    if outcome["outcome"] == "failed":
        text = f"gate failed: {gate}: B is {outcome['verdict']}, by {effect}"
    elif outcome["outcome"] == "cannot tell":
        needed = result["repeats"]["needed"]
        more = f"make {needed} runs a side" if needed else result["reasons"]["repeats.needed"]
        text = f"warning: {gate} passes because it cannot be told ({effect}); {more}"
    else:
        text = f"{gate}: passed ({outcome['verdict']}, {effect})"
    print(plain(text), file=Steady(sys.stderr), flush=True)
