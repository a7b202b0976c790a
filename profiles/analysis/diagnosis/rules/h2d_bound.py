"""The device waits for its batch to be copied to it."""

from __future__ import annotations

from ...steps import unmarked
from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ._contract import Rule


def find(facts: Facts) -> Answer:
    if (why := unmarked(facts.run).get("h2d")) is not None:
        lacks = f"how long copies to the device take: {why}"
        return CannotTell(label="h2d_bound", lacks=lacks, rerun="the model under scalelab run", matters=False)
    removed = {"h2d": facts.own["h2d"]}
    seconds, pinned = float(facts.own["h2d"].mean()), bool(facts.config.get("pin"))
    told = "" if facts.own_loop else f"; the batch is {'' if pinned else 'not '}pinned"
    return Finding(
        label="h2d_bound",
        evidence=(
            Evidence(
                says=f"copies of the batch hold the device up {milliseconds(seconds)} a step{told}",
                values={"h2d_seconds": seconds, "pin": None if facts.own_loop else pinned},
            ),
        ),
        remedy=_remedy(facts, pinned=pinned),
        headroom=facts.headroom(removed),
        removed=removed,
    )


def _remedy(facts: Facts, *, pinned: bool) -> Remedy:
    less = "send less: smaller dtypes, images resized before the copy, nothing that the model does not read"
    if facts.own_loop:
        return Remedy(says=f"pin_memory=True in the DataLoader and non_blocking=True in the copy; or {less}")
    if pinned:
        return Remedy(says=less)
    return Remedy(
        says="--pin true: copies from pinned memory run beside computing; in a loader of your own, pin_memory()",
        # A loader of the user's own pins by itself.
        options={} if facts.run.run_json.get("data") is None else {"pin": True},
    )


rule = Rule(label="h2d_bound", devices=("cuda",), find=find)
