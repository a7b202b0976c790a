"""The supervisor's readings of its host, into the run folder beside the cards' telemetry. No torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from ...profiles.capture.host import PERIOD_SECONDS, HostWatch
from ...profiles.runfolder import RunFolder, appending
from ...profiles.storage import OutputError
from .oom_killer import Cgroup, memory_cgroups


@contextlib.contextmanager
def watched_host(folder: RunFolder, host: int) -> Iterator[Callable[[Iterable[int]], None]]:
    """Yields what is to be called often with the ids of the ranks' processes: now and then it writes a reading. A
    reading that cannot be had or written is left out."""
    groups, due = memory_cgroups(), float("-inf")
    watch = HostWatch(lambda: _tightest(groups))
    stack = contextlib.ExitStack()
    try:
        path = folder.host_file(host)
        path.parent.mkdir(exist_ok=True)
        write = stack.enter_context(appending(path))
    except (OSError, OutputError):
        yield lambda pids: None
        return

    def look(pids: Iterable[int]) -> None:
        nonlocal due
        if (now := time.monotonic()) < due:
            return
        due = now + PERIOD_SECONDS
        if (reading := watch.read(pids)) is not None:
            with contextlib.suppress(OutputError):
                write(reading)

    try:
        yield look
    finally:
        with contextlib.suppress(OutputError):
            stack.close()


def _tightest(groups: Sequence[Cgroup]) -> tuple[int, int] | None:
    """Bytes used and the limit of the memory cgroup that has least left."""
    bounds = [
        (used, limit)
        for group in groups
        if (limit := group.limit_bytes) is not None and (used := group.used_bytes) is not None
    ]
    return min(bounds, key=lambda bound: bound[1] - bound[0], default=None)
