"""Others compute on the run's cores: its threads could run, and wait for one."""

from __future__ import annotations

import numpy as np

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ._contract import Rule


def find(facts: Facts) -> Answer:
    delay = facts.run_delay
    if delay is None:
        return CannotTell(
            label="cpu_contention",
            lacks="how long the ranks' threads waited for a core: this system does not count it",
            rerun="on Linux with /proc/thread-self/schedstat",
            matters=False,
        )
    share = facts.share(float(facts.headroom(facts.computing(delay)).seconds))
    if share < facts.limits.shown_share:
        return None
    uses = facts.core_use
    if uses is None:
        return CannotTell(
            label="cpu_contention",
            lacks="who else was on this host's cores during the measured steps",
            rerun=f"{'the model under scalelab run' if facts.own_loop else 'the run again'}, for 5 s or more",
            matters=share >= facts.limits.least_share,
        )
    others = sum(use.others + use.stolen for use in uses)
    cores = sum(use.cores for use in uses)
    if others < facts.limits.others_cores_share * cores:
        return None
    own = sum(use.own for use in uses)
    # Where the run itself has more threads than cores, they wait for each other as well.
    part = 1.0 if facts.threads_wanted <= cores else others / (others + own)
    lacked = np.maximum(delay * part, _of_other_threads(facts, own, others, cores))
    removed = facts.computing(lacked)
    headroom = facts.headroom(removed)
    worst, seconds = facts.ranks_by(delay.mean(axis=1))[0]
    evidence = [
        Evidence(
            says=f"ranks could have run and waited for a core {milliseconds(float(delay.mean()))} a step, rank {worst} "
            f"{milliseconds(seconds)}",
            values={"run_delay_seconds": float(delay.mean()), "rank": worst, "rank_seconds": seconds},
        ),
        Evidence(
            says=f"other processes kept {others:.2g} of {cores} cores busy during the measured steps, this run "
            f"{own:.2g}",
            values={"others_cores": others, "own_cores": own, "cores": cores},
        ),
        *_what_counts(facts, delay, lacked),
    ]
    if (stolen := sum(use.stolen for use in uses)) > facts.limits.stolen_share * cores:
        evidence.append(Evidence(says=f"the hypervisor took {stolen:.2g} cores' time", values={"stolen_cores": stolen}))
    return Finding(
        label="cpu_contention",
        evidence=tuple(evidence),
        remedy=Remedy(
            says="end what else runs on this host (ps -eo pid,pcpu,comm --sort=-pcpu names it), or keep it off the "
            "ranks' "
            "cores (taskset, a cpuset)"
        ),
        headroom=headroom,
        removed=removed,
    )


def _what_counts(facts: Facts, delay: np.ndarray, lacked: np.ndarray) -> list[Evidence]:
    """Why what it would buy is another number than what ranks waited on average; nothing where it is the same."""
    steps = np.arange(lacked.shape[1])
    slowest = facts.own_total.argmax(axis=0)
    waited, counted = (float(each[slowest, steps].mean()) for each in (delay, lacked))
    alike = abs(counted - waited) <= (1 - facts.limits.taken_twice) * waited
    if len(delay) == 1 and alike:
        return []
    threads = "" if alike else f", {milliseconds(counted)} of it for others' processes"
    if not alike and counted > waited:
        threads = f", and {milliseconds(counted)} with what its other threads lacked of cores"
    says = f"ranks meet in every step, so that the slowest of each counts: it waited {milliseconds(waited)}{threads}"
    return [Evidence(says=says, values={"slowest_seconds": waited, "counted_seconds": counted})]


def _of_other_threads(facts: Facts, own: float, others: float, cores: int) -> np.ndarray:
    """A rank that computes with several threads waits for the last of them, on a core: what its threads lack of the
    cores that they want then tells, over the time in which it had something to do. At most what others can have taken
    counts: threads that want a core all the time are the most there can be."""
    wanted = min(facts.threads_computing, cores)
    if facts.on_core is None or facts.run_delay is None or facts.threads_computing <= facts.world_size:
        return np.zeros_like(facts.own_total)
    lack = min(max(0.0, wanted - own), max(0.0, others + wanted - cores))
    return (facts.on_core + facts.run_delay) * (lack / wanted)


rule = Rule(
    label="cpu_contention",
    devices=("cpu", "cuda"),
    find=find,
    explains=("straggler_rank",),
    before=("input_bound", "optimizer_bound", "launch_bound", "recompute", "precision_unused"),
)
