"""So little to compute in each operator that calling it takes longer: tiny kernels, a tiny batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Headroom, Remedy, Removed
from ..traced import untraced
from ._contract import Rule, larger_batch

PHASES = ("forward", "backward", "optimizer")
WHOLE = 0.9
"""Of a phase: from here on it is said to be counted nearly whole."""


def find(facts: Facts) -> Answer:
    return _on_device(facts) if facts.device == "cuda" else _on_host(facts)


def _on_host(facts: Facts) -> Answer:
    """On CPU a call takes its time of the step itself: calls, by what one costs that computes next to nothing."""
    if (counted := facts.operators) is None:
        return CannotTell(
            label="launch_bound",
            lacks="how many operators a step calls",
            rerun=f"{facts.again('memory_step', 'on')}, which counts them",
            matters=False,
        )
    calls, measured = counted
    found = [name for name in PHASES if calls.get(name)]
    if not found:
        return None
    off = _off(facts, {name: calls[name] * measured[name] for name in found})
    each = {name: measured[name] / off[name] for name in found}
    removed = {name: np.minimum(facts.own[name], calls[name] * each[name]) for name in found}
    # What the run has room for: per phase, after the cut.
    taken = {name: float(removed[name].mean()) for name in found}
    by_phase = ", ".join(
        f"{name} {calls[name]:,} of {taken[name] / calls[name] * 1e6:.1f} us"
        + (" (nearly all of its time)" if taken[name] >= WHOLE * facts.own[name].mean() else "")
        for name in found
    )
    evidence = [
        Evidence(
            says=f"a step calls {sum(calls[name] for name in found):,} operators ({by_phase}), which take that "
            f"long however little they compute",
            values={
                "operators": dict(calls),
                "operator_seconds": dict(measured),
                "counted_operator_seconds": {name: taken[name] / calls[name] for name in found},
            },
        ),
        *_disturbed(off),
        *_efficiency(facts),
    ]
    return Finding(
        label="launch_bound",
        evidence=tuple(evidence),
        remedy=_remedy(facts),
        headroom=_headroom(facts, removed, off),
        removed=removed,
    )


def _off(facts: Facts, uncut: Mapping[str, float]) -> dict[str, float]:
    """By phase, how many times too long operators were measured to take, at least; 1 where that is not known. All
    phases are measured in turn, so what disturbed the model's calls did so in each; the optimizer's excess is its own,
    whose time is too short to tell of the rest."""
    over = {name: seconds / max(float(facts.own[name].mean()), 1e-12) for name, seconds in uncut.items()}
    models = max([1.0, *(each for name, each in over.items() if name != "optimizer")])
    all_of_it = {name: max(models, each) if name == "optimizer" else models for name, each in over.items()}
    return {name: each if each > facts.limits.operators_beyond else 1.0 for name, each in all_of_it.items()}


def _headroom(facts: Facts, removed: Removed, off: Mapping[str, float]) -> Headroom:
    """With a lower end for what was measured too long: by how much is known only at least, so that there an operator
    may cost less by as much again."""
    headroom = facts.headroom(removed)
    if headroom.ci95 is None or max(off.values()) == 1.0:
        return headroom
    less = facts.headroom({name: seconds / off[name] for name, seconds in removed.items()})
    low = min(headroom.ci95[0], less.seconds if less.ci95 is None else less.ci95[0])
    return replace(headroom, ci95=(low, headroom.ci95[1]))


def _disturbed(off: Mapping[str, float]) -> list[Evidence]:
    """That the measured cost of an operator and the run disagree."""
    wrong = {name: each for name, each in off.items() if each > 1.0}
    if not wrong:
        return []
    parts = " and ".join(
        f"{each:.1f} in {', '.join(name for name in wrong if wrong[name] == each)}"
        for each in sorted(set(wrong.values()), reverse=True)
    )
    return [
        Evidence(
            says="small operators by themselves were measured to take longer than the run has time for, as on a host "
            f"that was busy just then: what they took is divided by {parts}, and may be less by as much again",
            values={"measured_too_long": wrong},
        )
    ]


def _on_device(facts: Facts) -> Answer:
    """On CUDA the device idles while the host has not launched what comes next."""
    trace = facts.trace_mean
    if trace is None:
        return CannotTell(
            label="launch_bound",
            lacks="why the device was idle, which only a profiler's trace tells",
            rerun=facts.again("profile_steps", 5),
        )
    idle = trace["not_launched_seconds"] + trace["launching_seconds"] - trace["loading_seconds"]
    idle = max(0.0, idle - trace["after_sync_seconds"])
    headroom = untraced(idle, trace, facts.step_seconds, "idle device")
    delay = trace["launch_delay_seconds"]
    evidence = [
        Evidence(
            says=f"the device idles {milliseconds(idle)} a step for work that the host has not launched",
            values={"idle_seconds": idle},
        ),
        *_efficiency(facts),
    ]
    if delay is not None:
        evidence.append(
            Evidence(
                says=f"a kernel begins {delay * 1e6:.0f} us after its launch: nothing was queued before it",
                values={"launch_delay_seconds": delay},
            )
        )
    return Finding(
        label="launch_bound",
        evidence=tuple(evidence),
        remedy=_remedy(facts),
        headroom=headroom,
        removed=facts.spread(np.full_like(facts.own_total, headroom.seconds)),
    )


def _efficiency(facts: Facts) -> list[Evidence]:
    """MFU, and beside it how busy NVML calls the card: a kernel of any size counts as busy there."""
    utilization = facts.summary["utilization"]
    mfu, busy = utilization["mfu"], utilization.get("gpu_percent")
    if mfu is None:
        return []
    beside = "" if busy is None else f", while NVML calls the card {busy:.0f} % busy"
    return [Evidence(says=f"MFU is {mfu:.1%}{beside}", values={"mfu": mfu, "gpu_percent": busy})]


def _remedy(facts: Facts) -> Remedy:
    if facts.own_loop:
        return Remedy(
            says="a larger batch computes more per call (scale the learning rate with it); torch.compile fuses small "
            "operators, and so does an optimizer's fused form"
        )
    config = facts.config
    more = 4 * config["micro_batch"]
    return Remedy(
        says=f"--micro-batch {more} computes more per call, with the learning rate scaled to the larger batch "
        "(--lr-scaling sqrt); or --compile, which fuses small operators",
        options=larger_batch(config, micro_batch=more),
    )


rule = Rule(label="launch_bound", devices=("cpu", "cuda"), find=find, before=("optimizer_bound",))
