"""One rank is late, step after step, and the others wait for it."""

from __future__ import annotations

import numpy as np

from ...straggler import Straggler, find_straggler
from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ._contract import Rule

_NEXT = {
    "data": "look at what that rank reads and where: its disk, its loader processes, its share of the data",
    "h2d": "look at that rank's copies: pinned memory, the PCIe link of its card",
    "forward": "look at that rank's device and core: clocks held down, another process, other code on that rank",
    "backward": "look at that rank's device and core: clocks held down, another process, other code on that rank",
    "optimizer": "look at what that rank does at its update that others do not",
    "unattributed": "look at what that rank does outside of the loop's phases: logging, callbacks",
}


def find(facts: Facts) -> Answer:
    known = facts.known
    if known.exposed is None or known.split is None:
        return CannotTell(
            label="straggler_rank",
            lacks=f"which rank comes last to the collectives: {known.why_unknown or known.why_not_split}",
            rerun="--profile-steps 5 shows each rank's communication in its trace",
        )
    found = find_straggler(facts.run, known.exposed, known.split.last)
    if not isinstance(found, Straggler):
        return None
    index = next(i for i, rank in enumerate(facts.run.ranks) if rank.rank == found.rank)
    own = facts.own[found.cause]
    removed = np.zeros_like(own)
    # Its mean excess, not that of each step: the steps' noise is nobody's fault and would stay.
    removed[index] = own[index].mean() - np.delete(own, index, axis=0).mean()
    waiting = known.split.waiting.mean(axis=1)
    others = float(np.delete(waiting, index).mean())
    evidence = (
        Evidence(
            says=f"rank {found.rank} takes {milliseconds(found.excess_seconds)} a step longer than the others' mean, "
            f"and was last in {found.share:.0%} of the steps",
            values={"rank": found.rank, "excess_seconds": found.excess_seconds, "share_last": found.share},
        ),
        Evidence(
            says=f"most of it in {found.cause}; the others wait {milliseconds(others)} a step for late ranks",
            values={"phase": found.cause, "waiting_seconds": others},
        ),
    )
    start = facts.run.ranks[index].start
    where = f"rank {found.rank}" + (f" on {start.host}" if start else "")
    return Finding(
        label="straggler_rank",
        evidence=evidence,
        remedy=Remedy(says=f"{where}: {_NEXT.get(found.cause, _NEXT['unattributed'])}"),
        headroom=facts.headroom({found.cause: removed}),
        removed={found.cause: removed},
    )


rule = Rule(
    label="straggler_rank",
    devices=("cpu", "cuda"),
    least_ranks=2,
    find=find,
    before=("input_bound", "h2d_bound", "optimizer_bound"),
)
