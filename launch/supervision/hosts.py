"""Several hosts, one run: their supervisors share bad news while it lasts, and agree on how it ended. No torch.

At the end each host sends what its ranks wrote, and what it knows, to host 0, which decides and tells the others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from ...profiles.runfolder import RunFolder
from ..errors import Exit
from ..plan import Plan
from .report import Evidence, Report
from .verdict import conclude
from .watchdog import Trouble
from .wire import SENT, Wire, WireError

BEAT_SECONDS = 1.0
# A host that is not heard of for so long is lost: well before a hang of its peers is noticed.
LOST_SECONDS = 15.0
# From the news of trouble to the reports of all hosts: ranks get their time to tell, stacks are asked for.
REPORT_SECONDS = 12.0
# All ranks end together; files may take longer, but show signs of life.
FINISH_SECONDS = 60.0


class Hosts:
    """The run's other hosts, from their meeting on (`meeting.py`).

    `wires` are by node rank: host 0 has one to each, the others one to it. `shared` says whether all hosts write to
    `folder` on a shared disk; else each has its own.
    """

    def __init__(self, plan: Plan, wires: Mapping[int, Wire], folder: RunFolder, *, shared: bool) -> None:
        self._plan = plan
        self._folder = folder
        self.shared = shared
        self._wires = dict(wires)
        self._names = {node: wire.name for node, wire in wires.items()}
        self._lost: dict[int, Evidence] = {}
        self._reports: dict[int, Report] = {}
        self._final: dict[str, Any] | None = None
        self._told = 0.0

    def trouble(self) -> Trouble | None:
        """Keep in touch. `lost` or `hung` when another host has trouble of that kind, or is not heard of any more."""
        now = time.monotonic()
        if now - self._told > BEAT_SECONDS:
            self._told = now
            self._tell(kind="beat")
        found: Trouble | None = None
        for message in self._listen(0.0):
            if message["kind"] == "trouble":
                found = "hung" if message.get("hung") else found or "lost"
        return found or ("lost" if self._lost else None)

    def settle(self, report: Report) -> dict[str, Any]:
        """Exchange reports and files; the final status, the same on all hosts that can be reached."""
        bad = bool(report.evidence or report.stuck or report.signal is not None or self._lost)
        if bad:
            self._tell(kind="trouble", hung=bool(report.stuck))
        limit = REPORT_SECONDS if bad else FINISH_SECONDS
        return self._gather(report, limit) if self._is_first else self._report(report)

    @property
    def _is_first(self) -> bool:
        return self._plan.config.node_rank == 0

    def _gather(self, report: Report, limit: float) -> dict[str, Any]:
        """On host 0: wait for every host that is not lost, then decide."""
        self._until(lambda: not (set(self._wires) - set(self._reports)), limit)
        for node in sorted(set(self._wires) - set(self._reports)):
            self._lose(node, "sent no report")
        final = conclude([report, *self._reports.values()], list(self._lost.values()))
        self._tell(kind="final", status=final)
        return final

    def _report(self, report: Report) -> dict[str, Any]:
        """On any other host: report to host 0 and hear its decision; decide alone when it is gone."""
        wire = self._wires.get(0)
        if wire is not None:
            with contextlib.suppress(WireError):
                if not self.shared:
                    for path in sorted(self._folder.path.glob("*/*")):
                        name = f"{path.parent.name}/{path.name}"
                        # Host 0 has a launcher.log of its own.
                        if SENT.fullmatch(name) and path.is_file() and path.name != "launcher.log":
                            wire.send_file(self._folder.path, name)
                wire.send(kind="report", report=report.to_json(time.monotonic()))
            # However long other hosts send their files: host 0 beats until it has them.
            self._until(lambda: self._final is not None, float("inf"))
        if self._final is None and 0 in self._wires:
            self._lose(0, "did not say how the run ended")
        return self._final or conclude([report], list(self._lost.values()))

    def _until(self, done: Callable[[], bool], seconds: float) -> None:
        """Listen until `done`, at most so long after the last piece of a file. Silent hosts are lost before."""
        began = time.monotonic()
        while not done() and self._wires:
            filed_at = max((wire.filed_at for wire in self._wires.values()), default=began)
            if time.monotonic() > max(began, filed_at) + seconds:
                return
            if time.monotonic() - self._told > BEAT_SECONDS:
                self._told = time.monotonic()
                self._tell(kind="beat")
            self._listen(0.1)

    def _listen(self, seconds: float) -> list[dict[str, Any]]:
        """What has come from all hosts; reports and the final status are kept, hosts that are gone are noted."""
        messages = []
        # Only host 0 is sent files, and only where it does not see them anyway.
        files = self._folder.path if self._is_first and not self.shared else None
        for node, wire in list(self._wires.items()):
            try:
                while (message := wire.receive(seconds, files)) is not None:
                    self._take(node, message)
                    messages.append(message)
                    seconds = 0.0
            except (WireError, KeyError, TypeError, ValueError, AttributeError) as error:
                self._lose(node, f"ended the connection ({error})")
                continue
            if time.monotonic() - wire.heard_at > LOST_SECONDS:
                self._lose(node, f"has not been heard of for {time.monotonic() - wire.heard_at:.0f} s")
        return messages

    def _take(self, node: int, message: dict[str, Any]) -> None:
        if message["kind"] == "report":
            self._reports[node] = Report.from_json(message["report"], time.monotonic())
        elif message["kind"] == "final" and node == 0:
            Exit(message["status"]["exit_code"])
            self._final = message["status"]

    def _tell(self, **message: Any) -> None:
        for node, wire in list(self._wires.items()):
            try:
                wire.send(**message)
            except WireError as error:
                self._lose(node, f"ended the connection ({error})")

    def _lose(self, node: int, how: str) -> None:
        wire = self._wires.pop(node)
        wire.close()
        if node in self._reports or (node == 0 and self._final is not None):
            return
        count = len(self._plan.local_ranks)
        ranks = ", ".join(str(rank) for rank in range(node * count, (node + 1) * count))
        self._lost[node] = Evidence(
            rank=node * count,
            host=self._names[node],
            at=wire.heard_at,
            phase=None,
            step=None,
            exit_code=Exit.WORKER_DIED,
            cause=f"host {node} ({self._names[node]}, ranks {ranks}) {how}",
            hint="is that host up, and the network between the hosts?",
        )
