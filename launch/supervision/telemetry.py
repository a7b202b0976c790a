"""The side process that reads this host's cards while a run on CUDA lasts, and its start and end. No torch.

`python -m scalelab.launch.supervision.telemetry RUN_FOLDER HOST FIRST_RANK RANKS`. It ends when its standard input
does, which its parent holds open; the kernel kills it with that parent, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ...profiles.capture.telemetry import watch
from ...profiles.records import StartRecord
from ...profiles.runfolder import RunFolder, appending
from ..environment import boot_id
from ..plan import Plan
from .parent import PARENT_VARIABLE, die_with_parent, given_parent, leave_signals_to_ranks

# Between two looks whether all ranks have said which card they have: well before their first step.
LOOK_SECONDS = 0.2
# For the last reading; one that waits for a driver that does not answer is not waited for.
END_SECONDS = 2.0


@contextlib.contextmanager
def watched_cards(folder: RunFolder, plan: Plan) -> Iterator[None]:
    """Within, the cards of this host's ranks are read into the run folder; nothing is done on CPU.

    Never raises and never waits long: a process that cannot be started, or ends, leaves a run without telemetry.
    """
    process = None
    if plan.setting.device == "cuda":
        with contextlib.suppress(OSError):
            process = start(folder, plan.config.node_rank, plan.local_ranks)
    try:
        yield
    finally:
        if process is not None:
            end(process)


def start(folder: RunFolder, host: int, ranks: range) -> subprocess.Popen[bytes]:
    """Start the side process for the `ranks` of host number `host`, in a session of its own. Raises OSError."""
    numbers = [str(number) for number in (host, ranks.start, len(ranks))]
    command = [sys.executable, "-m", "scalelab.launch.supervision.telemetry", str(folder.path), *numbers]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    with open(folder.path / "logs" / f"telemetry-h{host:03d}.log", "ab") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """Let the side process take its last reading, and see that it is gone."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits in the driver cannot be killed
            process.wait(END_SECONDS)


def main() -> None:
    die_with_parent(given_parent())
    leave_signals_to_ranks()
    folder, (host, first, count) = RunFolder(Path(sys.argv[1])), map(int, sys.argv[2:5])
    if (uuids := uuids_of(folder, range(first, first + count), _ended)) is None:
        return
    path = folder.telemetry_file(host)
    path.parent.mkdir(exist_ok=True)
    with appending(path) as write:
        watch(uuids, write, _ended, host=socket.gethostname(), boot_id=boot_id())


def uuids_of(folder: RunFolder, ranks: range, stopped: Callable[[float], bool]) -> dict[int, str | None] | None:
    """Which card each rank has, once all have written it down; None when the run ended before."""
    found: dict[int, str | None] = {}
    while True:
        for rank in ranks:
            for record in folder.records(rank)[0] if rank not in found else ():
                if isinstance(record, StartRecord):
                    found[rank] = record.device_uuid
        if len(found) == len(ranks):
            return found
        if stopped(LOOK_SECONDS):
            return None


def _ended(seconds: float) -> bool:
    """Wait so long, at most until the standard input ends, and whether it has."""
    return bool(select.select([sys.stdin], [], [], max(seconds, 0.0))[0])


if __name__ == "__main__":
    main()
