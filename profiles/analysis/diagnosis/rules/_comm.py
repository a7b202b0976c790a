"""What communication costs a step, and which part of that is the number of messages: shared by two rules."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ....calibration import collective_seconds
from ...collectives import began_ns
from ...communication import of_as_many
from ...load import Run
from ..facts import Facts
from ..finding import COMMUNICATION, CannotTell, Headroom
from ..tailed import noisy, tail, too_noisy


@dataclass(frozen=True, kw_only=True)
class Cost:
    """`latency_share` of the headroom would be saved if the same bytes went in as few calls as can be, which nothing
    computes beside; `how` says from what that is known."""

    headroom: Headroom
    removed: dict[str, np.ndarray]
    latency_share: float
    calls: float
    bytes_per_step: float
    how: str


def cost(facts: Facts, label: str) -> Cost | CannotTell:
    """The cost of the wire: what ranks are blocked without what they wait for late ones."""
    comm, known = facts.summary["comm"], facts.known
    calls = comm["calls_per_step"] or 0.0
    payload = float(sum((comm["payload_bytes_per_step"] or {}).values()))
    times, how = _times(facts, calls)
    if known.split is not None:
        blocked = known.split.transfer + known.split.queued
        removed = {COMMUNICATION: blocked}
        headroom = facts.headroom(removed)
        free = tail(facts, "free_wire")
        if free is not None and noisy(facts, free):
            headroom = replace(headroom, method=f"{headroom.method}; {too_noisy(facts, free)}")
        elif free is not None and free.ci95 is not None:
            waiting = float(known.split.waiting.mean())
            low, high = free.ci95
            headroom = replace(
                free,
                seconds=free.seconds - waiting,
                ci95=(low - waiting, high - waiting),
                method=f"{free.method}, on a wire that takes no time, less what ranks wait for late ones",
            )
        share = _saved_share(headroom, *times)
        return Cost(
            headroom=headroom, removed=removed, latency_share=share, calls=calls, bytes_per_step=payload, how=how
        )
    tried, trace = tail(facts, "free_wire"), facts.trace_mean
    free = None if tried is None or noisy(facts, tried) else tried
    if free is None and trace is not None:
        seconds, spread = min(trace["exposed_communication_seconds"], facts.step_seconds), trace["spread"]
        free = Headroom(
            seconds=seconds,
            ci95=None if spread is None else (seconds * (1 - spread), seconds * (1 + spread)),
            method="communication that nothing computes beside, in the trace",
        )
    if free is None:
        return CannotTell(
            label=label,
            lacks=f"what communication costs the step: {known.why_unknown or known.why_not_split}"
            + ("" if tried is None else f"; {too_noisy(facts, tried)}"),
            rerun=facts.again("profile_steps", 5) + ("" if tried else ", or with --counterfactual"),
        )
    free = replace(free, method=f"{free.method}; what ranks wait for late ones is in it, as it cannot be told apart")
    removed = {COMMUNICATION: np.full_like(facts.own_total, free.seconds)}
    share = _saved_share(free, *times)
    return Cost(headroom=free, removed=removed, latency_share=share, calls=calls, bytes_per_step=payload, how=how)


def _saved_share(whole: Headroom, now_seconds: float, merged_seconds: float) -> float:
    """Of what communication costs, the part that merging it into few calls would save: at most the part of what calls
    take, as a slow wire is slow for few of them too, and not what the merged ones take, as nothing computes beside
    them."""
    if min(whole.seconds, now_seconds) <= 0:
        return 0.0
    return max(0.0, 1 - merged_seconds / min(whole.seconds, now_seconds))


def _times(facts: Facts, calls: float) -> tuple[tuple[float, float], str]:
    """What a step's collectives take one after the other, as they are and merged into one call of each kind; and from
    what that is known."""
    if not calls:
        return (0.0, 0.0), "nothing is sent"
    plan = facts.known.plans[0][0] if facts.known.plans else []
    sizes = [(each.kind, each.payload_bytes) for each in plan if each.kind != "barrier"]
    merged: dict[str, int] = {}
    for kind, size in sizes:
        merged[kind] = merged.get(kind, 0) + size
    fitted = fit(facts.run, facts)
    if fitted is not None:
        per_call, per_byte = fitted
        carried = per_byte * sum(merged.values())
        times = per_call * len(sizes) + carried, per_call * len(merged) + carried
        return times, "the times of this run's own collectives by their size"
    calibration = of_as_many(facts.run)
    if calibration is not None:
        now = [collective_seconds(calibration, kind, size) for kind, size in sizes]
        then = [collective_seconds(calibration, kind, size) for kind, size in merged.items()]
        if None not in now and None not in then:
            times = sum(each or 0.0 for each in now), sum(each or 0.0 for each in then)
            return times, f"the calibration {calibration.name}"
    blocked = facts.summary["comm"]["exposed_seconds"]
    if blocked is None or facts.device != "cpu" or (facts.config.get("nodes") or 1) > 1:
        return (0.0, 0.0), "nothing: what a call takes here is not known"
    saved = facts.limits.gloo_call_seconds * (len(sizes) - len(merged))
    return (blocked, max(0.0, blocked - saved)), "what a call over gloo takes that carries nothing"


def fit(run: Run, facts: Facts) -> tuple[float, float] | None:
    """Seconds per call and per byte of the collectives whose ends were stamped, by least squares of their medians, both
    at least 0; None where their sizes do not tell the two apart."""
    if len(run.ranks) < 2 or facts.known.split is None:
        return None
    comms = [rank.steps.comm.take(places) for rank, places in zip(run.ranks, run.places, strict=True)]
    exact = np.logical_and.reduce([comm.exact for comm in comms])
    times: dict[int, list[float]] = {}
    for rank, comm in zip(run.ranks, comms, strict=True):
        for number in np.unique(comm.plan[exact]).tolist():
            plan, steps = rank.comm_plans[number], np.flatnonzero(exact & (comm.plan == number))
            places = comm.first[steps][:, None] + np.arange(len(plan))
            handed_in, ended = comm.handed_in[places][None], comm.ended[places][None]
            seen = ~np.isnan(ended[0]).any(axis=1)
            took = ((ended - began_ns(handed_in, ended, plan)) * 1e-9)[0, seen]
            for collective, seconds in zip(plan, took.T, strict=True):
                if collective.kind != "barrier":
                    times.setdefault(collective.payload_bytes, []).extend(seconds[seconds > 0].tolist())
    times = {size: seconds for size, seconds in times.items() if seconds}
    sizes = np.array(sorted(times), dtype=np.float64)
    if len(sizes) < 3 or sizes[-1] < 4 * sizes[0]:
        return None
    medians = np.array([np.median(times[int(size)]) for size in sizes])
    weights = np.array([len(times[int(size)]) for size in sizes], dtype=np.float64)
    scale = np.sqrt(weights) / medians
    design = np.stack([np.ones_like(sizes), sizes], axis=1) * scale[:, None]
    solution = np.linalg.lstsq(design, medians * scale, rcond=None)[0]
    per_call, per_byte = (max(0.0, float(each)) for each in solution)
    return (per_call, per_byte) if per_call + per_byte > 0 else None
