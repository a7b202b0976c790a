"""From a plan to a run folder that this process holds, together with the run's other hosts. No torch."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..profiles.runfolder import RunFolder
from .config import name_of
from .errors import Terminated, exit_code_of
from .lock import holder, locked
from .plan import Plan
from .supervision.aftermath import clear_away
from .supervision.hosts import Hosts
from .supervision.meeting import gather, join
from .supervision.pulse import watched_ranks
from .supervision.verdict import status

Say = Callable[[str], None]


@dataclass(frozen=True)
class Opened:
    """A folder to run in. `owned`: this host writes its run.json, status and summary."""

    folder: RunFolder
    hosts: Hosts | None
    owned: bool


@contextlib.contextmanager
def opened(plan: Plan, describe: Callable[[RunFolder], dict[str, Any]], data: str | None, say: Say) -> Iterator[Opened]:
    """Within, this process holds the run's folder, with `describe(folder)` as its run.json, and all hosts have met.

    `data` is the digest of this host's data. Raises FolderInUse, OutputError, and what a meeting of hosts raises; then
    the folder's status says so, where there is a folder.
    """
    out = Path(plan.config.out)
    note_interrupted(out, say)
    with contextlib.ExitStack() as stack:

        def make(run_id: str) -> tuple[RunFolder, bool]:
            folder, shared = RunFolder.join(out, run_id)
            if not shared:
                begin(folder)
            return folder, shared

        def begin(folder: RunFolder) -> None:
            _hold(stack, folder, say)
            folder.write("run.json", describe(folder))
            folder.write("status.json", status("running", None))
            stack.enter_context(_told(folder))

        if plan.config.node_rank:
            say(f"host {plan.config.node_rank} of {plan.config.nodes}: looking for host 0 at {plan.config.rendezvous}")
            hosts, folder = join(plan, make, data)
            yield Opened(folder, hosts, owned=not hosts.shared)
            return
        folder = RunFolder.create(out, name_of(plan.config))
        begin(folder)
        say(f"run folder: {folder.path}")
        hosts = None
        if plan.config.nodes > 1:
            say(f"waiting for {plan.config.nodes - 1} more host(s) at {plan.config.rendezvous}")
            hosts = gather(plan, folder, data)
        yield Opened(folder, hosts, owned=True)


@contextlib.contextmanager
def _told(folder: RunFolder) -> Iterator[None]:
    """What ends the run within is in its status, also before it has begun; SIGTERM too."""

    def terminated(number: int, frame: object) -> None:
        raise Terminated("ended by SIGTERM before the ranks were started")

    before = signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    except BaseException as error:
        if (folder.read("status.json") or {}).get("state") == "running":
            cause = str(error) or type(error).__name__
            hint = getattr(error, "hint", "")
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            folder.write("status.json", status(state, exit_code_of(error), cause=cause, hint=hint))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _hold(stack: contextlib.ExitStack, folder: RunFolder, say: Say) -> None:
    before = stack.enter_context(locked(folder.path))
    if before is not None:
        say(f"note: {folder.path}: taken over from {before}, which ended without giving it back")


def note_interrupted(out: Path, say: Say) -> None:
    """Should the last run in `out` have lost its supervisor (kill -9, a crash), say so and write it down."""
    latest = out / "latest"
    if not (latest / "run.json").is_file():
        return
    folder = RunFolder(latest.resolve())
    with contextlib.suppress(OSError, ValueError):
        last = folder.read("status.json") or {}
        if last.get("state") != "running" or holder(folder.path) is not None:
            return
        cause = "its supervisor was killed, or the host went down"
        hint = "its records are readable: what the ranks had done until then"
        folder.write("status.json", status("interrupted", None, cause=cause, hint=hint))
        clear_away(folder, watched_ranks(folder.path))
        say(f"note: the last run, {folder.run_id}, was interrupted: {cause}")
