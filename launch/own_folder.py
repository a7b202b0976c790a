"""The run folder of a job under its own loop, seen from one of its ranks: writing to it ends no job."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..profiles.records import Record
from ..profiles.runfolder import RunFolder, appending
from ..profiles.storage import OutputError
from .errors import Exit
from .lock import locked
from .own_job import say
from .ranks import Rank
from .supervision.verdict import status
from .text import redacted


class OwnFolder:
    """`folder`, with `run_json` and the status where this is rank 0. Raises OutputError when it cannot be written."""

    def __init__(self, folder: RunFolder, rank: Rank, run_json: dict[str, Any]) -> None:
        self._folder = folder
        self._rank = rank
        self._leads = rank.rank == 0
        self._run_json = run_json
        self._lost: str | None = None
        self._lock, self._records = contextlib.ExitStack(), contextlib.ExitStack()
        if self._leads:
            self._lock.enter_context(locked(folder.path))
            folder.write("run.json", run_json)
            folder.write("status.json", status("running", None))
        self._append = self._records.enter_context(appending(folder.rank_file(rank.rank)))

    def write(self, *records: Record) -> None:
        """Append `records` of this rank."""
        if self._lost is None:
            with self._kept():
                self._append(*records)

    def batch_is(self, drawn: Sequence[int]) -> None:
        """What a step takes, known after the first that counted its samples: those of each batch that it drew."""
        if self._leads and any(drawn) and self._run_json["config"]["global_batch"] is None:
            each = drawn[0] if len(set(drawn)) == 1 else None
            self._run_json["config"].update(micro_batch=each, global_batch=sum(drawn) * self._rank.world_size)
            with self._kept():
                self._folder.write("run.json", self._run_json)

    def failed(self, error: BaseException, step: int | None) -> None:
        """Make the job's status that `error` ended this rank's `step`, or what lies between two."""
        where = {"rank": self._rank.rank, "host": socket.gethostname(), "phase": None, "step": step}
        if isinstance(error, KeyboardInterrupt):
            self._settle(status("interrupted", Exit.INTERRUPTED, culprit=where, cause="Ctrl-C"))
        else:
            cause = redacted(f"{type(error).__name__}: {error}")
            self._settle(status("failed", Exit.WORKER_DIED, culprit=where, cause=cause))

    def gone_on(self) -> None:
        """The job goes on after a step that failed on this rank: it runs."""
        with contextlib.suppress(Exception):
            culprit = (self._folder.read("status.json") or {}).get("culprit") or {}
            if culprit.get("rank") == self._rank.rank:
                self._folder.write("status.json", status("running", None))

    def close(self) -> None:
        """No record comes any more."""
        with self._kept():
            self._records.close()
        self._append = lambda *records: None  # of an event within which the probe was closed
        if self._lost is not None:
            self._settle(status("failed", Exit.PREFLIGHT, cause=f"records are incomplete: {self._lost}"))

    def report(self, *, at_exit: bool) -> None:
        """The job is over: its status, and on rank 0 the summary and the report. Whatever keeps them from being made,
        the process goes on: the records are there."""
        if self._leads:
            self._settle(status("finished", Exit.OK))
            try:
                self._report_elsewhere() if at_exit else self._report()
            except (Exception, KeyboardInterrupt) as error:
                with contextlib.suppress(Exception):
                    what = f"{type(error).__name__}: {error}"
                    say(f"no report: {what}; scalelab report {self._folder.path} makes it")
        self._lock.close()

    def _report(self) -> None:
        from .reporting import report_after

        report_after(self._folder, say)

    def _report_elsewhere(self) -> None:
        """In a process of its own: one that ends can import nothing that uses threads, and where it runs any code of
        `exec` after Ctrl-C, its exit code no longer says so."""
        command = [sys.executable, "-m", "scalelab", "report", str(self._folder.path)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            raise RuntimeError(next((line for line in lines if line.startswith("error")), f"code {done.returncode}"))

    def _settle(self, found: dict[str, Any]) -> None:
        """Make `found` the job's status, where none but that it runs is told yet."""
        with contextlib.suppress(Exception):
            if (self._folder.read("status.json") or {}).get("state") == "running":
                self._folder.write("status.json", found)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Where the disk does not take what is written within, the job goes on and nothing more is recorded."""
        try:
            yield
        except OutputError as error:
            if self._lost is None:
                self._lost = str(error)
                say(f"nothing more is recorded: {error}; the job goes on")


def what_ended_the_process() -> BaseException | None:
    """The exception that nobody caught, at the process's end. An interactive session goes on after one."""
    return None if hasattr(sys, "ps1") or sys.flags.interactive else getattr(sys, "last_value", None)
