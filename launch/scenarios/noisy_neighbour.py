"""Other processes compute on the run's cores."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence

from ._contract import NO_PREFIX, Planted, Scenario, subject


@contextlib.contextmanager
def _neighbours(count: int) -> Iterator[Sequence[Sequence[str]]]:
    """Processes that do nothing but compute, ended with the run; each ends by itself when this process is gone."""
    code = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100000))"
    # Each in a session of its own: Linux gives sessions like shares of the cores (sched(7), autogroup), and would give
    # all of them together no more than the run.
    started = [subprocess.Popen([sys.executable, "-c", code], start_new_session=True) for _ in range(count)]
    try:
        yield NO_PREFIX
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.wait()


def _with(count: int) -> Planted:
    return Planted(options={**subject(tokens=384), "micro_batch": 8}, around=lambda: _neighbours(count))


scenario = Scenario(
    name="noisy_neighbour",
    says="other processes compute on the run's cores",
    label="cpu_contention",
    plant=lambda strength, world_size: _with(round(strength)),
    remove=lambda strength, world_size: _with(0),
    strengths=(5, 7),
    whole=round,
    unit="processes",
    world_sizes=(1, 2),
)
