"""A comparison of two sides as plain data: effects with their intervals, verdicts, and where the time went.

B is held against A: an effect is B / A - 1. How intervals come about: between.py; what may be said of them: verdict.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..calibration import RunSpread
from .alike import differences, unlike
from .between import Difference, Spread, stored_spread
from .causes import causes
from .compared import ComparedRun, Side
from .effects import MEASURES, Against, effect_of, exposed_share
from .loss_parity import same_losses
from .reasons import Null
from .verdict import CONFIDENCE, MARGIN, MOST_REPEATS, POWER, repeats_needed

SCHEMA = 1
NO_SPREAD = "this machine's spread between runs is not known (scalelab doctor --calibrate measures it)"


@dataclass(frozen=True)
class Stored:
    """How much like runs differed on a machine: runs of `steps` measured steps, made for that. `source` in words."""

    spread: Spread
    steps: int
    source: str

    @classmethod
    def of(cls, runs: RunSpread, source: str) -> Stored | None:
        """None where there were fewer than two runs."""
        spread = stored_spread(runs.samples_per_second)
        said = f"{len(runs.samples_per_second)} runs of {runs.model} under {runs.strategy}, {source}"
        return None if spread is None else cls(spread, runs.steps, said)


def compare(a: Side, b: Side, *, stored: Stored | None = None, margin: float = MARGIN) -> dict[str, Any]:
    """The comparison as plain JSON. `stored`, of the machine of both, is for one run a side. What differs between the
    sides is told, whatever it is: `alike.unlike` says what should not be compared. Every null has an entry in
    `reasons` under its dotted path.
    """
    reasons: dict[str, str] = {}

    def null(path: str, why: str) -> None:
        reasons[path] = why

    apart = unlike(a.runs[0], b.runs[0])
    why_no_spread = NO_SPREAD
    fewest = min(run.summary["steps"]["measured"] for side in (a, b) for run in side.runs)
    if stored is not None and fewest < stored.steps:
        why_no_spread = (
            f"runs of {fewest} steps may differ by more than those of {stored.steps} steps whose spread is stored"
        )
        stored = None
    against = Against(a, b, None if stored is None else stored.spread, margin, why_no_spread)
    runs = (*a.runs, *b.runs)
    batches_unknown = any(run.facts["config"].get("global_batch") is None for run in runs)
    rates_known = all(run.at("throughput.samples_per_second") is not None for run in runs)
    per = "sample" if "different-batch" in apart or (batches_unknown and rates_known) else "step"
    effects = {measure.name: effect_of(measure, against, null) for measure in MEASURES}
    prices = {run.at("cost.usd_per_gpu_hour") for run in runs}
    notes = []
    if len(prices) > 1 and "different-device" not in apart:
        notes.append("the sides have one kind of device at different prices: money is not compared, hours are")
        effects["usd_per_million_samples"] = None
        reasons.setdefault("effects.usd_per_million_samples", notes[-1])
    if batches_unknown and not rates_known:
        notes.append("samples a step are not known of both sides: a step of one may do more than one of the other's")
    if effects["usd_per_million_samples"] is None:
        # Said once, by the hours: a side without a price costs no money that is known.
        reasons.pop("effects.usd_per_million_samples")
        effects.pop("usd_per_million_samples")
    effects["comm_exposed_share"] = exposed_share(against, null)
    lead = "samples_per_second" if per == "sample" else "step_seconds"
    difference_ = against.of("throughput.samples_per_second" if per == "sample" else "step_seconds.mean")
    return {
        "schema": SCHEMA,
        "verdict": _verdict(effects[lead], lead),
        "per": per,
        "a": _side(a),
        "b": _side(b),
        "confidence": CONFIDENCE,
        "margin": margin,
        "unlike": {word: {name: list(pair) for name, pair in fields.items()} for word, fields in apart.items()},
        "differences": {name: list(pair) for name, pair in differences(a.runs[0], b.runs[0]).items()},
        "effects": effects,
        "loss": same_losses(a.runs[0], b.runs[0], null),
        "causes": causes(a.runs, b.runs, per, against.raw, null),
        "repeats": _repeats(difference_, against, stored, null),
        "notes": [*notes, *_notes(a, b, effects, per)],
        "reasons": dict(sorted(reasons.items())),
    }


def _verdict(effect: Mapping[str, Any] | None, of: str) -> dict[str, Any]:
    """The answer in one word, with the effect on time: the longer B takes, the larger."""
    assert effect is not None, "a run without a step is not compared, nor a batch that is not known per sample"
    low, high = effect["ci95"] or (None, None)
    if of == "step_seconds":
        time = effect["effect"], None if low is None else [low, high]
    else:
        # A rate's effect as one on time: 1 / (1 + e) - 1.
        time = _inverse(effect["effect"]), None if low is None or high is None else [_inverse(high), _inverse(low)]
    return {"word": effect["verdict"], "effect": time[0], "ci95": time[1], "of": of, "method": effect["method"]}


def _inverse(effect: float) -> float:
    return 1 / (1 + effect) - 1


def _repeats(held: Difference | None, against: Against, stored: Stored | None, null: Null) -> dict[str, Any]:
    """How many runs a side has, and how many it takes to find an effect of `margin`."""
    assert held is not None
    spread = held.spread
    needed = None if spread is None else repeats_needed(spread, against.margin)
    if spread is None:
        null("repeats.needed", against.why_no_spread)
        null("repeats.sd_between_runs", against.why_no_spread)
    elif needed is None:
        null("repeats.needed", f"more than {MOST_REPEATS} runs a side: these runs differ too much among themselves")
    return {
        "a": held.runs[0],
        "b": held.runs[1],
        "needed": needed,
        "for_effect": against.margin,
        "power": POWER,
        "sd_between_runs": None if spread is None else spread.sd,
        "degrees": None if spread is None else spread.degrees,
        "source": stored.source if stored and spread and spread.how == "stored" else None,
    }


def _side(side: Side) -> dict[str, Any]:
    runs = [
        {"run_id": run.name, "folder": str(run.path), "step_seconds": run.at("step_seconds.mean"), "round": run.round}
        for run in side.runs
    ]
    first = side.runs[0].summary
    named = ("name", "strategy", "precision", "world_size", "device_name", "global_batch", "oversubscribed")
    return {
        "spec": side.spec,
        "cell": side.cell,
        **{name: first[name] for name in named},
        "model": first["model"]["name"],
        "parameters": first["model"]["parameters"],
        "measured_steps": first["steps"]["measured"],
        "runs": runs,
        "left_out": dict(side.left_out),
    }


def _notes(a: Side, b: Side, effects: Mapping[str, Any], per: str) -> list[str]:
    """What a reader must know to take the verdict for what it is."""
    notes = []
    worlds = a.runs[0].facts["world_size"], b.runs[0].facts["world_size"]
    if worlds[0] != worlds[1]:
        notes.append(
            f"{worlds[0]} ranks against {worlds[1]}: a shorter step may still cost more; what a sample costs is in the "
            "device-hours"
        )
    if per == "sample":
        notes.append("batches differ: times are per sample, and the two do not train the same thing")
    if any(run.facts["oversubscribed"] for side in (a, b) for run in side.runs):
        notes.append("oversubscribed: ranks shared cores, which says little of any other machine")
    devices = {run.facts["config"]["device"] for side in (a, b) for run in side.runs}
    if devices == {"cpu"} and a.runs[0].summary["strategy"] != b.runs[0].summary["strategy"]:
        notes.append("rankings of sharded strategies on CPU do not carry over to GPUs")
    if "imported" in {run.summary["source"] for side in (a, b) for run in side.runs}:
        notes.append("imported: steps under a profiler, which makes them longer")
    for run in (*a.runs, *b.runs):
        asked, found = run.facts["config"].get("steps"), run.summary["steps"]["measured"]
        if isinstance(asked, int) and found < asked:
            notes.append(
                f"{run.name}: its records hold {found} of {asked} measured steps, although it finished: some were lost"
            )
    for letter, side in (("A", a), ("B", b)):
        states = {tuple(sorted((run.environment.get("git") or {}).items())) for run in side.runs}
        if len(states) > 1:
            notes.append(f"{letter}: its runs are of different states of scalelab's code")
    if min(len(a.runs), len(b.runs)) > 1 and apart_in_time(a.runs, b.runs):
        notes.append(
            "one side was made before the other: what changed on the machine in between looks like an effect; "
            "interleaved repeats (scalelab sweep) rule that out"
        )
    return notes


def apart_in_time(a: Sequence[ComparedRun], b: Sequence[ComparedRun]) -> bool:
    """Whether all runs of one side began before all of the other, as far as their folders' names tell when."""
    began = [[run.name[:16] for run in side] for side in (a, b)]
    if not all(re.fullmatch(r"\d{8}T\d{6}Z", each) for side in began for each in side):
        return False
    return max(began[0]) < min(began[1]) or max(began[1]) < min(began[0])


def stored_for(a: Side, b: Side) -> Stored | None:
    """The larger of the spreads that the runs' own calibrations hold of their machine."""
    found = [Stored.of(*run.spread) for side in (a, b) for run in side.runs if run.spread]
    return max((each for each in found if each), key=lambda each: each.spread.sd, default=None)
