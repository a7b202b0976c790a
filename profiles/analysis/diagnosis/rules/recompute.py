"""Activations are computed twice, where there may be room to keep them."""

from __future__ import annotations

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ..tailed import tail_or
from ._contract import Rule


def find(facts: Facts) -> Answer:
    how = facts.config.get("checkpointing", "none")
    if how == "none":
        return None
    again = facts.recompute
    if facts.own_loop:
        return CannotTell(
            label="recompute",
            lacks="whether activations are computed again, which a loop of its own does not tell",
            rerun="the model under scalelab run",
            matters=False,
        )
    if again is None:
        return CannotTell(
            label="recompute",
            lacks="the time of recomputing activations, which compiled blocks do not show",
            rerun="the run again without --compile, or with --checkpointing none to compare",
        )
    removed = {"backward": again}
    # On a GPU it is the card that must have room, which is not known.
    used = facts.memory_used_share if facts.device == "cpu" else None
    evidence = [
        Evidence(
            says=f"--checkpointing {how} computes activations again for {milliseconds(float(again.mean()))} of a "
            f"backward "
            f"of {milliseconds(float(facts.own['backward'].mean()))}",
            values={"recompute_seconds": float(again.mean()), "checkpointing": how},
        )
    ]
    if used is not None:
        evidence.append(Evidence(says=f"{used:.0%} of memory was in use at most", values={"memory_used_share": used}))
    to = "none" if used is None or used < facts.limits.room else "selective"
    options = {"checkpointing": to} if to != how and facts.device == "cpu" else {}
    return Finding(
        label="recompute",
        evidence=tuple(evidence),
        remedy=Remedy(
            says=f"--checkpointing {to}: keep activations, if they fit in memory; --dry-run and the memory part of the "
            "report tell"
            if to != how
            else "memory has no room for more activations: a smaller --micro-batch, or a strategy that shards more",
            options=options,
        ),
        headroom=tail_or(facts, "no_recompute", removed),
        removed=removed,
    )


rule = Rule(label="recompute", devices=("cpu", "cuda"), find=find)
