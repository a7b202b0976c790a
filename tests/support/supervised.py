"""Runs under the real supervisor, their ranks forked from a process that has imported everything: a start takes 0.1 s.

Faults are planted for real: `plant(rank)` runs in each rank before it trains, and may patch, kill or stop what it
likes.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import psutil
from scalelab.launch.commands.run import run_json_of
from scalelab.launch.config import build
from scalelab.launch.devices import detect
from scalelab.launch.plan import Plan, resolve
from scalelab.launch.supervision import supervisor
from scalelab.launch.supervision.sighting import see
from scalelab.launch.supervision.supervisor import supervise
from scalelab.profiles.records import TRAINING, StepRecord
from scalelab.profiles.runfolder import RunFolder

from tests.support.ranks import context

MODEL = """
    import os, time, torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.calls = 0
        def forward(self, batch):
            self.calls += 1
            time.sleep({seconds})
            return self.layer(batch["x"]).square().mean()
    def build_model(): return Net()
    def example_batch(size): return {{"x": torch.randn(size, 3)}}
"""
Plant = Callable[[int], None]
MARKER = "FAULT_MARKER"


@dataclass
class Outcome:
    """What a supervised run left."""

    folder: RunFolder
    status: dict[str, Any]
    detected_seconds: float | None
    """From the fault (`act`, or the plant's `mark_fault`) to the moment at which the supervisor knew of it."""
    ended_seconds: float | None
    """From the fault to the supervisor's return, with every process gone."""
    family: list[psutil.Process] = field(default_factory=list)

    @property
    def left(self) -> list[psutil.Process]:
        """Processes of the run that are still there."""
        return [p for p in self.family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def steps(self, rank: int) -> int:
        """Steps of training that the rank's records hold."""
        records = self.folder.records(rank)[0]
        return sum(isinstance(record, StepRecord) and record.role in TRAINING for record in records)


class Silent:
    def message(self, message: dict[str, Any]) -> None:
        return

    def tick(self) -> None:
        return

    def note(self, text: str) -> None:
        return


class _Forker:
    """A launcher: a process forked from the preloaded server, in a session of its own, that forks the ranks."""

    def __init__(self, folder: RunFolder, plan: Plan, plant: Plant | None) -> None:
        self._process = context.Process(target=_fork, args=(str(folder.path), os.environ[MARKER], plant))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode


def _fork(path: str, marker: str, plant: Plant | None) -> None:
    from scalelab.launch import worker
    from scalelab.launch.setting import Setting
    from scalelab.launch.supervision import forker

    os.setsid()
    os.environ[MARKER] = marker
    folder = RunFolder(Path(path))
    if plant is not None:
        run_rank = worker.run_rank

        def planted(folder: RunFolder, rank: Any) -> Any:
            plant(rank.rank)
            return run_rank(folder, rank)

        worker.run_rank = planted
    setting = Setting(**folder.read("run.json")["setting"])
    os._exit(forker.fork_ranks(folder, setting, setting.world_size))


def run_supervised(
    place: Path,
    *,
    plant: Plant | None = None,
    act: Callable[[RunFolder], None] | None = None,
    at_step: int = 3,
    model: str = MODEL,
    seconds: float = 0.01,
    gpus: int = 2,
    **options: Any,
) -> Outcome:
    """Train a micro model (`model`, a step of about `seconds`) under the supervisor.

    `act` is called from outside, in another thread, once every rank has come to `at_step`. `options` are those of
    `scalelab run`.
    """
    file = place / "micro.py"
    file.write_text(textwrap.dedent(model).format(seconds=seconds))
    values = {"model": str(file), "gpus": gpus, "steps": 20, "warmup": 1, "out": str(place), "device": "cpu"}
    plan = resolve(build({**values, **options}), detect())
    folder = RunFolder.create(place, "fault")
    folder.write("run.json", run_json_of(plan, None, folder, ["test"]))
    family: dict[int, psutil.Process] = {}
    marker = place / "fault"
    marker.unlink(missing_ok=True)
    os.environ[MARKER] = str(marker)
    detected: list[float] = []
    over = threading.Event()

    def watch() -> None:
        acted = act is None
        while not over.is_set():
            seen = [see(folder.path, rank) for rank in range(gpus)]
            for pid in [item.pid for item in seen if item.pid is not None]:
                with contextlib.suppress(psutil.Error):
                    process = psutil.Process(pid)
                    family.update({p.pid: p for p in (process, *process.children(recursive=True))})
            if not acted and all(item.step is not None and item.step >= at_step for item in seen):
                assert act is not None
                acted = True
                mark_fault()
                act(folder)
            over.wait(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    known = supervisor.collect

    def collect(*args: Any, **kwargs: Any) -> Any:
        detected.append(time.monotonic())
        return known(*args, **kwargs)

    try:
        with mock.patch.object(supervisor, "collect", collect):
            status = supervise(folder, plan, Silent(), lambda folder, plan: _Forker(folder, plan, plant))
    finally:
        over.set()
        thread.join()
    ended = time.monotonic()
    fault = float(marker.read_text()) if marker.exists() else None
    return Outcome(
        folder,
        status,
        detected_seconds=detected[0] - fault if detected and fault else None,
        ended_seconds=ended - fault if fault else None,
        family=list(family.values()),
    )


def mark_fault() -> None:
    """Called by whatever plants a fault, in the moment in which it happens."""
    Path(os.environ[MARKER]).write_text(repr(time.monotonic()))


def pid_of(folder: RunFolder, rank: int) -> int:
    pid = see(folder.path, rank).pid
    assert pid is not None
    return pid


class Timed(Protocol):
    """`run_supervised`, with its times noted for `make faults`."""

    def __call__(self, place: Path, **options: Any) -> Outcome: ...
