"""The host waits for the device in the middle of a step, and has nothing queued when it goes on."""

from __future__ import annotations

import numpy as np

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ..traced import untraced
from ._contract import Rule


def find(facts: Facts) -> Answer:
    lines = facts.summary["host_syncs"]
    trace = facts.trace_mean
    if trace is None:
        if lines is None:
            return CannotTell(
                label="host_sync",
                lacks="where the host waits for the device: no step was followed, and none was traced",
                rerun=facts.again("profile_steps", 5),
            )
        if not lines:
            return None
        return CannotTell(
            label="host_sync",
            lacks=f"what the host's waits cost ({_named(lines)}), which only a profiler's trace tells",
            rerun=facts.again("profile_steps", 5),
        )
    lines, seconds = lines or [], trace["after_sync_seconds"]
    evidence = [
        Evidence(
            says=f"the device idles {milliseconds(seconds)} a step after the host had waited for it",
            values={"idle_after_sync_seconds": seconds},
        )
    ]
    evidence += [
        Evidence(
            says=f"{line['operator']} at {line['source'] or 'no line of yours'}: {line['calls_per_step']} times a step",
            values=dict(line),
        )
        for line in lines[:5]
    ]
    headroom = untraced(seconds, trace, facts.step_seconds, "idle device after the host had waited for it")
    return Finding(
        label="host_sync",
        evidence=tuple(evidence),
        remedy=Remedy(
            says="keep values on the device: collect losses as tensors and read them every N steps, replace .item(), "
            ".nonzero() and indexing by masks" + (f"; first {lines[0]['source']}" if lines else "")
        ),
        headroom=headroom,
        removed=facts.spread(np.full_like(facts.own_total, headroom.seconds)),
    )


def _named(lines: list[dict[str, object]]) -> str:
    return ", ".join(f"{line['operator']} at {line['source']}" for line in lines[:2])


rule = Rule(label="host_sync", devices=("cuda",), find=find)
