"""Who ended a run: one culprit out of what every rank left behind. Pure; no torch.

A rank's death makes the others' collectives fail: those failures are consequences. Of the rest the earliest is the
cause, whatever the number of the rank.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import Exit
from ..stopping import SIGNALS
from .collectives import Odd, last_of, odd_one_out
from .report import Collectives, Evidence, Report
from .sighting import Sighting
from .watchdog import silence_of

SAME_ORDER = "every rank must call the same collectives in the same order: look for a branch on the rank or its data"
# gloo ends the process when a message is longer than what it was to receive.
GLOO_MISMATCH = "op.preamble.length <= op.nbytes"
ORDER = ("data", "h2d", "forward", "backward", "optimizer")


def of_error(error: dict[str, Any]) -> Evidence:
    """What a rank wrote of its own end (`errors/r000.json`)."""
    known = error["exit_code"] != Exit.WORKER_DIED or error["type"] in ("LoaderDied",)
    return Evidence(
        rank=error["rank"],
        host=error["host"],
        at=error["at"],
        phase=error["phase"],
        step=error["step"],
        exit_code=error["exit_code"],
        cause=error["message"] if known else f"{error['type']}: {error['message']}",
        hint=error["hint"],
        consequence=error["consequence"],
        memory=error.get("memory"),
    )


def of_death(seen: Sighting, host: str, now: float, *, memory: str | None, log: Path, printed: str) -> Evidence:
    """A rank that ended without a word. `memory` is the kernel's word on memory, if it had one; `printed` the end of
    what the rank wrote to `log`."""
    code, rank = seen.end_code, seen.rank
    hint: str = f"what it printed is in {log}"
    exit_code = Exit.WORKER_DIED
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        cause = f"ended by {name}"
        if memory is not None and -code == signal.SIGKILL:
            cause, exit_code = memory, Exit.OUT_OF_MEMORY
            hint = "give the host or the container more memory, or lower --micro-batch, --workers or --prefetch"
        elif -code == signal.SIGABRT and GLOO_MISMATCH in printed:
            # Which of the ranks is where it should not be, nothing tells.
            rank, exit_code = None, Exit.HANG
            cause = f"the ranks are in different collectives: rank {seen.rank} was sent a message of another size"
            hint = f"{SAME_ORDER}; the stack of rank {seen.rank} is at the end of {log}"
        elif -code == signal.SIGBUS:
            hint = f"a bus error is what a full /dev/shm ends with: make it larger, or use --workers 0; {hint}"
    elif code:
        cause = f"ended with exit code {code} and no error"
    else:
        # torchrun does not tell of a rank that exits with 0.
        cause = "left the run early, with no error" + (" and exit code 0" if code == 0 else "")
        hint = f"something in the model's or a library's code called exit; {hint}"
    return Evidence(
        rank=rank, host=host, at=seen.ended_at or now, phase=seen.phase, step=seen.step, exit_code=exit_code,
        cause=cause, hint=hint,
        # What torchrun sends to the others when it has lost one; a rank at its steps takes it and goes on.
        consequence=code == -signal.SIGTERM,
    )  # fmt: skip


def of_launcher(code: int, host: str, now: float) -> Evidence:
    """The process that started the ranks was ended by signal `-code`."""
    cause = f"the process that started the ranks was ended by {signal.Signals(-code).name}, and the ranks with it"
    return Evidence(
        rank=None, host=host, at=now, phase=None, step=None, exit_code=Exit.WORKER_DIED, cause=cause,
        hint="its output is in logs/launcher.log in the run folder",
    )  # fmt: skip


def of_hang(stuck: Sequence[Sighting], odd: Odd | None, host: str, now: float, silence: float) -> Evidence:
    """Whom the others wait for, among ranks none of which makes progress; no rank when nothing tells them apart.

    `silence` is the time in seconds without a beat after which a process of most phases counts as not running.
    """

    def hung(seen: Sighting, cause: str, hint: str, *, culprit: bool = True) -> Evidence:
        rank = seen.rank if culprit else None
        return Evidence(
            rank=rank, host=host, at=now, phase=seen.phase, step=seen.step, exit_code=Exit.HANG, cause=cause, hint=hint
        )

    stacks = "the stack of every rank is in errors/"
    for seen in stuck:
        if seen.process == "stopped":
            return hung(
                seen,
                "was stopped (SIGSTOP) and makes no progress",
                "a debugger, job control or kill -STOP does that",
            )
    for seen in stuck:
        if seen.beat_at is not None and now - seen.beat_at > silence_of(seen, silence):
            cause = f"runs none of its threads for {now - seen.beat_at:.0f} s: native code holds the interpreter lock"
            return hung(seen, cause, stacks)
    waited = f"no progress for {min(now - (s.since or now) for s in stuck):.0f} s"
    if odd is not None:
        seen = next((s for s in stuck if s.rank == odd.rank), None)
        if seen is not None:
            return hung(seen, f"{waited}: {odd.text}", stacks)
    places = {seen.rank: _place(seen) for seen in stuck}
    behind = min(stuck, key=lambda seen: places[seen.rank])
    if len(stuck) == 1 or len(set(places.values())) > 1:
        others = "" if len(stuck) == 1 else ", the others wait for it"
        return hung(behind, f"{waited}{others}", stacks)
    return hung(behind, f"{waited} on any rank, all at the same place: the network?", stacks, culprit=False)


def of_mismatch(errors: Sequence[Evidence], lists: Collectives) -> Evidence:
    """What lies behind `errors` of communication alone: ranks in different collectives, else a broken connection."""
    first = min(errors, key=lambda item: item.at)
    odd = odd_one_out(lists)
    if odd is None:
        ranks = ", ".join(str(item.rank) for item in sorted(errors, key=lambda item: item.rank or 0))
        where = last_of(lists.get(first.rank or 0, ()))
        cause = f"the connection between ranks {ranks} broke{where}: {first.cause}"
        return replace(
            first, cause=cause, hint="is the network up between the hosts of these ranks?", consequence=False
        )
    theirs = next((item for item in errors if item.rank == odd.rank), first)
    return replace(
        theirs, rank=odd.rank, at=first.at, exit_code=Exit.HANG, cause=odd.text, hint=SAME_ORDER, consequence=False
    )


def _place(seen: Sighting) -> tuple[int, int]:
    step = -1 if seen.step is None else seen.step
    return step, ORDER.index(seen.phase) if seen.phase in ORDER else -1


def conclude(reports: Sequence[Report], lost: Sequence[Evidence] = ()) -> dict[str, Any]:
    """The final status of a run out of every host's report, and evidence of hosts that are not heard of any more."""
    ranks = [seen for report in reports for seen in report.ranks]
    evidence = [*lost, *(item for report in reports for item in report.evidence)]
    lists = {rank: calls for report in reports for rank, calls in (report.collectives or {}).items()}
    stuck = [seen for report in reports for seen in report.stuck]
    if stuck:
        first = next(report for report in reports if report.stuck)
        now = time.monotonic() if first.noticed_at is None else first.noticed_at
        found = of_hang(stuck, odd_one_out(lists), first.host, now, first.silence_seconds)
        hosts = {seen.rank: report.host for report in reports for seen in report.ranks}
        evidence.append(replace(found, host=hosts.get(found.rank or 0, first.host)))
    elif evidence and all(item.consequence for item in evidence):
        evidence.append(of_mismatch(evidence, lists))
    if evidence:
        return decide(evidence)
    if all(seen.state == "finished" for seen in ranks):
        return status("finished", max(seen.code for seen in ranks))
    if stopped := [seen for seen in ranks if seen.state == "stopped"]:
        return _stopped(Exit(stopped[0].code), min(seen.step or 0 for seen in stopped))
    if interrupted := next((report for report in reports if report.signal is not None), None):
        number = signal.Signals(interrupted.signal or 0)
        how = ": the ranks did not come to their end within --grace" if interrupted.overran else ", at once"
        cause = f"ended by {number.name}{how}"
        # A warning that came before the first step, or was overtaken: there is no checkpoint to go on from.
        code = Exit.CHECKPOINT if SIGNALS[number] is Exit.PREEMPTED else SIGNALS[number]
        return status("interrupted", code, cause=cause, hint="what the ranks had done until then is in the run folder")
    codes = ", ".join(str(report.launcher_code) for report in reports)
    cause = f"the ranks could not be started (exit code {codes})"
    return status("failed", Exit.WORKER_DIED, cause=cause, hint="see logs/launcher.log in the run folder")


def _stopped(code: Exit, step: int) -> dict[str, Any]:
    warned = code in (Exit.PREEMPTED, Exit.CHECKPOINT)
    why = "SIGUSR1" if warned else "Ctrl-C" if code is Exit.INTERRUPTED else "SIGTERM or SIGHUP"
    kept = "its last checkpoint is in the run folder; a run cannot be continued from one yet"
    hint = kept if code is Exit.PREEMPTED else ""
    state = "preempted" if warned else "interrupted"
    return status(state, code, cause=f"stopped by {why} after step {step}, on all ranks", hint=hint)


def decide(evidence: Sequence[Evidence]) -> dict[str, Any]:
    """The status of a failed run out of all `evidence`, of which there is some."""
    causes = [item for item in evidence if not item.consequence] or list(evidence)
    first = min(causes, key=lambda item: item.at)
    if first.exit_code == Exit.NUMERIC:
        # A bad number is read some steps late on CUDA: the step counts, not the moment.
        first = min(causes, key=lambda item: (item.step or 0, item.at))
    rest = sorted(
        (item for item in evidence if item is not first and item.rank != first.rank), key=lambda item: item.at
    )
    culprit = None
    if first.rank is not None:
        culprit = {"rank": first.rank, "host": first.host, "phase": first.phase, "step": first.step}
    # Out of memory on several ranks at once, or the same bad number on all: named with the first, not as its effects.
    alike = [item.rank for item in rest if item.exit_code == first.exit_code and not item.consequence]
    also = f" (rank{'s' * (len(alike) > 1)} {', '.join(map(str, alike))} too)" if alike else ""
    others = [{"rank": item.rank, "phase": item.phase, "step": item.step, "cause": item.cause} for item in rest]
    found = status("failed", first.exit_code, culprit=culprit, cause=first.cause + also, hint=first.hint, others=others)
    return found if first.memory is None else {**found, "memory": first.memory}


def status(
    state: str,
    exit_code: int | None,
    *,
    culprit: dict[str, Any] | None = None,
    cause: str | None = None,
    hint: str | None = None,
    others: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """The content of status.json. `consequences` lists what the other ranks met after the cause, in order of time."""
    return {
        "state": state,
        "exit_code": None if exit_code is None else int(exit_code),
        "culprit": culprit,
        "cause": cause,
        "hint": hint,
        "consequences": list(others),
    }
