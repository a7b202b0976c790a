"""Seconds that two causes take, counted once: under the more particular of the two, which is then named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .facts import Facts
from .finding import Finding, Removed
from .rules import rules


def once(findings: Sequence[Finding], facts: Facts) -> list[Finding]:
    """Findings, in the order of `rules`: a cause has at most what those before it left of a phase, and none of what one
    of them `explains`."""
    found: list[Finding] = []
    lefts: list[tuple[str, Removed]] = []
    for finding in findings:
        explaining = [each for label, each in lefts if finding.label in rules()[label].explains]
        left = _unexplained(finding.removed, explaining)
        for phase, seconds in finding.removed.items():
            if phase in facts.own:
                taken = sum((np.maximum(each[phase], 0.0) for _, each in lefts if phase in each), np.zeros(()))
                rest = np.minimum(left[phase], facts.own[phase] - taken)
                # One that gives seconds to other ranks (below zero) goes on doing so.
                left[phase] = np.where(seconds > 0, np.maximum(rest, 0.0), seconds)
        takes = {label: _takes(label, each, finding) for label, each in lefts}
        lefts.append((finding.label, left))
        found.append(_reduced(finding, left, takes, facts))
    return found


def _unexplained(removed: Removed, explaining: Sequence[Removed]) -> dict[str, np.ndarray]:
    """A cause of some ranks without what others explain of it: as far as these take more of such a rank than of the
    rest on average. A rank that waits for a core as long as every other is late for another reason."""
    if not explaining or not removed:
        return dict(removed)
    totals = _by_rank(removed)
    explained = np.sum([_more(each, totals > 0) for each in explaining], axis=0)
    part = 1 - np.clip(explained / np.where(totals > 0, totals, 1.0), 0.0, 1.0)
    return {phase: np.where(seconds > 0, part[:, None] * seconds, seconds) for phase, seconds in removed.items()}


def _more(removed: Removed, its: np.ndarray) -> np.ndarray:
    """By rank, what it has more of the seconds `removed` than the mean of those that are not `its`."""
    theirs = _by_rank(removed)
    return theirs - (theirs[~its].mean() if (~its).any() else 0.0)


def _by_rank(removed: Removed) -> np.ndarray:
    """Seconds a step of each rank, all phases together."""
    return np.sum([np.asarray(seconds).mean(axis=1) for seconds in removed.values()], axis=0)


def _takes(label: str, each: Removed, finding: Finding) -> float:
    """The part of the seconds of `finding` that may be those of the cause `label`, to which `each` is counted."""
    if not finding.removed or not each:
        return 0.0
    totals = np.maximum(_by_rank(finding.removed), 0.0)
    if finding.label in rules()[label].explains:
        taken = np.clip(_more(each, totals > 0), 0.0, totals).sum()
    else:
        both = [np.minimum(each[phase], seconds) for phase, seconds in finding.removed.items() if phase in each]
        taken = sum(float(np.maximum(seconds, 0.0).mean(axis=1).sum()) for seconds in both)
    return float(taken / max(totals.sum(), 1e-12))


def _reduced(finding: Finding, left: Removed, takes: Mapping[str, float], facts: Facts) -> Finding:
    """`finding` with what is left of its seconds; where that is much less than it took alone, this is told."""
    if finding.headroom is None or not finding.removed:
        return finding
    before, own = float(facts.saved(finding.removed).mean()), finding.headroom
    saved = float(facts.saved(left).mean())
    part = min(1.0, max(0.0, saved / before)) if before > 0 else 1.0
    ci95 = None if own.ci95 is None else (part * own.ci95[0], part * own.ci95[1])
    headroom = replace(own, seconds=part * own.seconds, ci95=ci95)
    # Taking a cause away may free cores and memory for what else is computed.
    beyond = max(0.0, headroom.seconds - saved) if own.by_tail else 0.0
    # Those that take next to nothing are not named.
    least = min(1 - facts.limits.taken_twice, max(takes.values(), default=0.0))
    takers = tuple(label for label, each in takes.items() if each >= least > 0)
    if part >= facts.limits.taken_twice or not takers:
        return replace(finding, headroom=headroom, removed=left, beyond=beyond)
    return replace(finding, headroom=headroom, removed=left, alone=own, counted_under=takers, beyond=beyond)
