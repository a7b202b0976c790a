"""`--verify`: the change that a diagnosis proposes, made for real: runs as they are and runs with it, in turn, in a
sweep's folder of two cells. What was left undone is taken up by the same call, and more rounds go on from there."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..profiles.analysis.diagnosis.bought import bought
from ..profiles.sweepfolder import SweepPlan
from ..reports.steady import Steady
from ..reports.sweep_live import SweepLive
from .config import RunConfig, build
from .devices import Devices
from .errors import ConfigError, Exit
from .plan import resolve
from .sides import find_side
from .supervision.interrupts import Interrupts
from .sweep.child import Ended, Make, make_run
from .sweep.matrix import Planned, decided_by, planned
from .sweep.opening import opened
from .sweep.order import interleaved
from .sweep.runner import Outcome, run_sweep
from .text import HIDDEN, plain

Facts = Mapping[str, Any]
AS_IS, CHANGED = "as-is", "changed"
MOST_STEPS = 100
# Said even where a run would choose the same by itself, so that it does not choose otherwise.
_ALWAYS = {"model", "data", "gpus", "micro_batch", "steps"}
# Of a run's options: where it goes, what decides the global batch with others, what is measured beside its steps.
_NOT_TAKEN = ("out", "name", "global_batch", "counterfactual", "profile_steps")


@dataclass(frozen=True)
class Change:
    """What is to be tried: `options` of `scalelab run` by field name. They remove the cause `label`, which was said to
    cost `share` of the step, within `ci95`; None where it is no matter of time, or its interval is not known."""

    label: str
    options: Mapping[str, Any]
    share: float | None
    ci95: tuple[float, float] | None
    step_seconds: float | None = None


def change_of(diagnosis: Facts) -> Change:
    """The change that a diagnosis proposes for its largest cause that an option removes. Raises ConfigError where there
    is none."""
    counting = [row for row in diagnosis["findings"] if row["counts"]]
    if not counting:
        raise ConfigError("there is nothing to verify: no cause was found whose removal would pay")
    row = next((row for row in counting if row["next"]["options"]), None)
    if row is None:
        says = "; ".join(f"{each['label']}: {each['next']['says']}" for each in counting)
        raise ConfigError(
            f"no option makes the change that is proposed ({says})",
            hint="make it in your code, run both a few times in turn, and hold them against each other: scalelab "
            "compare",
        )
    step, ci95 = diagnosis["verdict"]["step_seconds"], row["ci95"]
    return Change(
        label=row["label"],
        options=row["next"]["options"],
        share=row["severity_share"],
        ci95=None if ci95 is None else (ci95[0] / step, ci95[1] / step),
        step_seconds=step,
    )


def sides(facts: Facts, change: Change, steps: int | None, devices: Devices) -> list[Planned]:
    """The run whose run.json is `facts`, as it is and with `change`, as cells of a sweep. Raises ConfigError for a run
    that cannot be started from here, and what refuses a side."""
    config = facts["config"]
    if config.get("engine") == "own" or facts.get("source") == "imported":
        raise ConfigError(
            "scalelab did not start this run, and cannot start it again",
            hint=f"make the change in its loop ({words(change.options)}), run both a few times in turn, and hold them "
            "against each other: scalelab compare",
        )
    if config.get("nodes", 1) > 1:
        raise ConfigError(
            f"this run had ranks on {config['nodes']} hosts, which cannot be started from here",
            hint=f"run it as it is and with {words(change.options)} by the same command on each host, a few times in "
            "turn, and hold both against each other: scalelab compare",
        )
    if hidden := [name for name, value in (config.get("model_option") or {}).items() if HIDDEN in str(value)]:
        raise ConfigError(
            f"the run's folder does not have the value of --model-option {', '.join(hidden)}, which is kept in no file",
            hint=f"run it as it is and with {words(change.options)} by hand, a few times in turn, and hold both "
            "against each other: scalelab compare",
        )
    given = _given(config, facts["world_size"], devices)
    # Each side has what comes every N steps at least twice.
    rarest = max((each.get(name) or 0) for each in (config, change.options) for name in ("save_every", "eval_every"))
    given["steps"] = steps or max(min(config.get("steps") or MOST_STEPS, MOST_STEPS), 2 * rarest)
    found = []
    for name, more in ((AS_IS, {}), (CHANGED, change.options)):
        build({**given, **more})  # refuses what contradicts itself before anything is started
        found.append(planned(name, {**given, **more}, devices, gated=False))
        if (error := found[-1].error) is not None:
            raise error
    if found[0].cell.config == found[1].cell.config:
        raise ConfigError(f"{words(change.options)} makes no difference to this run")
    return found


def _given(config: Facts, world_size: int, devices: Devices) -> dict[str, Any]:
    """What to hand to `scalelab run` for a run of the resolved `config`: what it would not choose by itself."""
    known = RunConfig.model_fields
    asked = {name: config[name] for name in known if name in config and name not in _NOT_TAKEN}
    asked = {name: value for name, value in asked.items() if value is not None and value != known[name].default}
    asked |= {"gpus": world_size, "memory_step": "off"}
    left_open = {name for name in asked if known[name].default is None} - _ALWAYS
    given = {name: value for name, value in asked.items() if name not in left_open}
    chosen = resolve(build(given), devices).config
    return {**given, **{name: asked[name] for name in left_open if getattr(chosen, name) != asked[name]}}


@dataclass(frozen=True)
class Verified:
    """How the runs of both sides came out, in which sweep's folder, and what the change bought; None where runs failed
    or a signal came."""

    outcome: Outcome
    folder: Path
    bought: dict[str, Any] | None


def verify(
    facts: Facts,
    change: Change,
    *,
    out: Path,
    rounds: int,
    steps: int | None,
    devices: Devices,
    stream: TextIO,
    make: Make = make_run,
    around: str = "",
    around_seconds: float | None = None,
) -> Verified:
    """Make what is missing of `rounds` rounds in `out`, and hold both sides against each other. Progress goes to
    `stream`; `make` makes a run, with that `around` it which its options do not say: runs with other surroundings are
    other runs. `around_seconds` a run is said to take besides its steps."""
    cells = sides(facts, change, steps, devices)

    def say(text: str) -> None:
        print(plain(text), file=Steady(stream), flush=True)

    seed = cells[0].cell.config["seed"]

    def make_seeded(given: Mapping[str, Any], *, name: str, **rest: Any) -> Ended:
        """Each round has a seed of its own, the same on both sides: of one seed losses say nothing of others."""
        number = int(name.rpartition("-r")[2])
        return make({**given, "seed": (seed + number - 1) % 2**32}, name=name, **rest)

    with opened(out, _plan(cells, rounds, devices, around), say, latest=False) as (folder, plan):
        steps_each = cells[0].cell.config["warmup"] + cells[0].cell.config["steps"]
        say(
            f"verifying {words(change.options)}, the change for {change.label}, in {folder.path}: {rounds} rounds of "
            f"both sides, in turn, of {steps_each:,} steps each"
            f"{_about(change.step_seconds, steps_each, 2 * rounds, around_seconds)}"
        )
        with Interrupts() as interrupts, _Live(stream, folder, plan, plain) as display:
            given = {each.cell.name: each.given for each in cells}
            outcome = run_sweep(folder, plan, given, display, interrupts, repeats=rounds, make=make_seeded)
        if outcome.exit_code != Exit.OK:
            return Verified(outcome, folder.path, None)
        before, after = (find_side(letter, f"{folder.path}:{name}") for letter, name in (("A", AS_IS), ("B", CHANGED)))
        return Verified(
            outcome, folder.path, bought(before, after, change.label, change.options, change.share, change.ci95)
        )


def around_seconds(summary: Facts) -> float | None:
    """What a run took besides its steps: its start, and its end where that has no steps of its own."""
    whole = (summary.get("cost") or {}).get("whole_run")
    if whole is None:
        return None
    parts = {each["part"]: each["seconds"] for each in whole["parts"]}
    steps_after = summary.get("counterfactual") or summary.get("trace")
    return parts["start_up"] + (0.0 if steps_after else parts["after_training"])


def _about(step_seconds: float | None, steps: int, runs: int, around: float | None) -> str:
    if step_seconds is None:
        return ""
    minutes = (step_seconds * steps + (around or 0.0)) * runs / 60
    rest = "and each run's start" if around is None else f"{around * runs / 60:.1f} of it the runs' starts and ends"
    return f": about {minutes:.1f} min, {rest}"


class _Live(SweepLive):
    def words(self, cell: str, repeat: int) -> str:
        return f"{'as it is' if cell == AS_IS else 'with the change'}, round {repeat}"


def _plan(cells: list[Planned], rounds: int, devices: Devices, around: str) -> SweepPlan:
    return SweepPlan(
        sweep_id=f"verify-{decided_by(cells, devices, around=around, seeds='by round')}",
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=["scalelab", "diagnose", "--verify"],
        scaling="strong",
        repeats=rounds,
        seed=0,
        cells=[each.cell for each in cells],
        order=interleaved([AS_IS, CHANGED], rounds, 0),
    )


def words(options: Mapping[str, Any]) -> str:
    """Options by field name, as they are typed."""
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
