"""The device waits for its batch to be copied to it."""

from __future__ import annotations

from ..facts import Facts, milliseconds
from ..finding import Answer, Evidence, Finding, Remedy
from ._contract import Rule


def find(facts: Facts) -> Answer:
    removed = {"h2d": facts.own["h2d"]}
    seconds, config = float(facts.own["h2d"].mean()), facts.config
    pinned = bool(config.get("pin"))
    return Finding(
        label="h2d_bound",
        evidence=(
            Evidence(
                says=f"copies of the batch hold the device up {milliseconds(seconds)} a step; the batch is "
                f"{'' if pinned else 'not '}pinned",
                values={"h2d_seconds": seconds, "pin": pinned},
            ),
        ),
        remedy=Remedy(
            says="send less: smaller dtypes, images resized before the copy, nothing that the model does not read"
            if pinned
            else "--pin true: copies from pinned memory run beside computing; in a loader of your own, pin_memory()",
            # A loader of the user's own pins by itself.
            options={} if pinned or facts.run.run_json.get("data") is None else {"pin": True},
        ),
        headroom=facts.headroom(removed),
        removed=removed,
    )


rule = Rule(label="h2d_bound", devices=("cuda",), find=find)
