"""One rank is late, step after step, and the others wait for it."""

from __future__ import annotations

import numpy as np

from ...straggler import LEAST_SHARE_OF_STEP, Straggler, find_straggler
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
        trace = facts.trace_mean
        if trace is not None and facts.share(trace["exposed_communication_seconds"]) < facts.limits.least_share:
            return None  # whoever is late, nobody waits for it for long
        return CannotTell(
            label="straggler_rank",
            lacks=f"which rank comes last to the collectives: {known.why_unknown or known.why_not_split}",
            rerun=f"{facts.again('profile_steps', 5)}, whose trace shows each rank's communication",
        )
    found = find_straggler(facts.run, known.exposed, known.split.last)
    waiting = known.split.waiting.mean(axis=1)
    if not isinstance(found, Straggler):
        return _by_turns(facts, float(waiting.mean()))
    index = next(i for i, rank in enumerate(facts.run.ranks) if rank.rank == found.rank)
    late, removed = _late(facts, index)
    others = float(np.delete(waiting, late).mean())
    also = [facts.run.ranks[place].rank for place in late if place != index]
    likewise = f"; rank{'s' * (len(also) > 1)} {', '.join(map(str, also))} likewise" if also else ""
    evidence = (
        Evidence(
            says=f"rank {found.rank} takes {milliseconds(found.excess_seconds)} a step longer than the others' mean, "
            f"and was last in {found.share:.0%} of the steps{likewise}",
            values={
                "rank": found.rank,
                "excess_seconds": found.excess_seconds,
                "share_last": found.share,
                "late_too": also,
            },
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
        headroom=facts.headroom(removed),
        removed=removed,
    )


def _late(facts: Facts, index: int) -> tuple[list[int], dict[str, np.ndarray]]:
    """The places of the rank at `index` and of those that are as late as one, and what they take longer than the others
    in each phase: on average, as the steps' noise is nobody's fault and would stay."""
    totals = facts.own_total.mean(axis=1)
    usual = float(np.sort(totals)[(len(totals) - 1) // 2])
    least = LEAST_SHARE_OF_STEP * float(facts.run.step_seconds.mean())
    late = [place for place, total in enumerate(totals) if place == index or total - usual > least]
    removed = {}
    for phase, own in facts.own.items():
        more = own.mean(axis=1) - np.delete(own, late, axis=0).mean()
        removed[phase] = np.zeros_like(own)
        removed[phase][late] = more[late, None]
    return late, removed


def _by_turns(facts: Facts, waiting: float) -> CannotTell | None:
    """Ranks wait long, and for no one of them: as they share cores, or for a cause that no rule knows."""
    if facts.run.run_json.get("oversubscribed") or facts.share(waiting) < facts.limits.least_share:
        return None
    return CannotTell(
        label="straggler_rank",
        lacks=f"why ranks wait {milliseconds(waiting)} a step for late ones, as no one rank is late",
        rerun=f"{facts.again('profile_steps', 5)}, and look at the ranks side by side in the merged trace",
    )


rule = Rule(
    label="straggler_rank",
    devices=("cpu", "cuda"),
    least_ranks=2,
    find=find,
    before=("input_bound", "h2d_bound", "optimizer_bound"),
)
