"""What a diagnosis lacks that is no rule's matter: how the run ended, records of it, time that no cause has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..load import Run
from ..steps import unmarked
from ..straggler import UNATTRIBUTED
from ..withheld import is_withheld
from .facts import Facts, milliseconds
from .finding import CannotTell, Finding
from .rules import rules
from .thresholds import Thresholds

RUN = "cannot_tell"
"""The label of what no rule lacks."""


def ended(run: Run) -> str | None:
    """How a run that did not finish stands, and of which steps the diagnosis is; None of a finished one."""
    state, steps = run.status.get("state"), len(run.complete_steps)
    if state in ("finished", None) or run.run_json.get("source") == "imported":
        return None
    if state in ("running", "unknown"):
        return f"still running, or killed before it could say so: {steps} measured steps so far"
    why = f": {run.status['cause']}" if run.status.get("cause") else ""
    return (
        f"the run {'failed' if state == 'failed' else f'was {state}'}{why}; of its {steps} measured steps before that"
    )


def failed(run: Run) -> list[CannotTell]:
    """A run that failed cannot be called healthy."""
    status = run.status
    if status.get("state") != "failed":
        return []
    rerun = f"the run once that is mended{': ' + status['hint'] if status.get('hint') else ''}"
    return [CannotTell(label=RUN, lacks="the end of the run, which failed", rerun=rerun)]


def unowned(facts: Facts, told: Sequence[Finding]) -> float:
    """Seconds a step outside of the loop's phases that no cause has."""
    own = facts.own[UNATTRIBUTED]
    taken = sum((np.maximum(each.removed[UNATTRIBUTED], 0.0) for each in told if UNATTRIBUTED in each.removed), 0.0)
    return float(np.maximum(own - taken, 0.0).mean())


def no_rules(facts: Facts, seconds: float) -> CannotTell | None:
    """What lies in that many `seconds` that no cause has, where it is much."""
    if facts.share(seconds) < facts.limits.least_share:
        return None
    where = f"what takes {milliseconds(seconds)} a step, {facts.share(seconds):.0%} of it, outside of the loop's phases"
    if why := unmarked(facts.run).get("data"):
        return CannotTell(
            label=RUN,
            lacks=f"{where}; the wait for batches is among it: {why}",
            rerun="the run with probe.batches(loader); what is left then, under a profiler (cProfile, py-spy)",
        )
    if facts.own_loop:
        rerun = "the run under a profiler of Python (cProfile, py-spy): logging, callbacks and metrics lie there"
    else:
        rerun = f"{facts.again('profile_steps', 5)}, and look at the host's thread between the phases"
    return CannotTell(label=RUN, lacks=where, rerun=rerun)


def explained(lack: CannotTell, told: Sequence[Finding], facts: Facts) -> CannotTell:
    """`lack`, which decides nothing where a cause that counts may well be what it asks for."""
    by = [each.label for each in told if facts.counts(each) and lack.label in rules()[each.label].explains]
    return replace(lack, matters=False, rerun=f"the run without {by[0]}, which may be why") if by else lack


def unfit(run: Run, limits: Thresholds) -> CannotTell | None:
    """Why nothing can be said of a run at all."""
    config = run.run_json["config"]

    def lack(lacks: str, rerun: str) -> CannotTell:
        return CannotTell(label=RUN, lacks=lacks, rerun=rerun)

    if run.run_json.get("source") == "imported":
        return lack("records of steps: this folder was made from traces alone", "the job under scalelab run or a Probe")
    if is_withheld(run.status):
        return lack(
            f"figures of speed, which are withheld: {run.status['cause']}",
            "the run once it trains what it should (docs/sweep.md)",
        )
    if config.get("probe") == "off":
        return lack("phases of a step: the probe was off", "the same run with --probe on")
    if missing := sorted(set(range(run.run_json["world_size"])) - {rank.rank for rank in run.ranks}):
        names = ", ".join(f"rank {rank}" for rank in missing[:8])
        return lack(f"the records of {names}", "the run again; keep every file of ranks/")
    steps = len(run.complete_steps)
    if steps < limits.least_steps:
        least = max(30, 3 * limits.least_steps)
        if run.own_loop:
            rerun = f"the run for {least} steps behind its warm-up"
        else:
            rerun = (
                "the run again to its end" if (config.get("steps") or 0) >= least else f"the run with --steps {least}"
            )
        why = "" if steps else f" ({run.why_no_step})"
        return lack(f"steps: {steps} measured steps of all ranks{why}, and {limits.least_steps} are needed", rerun)
    return None
