"""What the counterfactual tail of a run says of a cause, held beside the breakdown of its measured steps."""

from __future__ import annotations

from dataclasses import replace

from .facts import Facts
from .finding import Headroom, Removed

COUNTERFACTUAL = "steps of this run with and without it, in turn"


def tail(facts: Facts, cause: str) -> Headroom | None:
    """What the tail says that a step saves without `cause`; None without one."""
    row = (facts.summary.get("counterfactual") or {}).get(cause)
    if row is None:
        return None
    low, high = row["ci95"]
    return Headroom(seconds=row["headroom_seconds"], ci95=(low, high), method=COUNTERFACTUAL, by_tail=True)


def noisy(facts: Facts, tried: Headroom) -> bool:
    """Whether `tried` tells neither that the cause costs anything, nor that it costs less than is looked for."""
    if tried.ci95 is None:
        return True
    low, high = tried.ci95
    return low <= 0 <= high and facts.share(0.5 * (high - low)) >= facts.limits.least_share


def too_noisy(facts: Facts, tried: Headroom) -> str:
    """In words, with how many blocks that was."""
    blocks = max((sum(block.cause is not None for block in rank.blocks) for rank in facts.run.ranks), default=0)
    causes = len({block.cause for rank in facts.run.ranks for block in rank.blocks} - {None})
    return (
        f"the counterfactual was too noisy, {blocks // max(causes, 1)} blocks without it: {tried.seconds * 1e3:.1f} "
        f"[{_bounds(tried)}] ms"
    )


def _bounds(tried: Headroom) -> str:
    return ", ".join(f"{end * 1e3:.1f}" for end in tried.ci95 or ())


def tail_or(facts: Facts, cause: str, removed: Removed) -> Headroom:
    """What the tail says; where there is none, or one too noisy to tell, what the breakdown does, with its own
    interval: a tail that cannot tell takes nothing away from what was measured."""
    tried = tail(facts, cause)
    if tried is None:
        return facts.headroom(removed)
    if not noisy(facts, tried):
        return tried
    found = facts.headroom(removed)
    return replace(found, method=f"{found.method}; {too_noisy(facts, tried)}")
