"""Many small messages: what communication costs is mostly the calls, whatever they carry."""

from __future__ import annotations

from dataclasses import replace

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ._comm import cost
from ._contract import Rule

DEFAULT_BUCKET_MB = 25.0


def find(facts: Facts) -> Answer:
    found = cost(facts, "comm_latency")
    if isinstance(found, CannotTell):
        return None  # comm_bandwidth says the same
    if found.latency_share < facts.limits.latency_share:
        return None
    whole, share = found.headroom, found.latency_share
    evidence = (
        Evidence(
            says=f"{found.calls:.0f} collective{'' if round(found.calls) == 1 else 's'} a step carry "
            f"{found.bytes_per_step / max(found.calls, 1) / 1024:.4g} KiB "
            f"each on average; they hold ranks up {milliseconds(whole.seconds)} a step",
            values={"calls_per_step": found.calls, "bytes_per_step": found.bytes_per_step},
        ),
        Evidence(
            says=f"{share:.0%} of that would be saved if the same went in one call of each kind, by {found.how}",
            values={"latency_share": share},
        ),
    )
    ci95 = None if whole.ci95 is None else (whole.ci95[0] * share, whole.ci95[1] * share)
    return Finding(
        label="comm_latency",
        evidence=evidence,
        remedy=_remedy(facts),
        headroom=replace(whole, seconds=whole.seconds * share, ci95=ci95, method=f"{whole.method}, times that share"),
        removed={phase: seconds * share for phase, seconds in found.removed.items()},
    )


def _remedy(facts: Facts) -> Remedy:
    if facts.own_loop:
        return Remedy(
            says=f"fewer messages: bucket_cap_mb of DDP at {DEFAULT_BUCKET_MB:g} or more, larger units of FSDP, or "
            "no_sync() while gradients accumulate"
        )
    bucket = facts.config.get("bucket_mb")
    if bucket is not None and bucket < DEFAULT_BUCKET_MB:
        says = f"--bucket-mb {DEFAULT_BUCKET_MB:g} sends the same in fewer messages"
        return Remedy(says=says, options={"bucket_mb": DEFAULT_BUCKET_MB})
    return Remedy(
        says="fewer messages: fewer and larger blocks to gather, --grad-accumulation, or a strategy that sends once"
    )


rule = Rule(label="comm_latency", devices=("cpu", "cuda"), least_ranks=2, find=find, explains=("comm_bandwidth",))
