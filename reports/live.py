"""What moves on the screen while a run goes on: one line, redrawn on a terminal, printed now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TextIO

from rich.live import Live
from rich.text import Text

from ..profiles.records import TRAINING
from . import units
from .console import Console

# Between two lines where nothing can be redrawn.
PLAIN_SECONDS = 5.0
# Weight of the newest step in the running mean.
SMOOTHING = 0.2
# Steps after those that train, by role.
AFTERWARDS = {
    "profiled": "under the profiler",
    "settle": "settling",
    "memory": "following memory",
    "counterfactual": "counterfactual tail",
    "bare": "counterfactual tail",
}
# Between steps, by event.
BETWEEN = {
    "profiler": "the profiler starts, or writes its trace",
    "checkpoint": "writing a checkpoint",
    "evaluation": "evaluating",
}


class LiveLine:
    """Shows how far ranks are (`launch.supervision.pulse`). A context manager; off a terminal its lines are plain."""

    def __init__(
        self,
        stream: TextIO,
        *,
        world_size: int,
        global_batch: int,
        total_steps: int,
        warmup: int,
        probe: bool,
        first_host: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = Console(stream)
        self._live = (
            Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        )
        self._world_size = world_size
        self._global_batch = global_batch
        self._total = total_steps
        self._warmup = warmup
        self._probe = probe
        self._first_host = first_host
        self._clock = clock
        self._states: dict[int, str] = {}
        self._last: dict[str, Any] | None = None
        self._mean_seconds: float | None = None
        self._doing: tuple[str, float] | None = None
        self._began = clock()
        self._printed_at = float("-inf")
        self._printed = ""

    def __enter__(self) -> LiveLine:
        if self._live is not None:
            self._live.start()
        self.tick()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def message(self, message: dict[str, Any]) -> None:
        """Take in what a rank said."""
        if "step" in message:
            seconds = message["seconds"]
            # The second step starts the mean anew: the first one compiles, and fills caches and queues.
            fresh = self._mean_seconds is None or message["step"] == 1
            mean = seconds if fresh else self._mean_seconds or seconds
            self._mean_seconds = mean + SMOOTHING * (seconds - mean)
            self._last = message
        elif "doing" in message:
            self._doing = None if message["doing"] is None else (message["doing"], self._clock())
        else:
            self._states[message["rank"]] = message["state"]

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._console.print(Text(text), soft_wrap=True)

    def tick(self) -> None:
        """Redraw, or print the line if it is time."""
        line = self.line()
        if self._live is not None:
            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
            return
        now = self._clock()
        news = self._last is None and line.partition(" (")[0] != self._printed.partition(" (")[0]
        if news or (now - self._printed_at >= PLAIN_SECONDS and line != self._printed):
            self._console.print(Text(line), soft_wrap=True)
            self._printed, self._printed_at = line, now

    def line(self) -> str:
        """The line as it stands."""
        elapsed = self._clock() - self._began
        if self._doing is not None and self._clock() - self._doing[1] >= PLAIN_SECONDS:
            return f"{BETWEEN[self._doing[0]]} ({units.duration(self._clock() - self._doing[1])})"
        if self._last is not None:
            return self._progress(self._last)
        training = sum(state in ("training", "finished") for state in self._states.values())
        if training == self._world_size:
            what = "first step" if self._probe else "training, probe off: no figures until the end"
            what = what if self._first_host else "training: host 0 shows how far"
            return f"{what} ({elapsed:.0f} s)"
        if not any(rank >= 0 for rank in self._states):
            return f"starting: importing torch ({elapsed:.0f} s)"
        return f"starting ranks {training}/{self._world_size} ({elapsed:.0f} s)"

    def _progress(self, message: dict[str, Any]) -> str:
        assert self._mean_seconds is not None
        done = message["step"] + 1
        if message["role"] not in TRAINING:
            what = AFTERWARDS.get(message["role"], message["role"])
            if (tail := message.get("tail")) is not None:
                left = units.duration(tail["seconds_left"])
                return f"{what}: block {tail['done'] + 1} of {tail['of']}, about {left} left"
            return f"{what}, after {self._total} steps: step {done - self._total}"
        role = "warm-up " if message["role"] == "warmup" else ""
        left = (self._total - done) * self._mean_seconds
        return (
            f"{role}step {done}/{self._total}  {self._mean_seconds:.3f} s/step  "
            f"{self._global_batch / self._mean_seconds:.1f} samples/s  rank 0's loss {message['loss']:.3f}  "
            f"{message['memory_bytes'] / 2**30:.2f} GiB  ETA {units.duration(left)}"
        )
