"""The update of the parameters takes a large part of the step."""

from __future__ import annotations

from ..facts import Facts, milliseconds
from ..finding import Answer, Evidence, Finding, Remedy
from ._contract import Rule, larger_batch


def find(facts: Facts) -> Answer:
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
    if parameters:
        evidence.append(
            Evidence(
                says=f"{parameters / 1e6:.3g} M parameters for {config['global_batch']} samples a step",
                values={"parameters": parameters, "global_batch": config["global_batch"]},
            )
        )
    accumulation = config["grad_accumulation"]
    zero = facts.world_size > 1 and config["strategy"] == "ddp"
    options = {"strategy": "zero1"} if zero else larger_batch(config, grad_accumulation=2 * accumulation)
    words = "--strategy zero1 updates a share of the parameters on each rank" if zero else (
        f"--grad-accumulation {2 * accumulation} updates half as often for as many samples, with the learning "
        f"rate scaled to the larger batch"
    )  # fmt: skip
    return Finding(
        label="optimizer_bound",
        evidence=tuple(evidence),
        remedy=Remedy(says=words, options=options),
        headroom=facts.counterfactual("no_optimizer") or facts.headroom(removed),
        removed=removed,
    )


rule = Rule(label="optimizer_bound", devices=("cpu", "cuda"), find=find)
