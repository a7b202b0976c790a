"""The run computes in fp32 where this machine was measured to multiply faster in bf16."""

from __future__ import annotations

import numpy as np

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Headroom, Remedy
from ._contract import Rule


def find(facts: Facts) -> Answer:
    """Only where a calibration shows it. Of forward and backward, products take at least what they take at the
    machine's peak, and at most all: between the two lies what a lower precision saves."""
    calibration = facts.run.calibration
    if calibration is None or facts.summary["precision"].get("compute") != "fp32":
        return None
    rates = calibration.matmul_flops_per_second
    if not {"fp32", "bf16"} <= set(rates):
        return None
    now, then = rates["fp32"], rates["bf16"]
    # From the slow end of one to the fast end of the other.
    if then.p10 / now.p90 < facts.limits.precision_gain:
        return None
    saves = 1 - now.median / then.median
    own = facts.own["forward"] + facts.own["backward"]
    whole, mfu = float(own.mean()), facts.summary["utilization"]["mfu"]
    if mfu is None:
        return CannotTell(
            label="precision_unused",
            lacks="how much of forward and backward is products: MFU is not known",
            rerun="see utilization.mfu in the reasons of summary.json",
            matters=False,
        )
    least = min(whole, mfu * facts.step_seconds) * saves
    most = whole * saves
    middle = 0.5 * (least + most)
    scale = middle / max(whole, 1e-12)
    removed = {name: scale * facts.own[name] for name in ("forward", "backward")}
    evidence = (
        Evidence(
            says=f"this machine multiplies {then.median / now.median:.2f} times as fast in bf16 as in fp32 "
            f"(calibration "
            f"{calibration.name} of {calibration.made_utc})",
            values={"bf16_over_fp32": then.median / now.median, "calibration": calibration.name},
        ),
        Evidence(
            says=f"forward and backward take {milliseconds(whole)} a step in fp32",
            values={"compute_seconds": whole, "mfu": mfu},
        ),
    )
    return Finding(
        label="precision_unused",
        evidence=evidence,
        remedy=_remedy(facts),
        headroom=Headroom(
            seconds=middle,
            ci95=(least, most),
            method="the calibrated gain on the part of forward and backward that is products: from MFU's to all",
        ),
        removed={name: np.asarray(values) for name, values in removed.items()},
    )


def _remedy(facts: Facts) -> Remedy:
    if facts.own_loop:
        return Remedy(says="torch.autocast with bfloat16 around forward: fp32 parameters, products in bf16")
    return Remedy(says="--precision bf16: fp32 parameters, computed under autocast", options={"precision": "bf16"})


rule = Rule(label="precision_unused", devices=("cpu", "cuda"), find=find)
