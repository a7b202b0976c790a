"""Now and then everything stops: checkpoints, evaluations, the garbage collector, something every N steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..facts import Facts, milliseconds
from ..finding import BETWEEN, Answer, Evidence, Finding, Headroom, Remedy
from ._contract import Rule


def find(facts: Facts) -> Answer:
    removed: dict[str, np.ndarray] = {}
    parts: list[Headroom] = []
    evidence: list[Evidence] = []
    says, options = [], {}
    if facts.between_seconds.any():
        ranks = len(facts.run.ranks)
        removed[BETWEEN] = np.tile(facts.between_seconds, (ranks, 1))
        parts.append(facts.of_known_count(facts.between_seconds[facts.between_seconds > 0]))
        for kind, (count, seconds) in _events(facts).items():
            per_step = seconds / len(facts.run.complete_steps)
            evidence.append(
                Evidence(
                    says=f"{count} x {kind} within the measured steps, {milliseconds(seconds / count)} each: "
                    f"{milliseconds(per_step)} a step",
                    values={"event": kind, "count": count, "seconds": seconds, "seconds_per_step": per_step},
                )
            )
        options = _less_often(facts)
        rare = facts.limits.least_share / 5
        says += [_rarer(facts, name, value, rare) for name, value in options.items()]
        if facts.own_loop:
            says.append("evaluate and save less often; persistent_workers=True keeps loader processes between epochs")
    gc = facts.garbage
    if gc is not None and facts.share(float(gc.mean())) >= facts.limits.shown_share:
        paused = facts.spread(gc)
        removed |= paused
        parts.append(facts.headroom(paused))
        seconds = float(gc.mean())
        evidence.append(
            Evidence(
                says=f"Python's garbage collector takes {milliseconds(seconds)} a step, "
                f"{float((gc > 0).mean()):.0%} of the steps have a pause",
                values={"gc_seconds": seconds, "share_of_steps": float((gc > 0).mean())},
            )
        )
        says.append("make fewer objects in cycles, call gc.freeze() after start-up, or collect every N steps")
    if (stalls := _regular(facts, gc)) is not None:
        places, every, excess = stalls
        stalled = facts.spread(excess)
        removed |= {name: removed.get(name, 0.0) + seconds for name, seconds in stalled.items()}
        parts.append(facts.of_known_count(facts.saved(stalled)[places]))
        steps = [facts.run.complete_steps[place] for place in places]
        evidence.append(
            Evidence(
                says=f"{len(places)} steps take more than twice the median, about every {every:.0f} steps (step "
                f"{', '.join(map(str, steps[:4]))}{', …' if len(steps) > 4 else ''})",
                values={"steps": steps, "every": every},
            )
        )
        says.append(f"find what the code does every {every:.0f} steps: logging, saving, a sync, a scheduler")
    if not removed:
        return None
    return Finding(
        label="periodic_stall",
        evidence=tuple(evidence),
        remedy=Remedy(says="; ".join(says) or "do it less often", options=options),
        headroom=_sum(parts),
        removed=removed,
    )


def _rarer(facts: Facts, name: str, value: int, share: float) -> str:
    """An option with the reason for its value; which may be more than this run's steps."""
    what = "checkpoints" if name == "save_every" else "evaluations"
    steps = facts.config.get("steps")
    more = f" (a longer run's: this one has {steps} steps)" if steps and value > steps else ""
    return f"--{name.replace('_', '-')} {value}{more}: as rare as that, {what} take at most {share:.0%} of the time"


def _sum(parts: list[Headroom]) -> Headroom:
    ends = [each.ci95 for each in parts if each.ci95 is not None]
    return Headroom(
        seconds=sum(each.seconds for each in parts),
        ci95=(sum(low for low, _ in ends), sum(high for _, high in ends)) if len(ends) == len(parts) else None,
        method=parts[0].method,
    )


def _events(facts: Facts) -> dict[str, tuple[int, float]]:
    """Events behind measured steps by kind: how many, and seconds in all, mean over ranks."""
    found: dict[str, tuple[int, float]] = {}
    for kind in ("checkpoint", "evaluation", "flush", "between_epochs"):
        alike = [event for event in facts.between if event.event == kind]
        if alike:
            found[kind] = (len({e.step for e in alike}), sum(e.seconds for e in alike) / len(facts.run.ranks))
    return dict(sorted(found.items(), key=lambda row: -row[1][1]))


def _less_often(facts: Facts) -> dict[str, Any]:
    """Options that make what costs most rarer: to a fifth of the threshold."""
    found: dict[str, Any] = {}
    for kind, name in (("checkpoint", "save_every"), ("evaluation", "eval_every")):
        every = facts.config.get(name)
        count, seconds = _events(facts).get(kind, (0, 0.0))
        if every and count:
            per_event = seconds / count
            step = float(facts.run.step_seconds.mean())
            found[name] = max(2 * every, int(np.ceil(per_event / (step * facts.limits.least_share / 5))))
    return found


def _regular(facts: Facts, gc: np.ndarray | None) -> tuple[list[int], float, np.ndarray] | None:
    """Stalled steps, their period, and their excess over the median; None where none come at an even pace. The
    collector's pauses, which are told apart, are none of it."""
    limits = facts.limits
    own = facts.own_total if gc is None else facts.own_total - gc
    slowest = own.max(axis=0)
    median = float(np.median(slowest))
    places = np.flatnonzero(slowest > limits.periodic_factor * median)
    if len(places) < limits.periodic_least:
        return None
    gaps = np.diff(places)
    if gaps.mean() < 2 or gaps.std() / gaps.mean() > limits.periodic_regular:
        return None
    excess = np.zeros_like(own)
    excess[:, places] = np.maximum(0.0, own[:, places] - median)
    return places.tolist(), float(gaps.mean()), excess


rule = Rule(
    label="periodic_stall",
    devices=("cpu", "cuda"),
    find=find,
    before=("input_bound", "optimizer_bound", "straggler_rank"),
)
