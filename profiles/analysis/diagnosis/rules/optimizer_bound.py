"""The update of the parameters takes a large part of the step."""

from __future__ import annotations

from ...steps import unmarked
from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ..tailed import tail_or
from ._contract import Rule, larger_batch


def find(facts: Facts) -> Answer:
    if (why := unmarked(facts.run).get("optimizer")) is not None:
        lacks = f"how long the update takes: {why}"
        return CannotTell(
            label="optimizer_bound", lacks=lacks, rerun="the run with the optimizer given to Probe.attach"
        )
    removed = {"optimizer": facts.own["optimizer"]}
    seconds = float(facts.own["optimizer"].mean())
    parameters = facts.summary["model"]["parameters"]
    config = facts.config
    evidence = [
        Evidence(
            says=f"the update takes {milliseconds(seconds)} a step, forward and backward "
            f"{milliseconds(float((facts.own['forward'] + facts.own['backward']).mean()))}",
            values={"optimizer_seconds": seconds},
        )
    ]
    if parameters and config["global_batch"]:
        evidence.append(
            Evidence(
                says=f"{parameters / 1e6:.3g} M parameters for {config['global_batch']} samples a step",
                values={"parameters": parameters, "global_batch": config["global_batch"]},
            )
        )
    return Finding(
        label="optimizer_bound",
        evidence=tuple(evidence),
        remedy=_remedy(facts),
        headroom=tail_or(facts, "no_optimizer", removed),
        removed=removed,
    )


def _remedy(facts: Facts) -> Remedy:
    config = facts.config
    if facts.own_loop:
        return Remedy(
            says="accumulate gradients over more batches for each update, use the optimizer's fused form, or share the "
            "update among the ranks (ZeroRedundancyOptimizer, FSDP)"
        )
    if facts.world_size > 1 and config["strategy"] == "ddp":
        says = "--strategy zero1 updates a share of the parameters on each rank"
        return Remedy(says=says, options={"strategy": "zero1"})
    accumulation = 2 * config["grad_accumulation"]
    return Remedy(
        says=f"--grad-accumulation {accumulation} updates half as often for as many samples, with the learning rate "
        "scaled to the larger batch",
        options=larger_batch(config, grad_accumulation=accumulation),
    )


rule = Rule(label="optimizer_bound", devices=("cpu", "cuda"), find=find)
