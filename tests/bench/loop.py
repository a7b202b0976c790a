"""The step loop with the probe off and on, against a hand-written DDP loop of the same model, in ABBA blocks.

All three run in the same two processes on the same model, batches and optimizer, so that drift hits all alike. One
block is a few steps; the ratio of a round is plain time / our time, and 1.0 means that our loop costs nothing. Ours say
where they are, beat and ask each other whether to stop, as in a run; with the probe on they also watch for numbers that
are not finite.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scalelab.launch import strategies
from scalelab.launch.build import prepare
from scalelab.launch.loop import train
from scalelab.launch.optimizer import make_optimizer
from scalelab.launch.ranks import Rank, control_group, largest_over
from scalelab.launch.schedule import Step
from scalelab.launch.setting import Setting
from scalelab.launch.stopping import Stopping
from scalelab.launch.supervision.pulse import Pulse
from scalelab.launch.supervision.pulse import prepare as prepare_pulse
from scalelab.models import driving
from scalelab.profiles.capture.finite import FiniteWatch, parts_of
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.capture.window import WindowProbe
from scalelab.profiles.runfolder import appending
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tests.support import ranks

WORLD_SIZE = 2
MICRO_BATCH = 2
ROUNDS = 24
# Steps of a block, so that each takes about a second.
PRESETS = {"nano": 10, "tiny": 2}
BOUND = 0.99


def time_blocks(rank: Rank, preset: str, steps: int) -> dict[str, list[float]]:
    """Seconds of each block on this rank, by loop, in the order in which they ran."""
    setting = Setting(world_size=WORLD_SIZE, device="cpu", micro_batch=MICRO_BATCH, bucket_mb=25.0, overlap=True)
    batches = [driving.example_batch(MICRO_BATCH, preset=preset, seed=rank.rank + index) for index in range(4)]

    def feed() -> Iterator[Any]:
        while True:
            yield from batches

    torch.manual_seed(0)
    plain_model = driving.build_model(preset)
    plain = DistributedDataParallel(plain_model, gradient_as_bucket_view=True, forward_sync_buffers=False)
    optimizer = make_optimizer(list(plain_model.parameters()), setting)

    def plain_block() -> None:
        data = feed()
        for _ in range(steps):
            loss = plain(next(data))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def our_block(probed: bool) -> Callable[[], None]:
        torch.manual_seed(0)
        model = driving.build_model(preset)
        prepare(model, [], preset, setting)
        finite = FiniteWatch(parts_of(model, driving.blocks(model))) if probed else None
        run = strategies.load("ddp").shard(model, setting, [])
        if finite is not None:
            finite.sharded()
        schedule = [Step(index=i, role="measured", lr=1e-3, samples=MICRO_BATCH) for i in range(steps)]

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "live").mkdir()
        write = stack.enter_context(appending(folder / "r000.jsonl"))
        prepare_pulse(folder, rank.rank)
        pulse = Pulse(folder, rank.rank)
        pulse.start_beating(lambda: None)
        stopping = Stopping(control)

        def block() -> None:
            timeline = HostTimeline()
            probe = (
                Probe(write, timeline, at=pulse.at, finite=finite, comm=ranks.recorder)
                if probed
                else WindowProbe(write, timeline, pulse.at)
            )
            train(run, feed(), schedule, probe, lambda batch: batch, stop=stopping.after_step)
            probe.close()

        return block

    stack, control = contextlib.ExitStack(), largest_over(control_group())
    blocks = {"plain": plain_block, "probe off": our_block(False), "probe on": our_block(True)}
    for block in blocks.values():
        block()
    found: dict[str, list[float]] = {name: [] for name in blocks}
    order = list(blocks)
    for index in range(ROUNDS):
        for name in order if index % 2 == 0 else reversed(order):
            distributed.barrier()
            begin = time.perf_counter()
            blocks[name]()
            distributed.barrier()
            found[name].append(time.perf_counter() - begin)
    stack.close()
    return found


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median ratio over rounds."""
    generator = np.random.Generator(np.random.Philox(0))
    drawn = ratios[generator.integers(0, len(ratios), size=(4000, len(ratios)))]
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    for preset, steps in PRESETS.items():
        seconds = ranks.run_ranks(time_blocks, WORLD_SIZE, preset, steps)[0]
        plain = np.asarray(seconds["plain"])
        print(f"{preset}: plain DDP loop {np.median(plain) / steps * 1e3:.1f} ms a step, {WORLD_SIZE} ranks")
        for name in ("probe off", "probe on"):
            ratios = plain / np.asarray(seconds[name])
            low, high = interval(ratios)
            verdict = "reached" if np.median(ratios) >= BOUND else "MISSED"
            print(
                f"  {name:10} throughput ratio to plain {np.median(ratios):.4f} [{low:.4f}, {high:.4f}] over "
                f"{len(ratios)} rounds of {steps} steps, bound {BOUND}: {verdict}"
            )


if __name__ == "__main__":
    main()
