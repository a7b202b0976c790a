"""So little to compute in each operator that calling it takes longer: tiny kernels, a tiny batch."""

from __future__ import annotations

import numpy as np

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ..traced import untraced
from ._contract import Rule, larger_batch

PHASES = ("forward", "backward", "optimizer")


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
    calls, each = counted
    removed = {name: np.minimum(facts.own[name], calls[name] * each[name]) for name in PHASES if calls.get(name)}
    if not removed:
        return None
    by_phase = ", ".join(f"{name} {calls[name]:,} of {each[name] * 1e6:.1f} us" for name in PHASES if calls.get(name))
    evidence = [
        Evidence(
            says=f"a step calls {sum(calls[name] for name in removed):,} operators ({by_phase} each), which take that "
            f"long however little they compute",
            values={"operators": dict(calls), "operator_seconds": dict(each)},
        ),
        *_efficiency(facts),
    ]
    return Finding(
        label="launch_bound",
        evidence=tuple(evidence),
        remedy=_remedy(facts),
        headroom=facts.headroom(removed),
        removed=removed,
    )


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
