"""What of the host's work is the run's own: all that came from its ranks, from any thread, ended or not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from scalelab.profiles.capture.host import HostWatch

TICKS = os.sysconf("SC_CLK_TCK")


def process(proc: Path, pid: int, seconds: float, faults: int, children: dict[int, str]) -> None:
    """A process as /proc shows it: its time on cores, its major faults, and the children of each of its threads."""
    fields = ["S", "1", *["0"] * 7, str(faults), "0", str(round(seconds * TICKS)), "0", "0", "0"]
    (proc / str(pid)).mkdir(exist_ok=True)
    (proc / str(pid) / "stat").write_text(f"{pid} (a name) {' '.join(fields)}")
    for thread, named in children.items():
        (proc / str(pid) / "task" / str(thread)).mkdir(parents=True, exist_ok=True)
        (proc / str(pid) / "task" / str(thread) / "children").write_text(named)


def test_children_of_every_thread_count_and_stay_counted_when_they_end(tmp_path: Path) -> None:
    process(tmp_path, 10, 1.0, 1, {10: "11", 15: "12 13"})
    for pid, faults in ((11, 2), (12, 3), (13, 4)):
        process(tmp_path, pid, 0.5, faults, {pid: ""})
    watch = HostWatch(proc=tmp_path)
    assert watch._own([10]) == (pytest.approx(2.5), 10)
    (tmp_path / "13" / "stat").unlink()
    process(tmp_path, 10, 1.5, 1, {10: "11", 15: "12"})
    assert watch._own([10]) == (pytest.approx(3.0), 10)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_real_child_of_a_thread_is_found() -> None:
    """As a loader's processes are where a thread draws from it."""
    started: list[subprocess.Popen[bytes]] = []
    over = threading.Event()

    def start() -> None:
        started.append(subprocess.Popen(["sleep", "60"]))
        over.wait(60)

    thread = threading.Thread(target=start)
    thread.start()
    while not started:
        over.wait(0.01)
    try:
        assert started[0].pid in HostWatch()._children(os.getpid())
    finally:
        started[0].kill()
        started[0].wait()
        over.set()
        thread.join()
