"""The step loop. It owns no clock, knows no strategy, and is the same for every run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..profiles.capture.block import BlockTimer
from ..profiles.capture.memory_step import MemoryProbe
from ..profiles.capture.probe import Probe
from ..profiles.capture.ranges import RangedProbe
from ..profiles.capture.window import WindowProbe
from ..profiles.records import EventKind
from .schedule import Step
from .strategies._contract import Sharded

# Something between steps: its kind, whether it is due after a step, and what it does, returning what it found.
Event = tuple[EventKind, Callable[[Step], bool], Callable[[Step], dict[str, Any]]]


def train(
    run: Sharded,
    batches: Iterator[Any],
    steps: Iterable[Step],
    probe: Probe | RangedProbe | MemoryProbe | WindowProbe | BlockTimer,
    to_device: Callable[[Any], Any],
    events: Iterable[Event] = (),
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train `run` for `steps`, drawing `run.setting.accumulation` micro-batches from `batches` for each.

    Ends early, after a step and its events, when `stop` says so (on all ranks alike).
    """
    accumulation = run.setting.accumulation
    for step in steps:
        for group in run.param_groups:
            group["lr"] = step.lr
        with probe.step(step):
            for micro in range(accumulation):
                last = micro == accumulation - 1
                with probe.phase("data"):
                    batch = next(batches)
                probe.drawn(batch)
                with probe.phase("h2d"):
                    batch = to_device(batch)
                with probe.phase("forward"):
                    loss = run.forward(batch, last)
                with probe.phase("backward"):
                    run.backward(loss, last)
                probe.loss(loss)
                if last:
                    probe.gradients_ready(run)
                with probe.phase("optimizer"):
                    run.step(last)
            probe.updated(run)
        for kind, due, act in events:
            if due(step):
                with probe.event(kind, step.index) as values:
                    values.update(act(step))
        if stop():
            return
