"""What measuring costs: our loop with the probe on, against the same loop with no hook and no record, in blocks that
alternate, first one way and then the other, on the same model in the same processes. What DDP sends comes by Python in
the bare loop as well: a third block, in which it does so twice, tells what that costs, which is added.

Steps of about 10 and 100 ms with up to 8 collectives; a model of 64 layers with 8 and with 64 tells what a further one
costs. On one rank, whose collectives end at once, an interval is narrow; on two ranks that share two cores with gloo's
threads it is wide.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scalelab.launch.loop import train
from scalelab.launch.ranks import Rank
from scalelab.launch.schedule import Step
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._native import NativeSharded
from scalelab.launch.supervision.pulse import Pulse, prepare
from scalelab.profiles.capture.batches import BatchTally
from scalelab.profiles.capture.comm import Mode
from scalelab.profiles.capture.finite import FiniteWatch, parts_of
from scalelab.profiles.capture.pauses import watched_pauses
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.capture.window import WindowProbe
from scalelab.profiles.runfolder import appending
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tests.bench.loop import interval
from tests.support import ranks

WIDTH = 64
BLOCKS = 8
PER_COLLECTIVE_BOUND = 15e-6


@dataclass(frozen=True)
class Case:
    """A model of `layers` in BLOCKS blocks whose step takes about `seconds`, its gradients in about `buckets` messages;
    `bound` is the share of the step that measuring may add."""

    world_size: int
    layers: int
    seconds: float
    buckets: int
    steps: int
    rounds: int
    bound: float | None


CASES = (
    Case(1, 8, 0.01, 1, 20, 40, 0.01),
    Case(1, 8, 0.01, 8, 20, 40, 0.01),
    Case(1, 64, 0.03, 8, 20, 20, None),
    Case(1, 64, 0.03, 64, 20, 20, None),
    Case(1, 8, 0.1, 8, 4, 24, 0.003),
    Case(2, 8, 0.01, 8, 20, 40, 0.01),
    Case(2, 8, 0.1, 8, 4, 24, 0.003),
)
FEW, MANY = CASES[2], CASES[3]


def model_of(case: Case) -> nn.Sequential:
    torch.manual_seed(0)
    per_block = range(case.layers // BLOCKS)
    return nn.Sequential(
        *(nn.Sequential(*(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in per_block)) for _ in range(BLOCKS))
    )


def rows_of(run: NativeSharded, case: Case) -> int:
    """Rows of a batch, so that a step takes about as long as it should on the slowest rank: asked again until it does,
    as a processor runs faster after a while of work."""
    rows = torch.tensor(500.0)
    for _ in range(8):
        times = []
        for _ in range(max(5, int(0.3 / case.seconds))):
            begin = time.perf_counter()
            run.backward(run.forward(torch.randn(int(rows), WIDTH), True), True)
            run.step(True)
            times.append(time.perf_counter() - begin)
        factor = torch.tensor(case.seconds / float(np.median(times)))
        distributed.all_reduce(factor, distributed.ReduceOp.MIN)
        if 0.95 < factor < 1.05:
            break
        rows = (rows * factor).clamp(min=16.0)
    return int(rows)


class Loss(nn.Module):
    def __init__(self, body: nn.Sequential) -> None:
        super().__init__()
        self.body = body

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.body(batch).square().mean()


def time_blocks(rank: Rank, case: Case) -> dict[str, list[float]]:
    """Seconds of each block on this rank, by loop."""
    setting = Setting(world_size=case.world_size, device="cpu", bucket_mb=25.0, overlap=True)
    plain_group: Any = distributed.new_group(backend="gloo")
    bucket_mb = case.layers * WIDTH * (WIDTH + 1) * 4 / 2**20 / case.buckets
    model = Loss(model_of(case))
    finite = FiniteWatch(parts_of(model, list(model.body)))
    wrapped = DistributedDataParallel(model, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True)
    finite.sharded()
    run = NativeSharded(model, setting, call=wrapped, replicas=case.world_size)
    batch = torch.randn(rows_of(run, case), WIDTH, generator=torch.Generator().manual_seed(rank.rank))
    schedule = [Step(index=i, role="measured", lr=1e-4, samples=1) for i in range(case.steps)]

    def feed() -> Iterator[torch.Tensor]:
        while True:
            yield batch

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        write = stack.enter_context(appending(Path(folder) / "r000.jsonl"))
        (Path(folder) / "live").mkdir()
        prepare(Path(folder), rank.rank)
        pulse, timeline = Pulse(Path(folder), rank.rank), HostTimeline()
        probe = Probe(
            write,
            timeline,
            at=pulse.at,
            finite=finite,
            comm=ranks.recorder,
            pauses=stack.enter_context(watched_pauses()),
            batches=BatchTally(()),
        )

        def measured() -> None:
            train(run, feed(), schedule, probe, lambda batch: batch)
            probe.close()

        def bare() -> None:
            train(run, feed(), schedule, WindowProbe(write, timeline), lambda batch: batch)

        def seconds(block: Callable[[], None]) -> float:
            distributed.barrier(plain_group)
            begin = time.perf_counter()
            block()
            distributed.barrier(plain_group)
            return time.perf_counter() - begin

        found: dict[str, list[float]] = {"pass": [], "on": [], "pass_twice": []}
        order: list[Mode | Literal["on"]] = ["pass", "on", "pass_twice"]
        for number in range(case.rounds + 2):
            for name in (*order, *reversed(order)):
                if name == "on":
                    took = seconds(measured)
                else:
                    with finite.off(), ranks.recorder.off(name):
                        took = seconds(bare)
                if number >= 2:
                    found[name].append(took)
        plans = [json.loads(line) for line in (Path(folder) / "r000.jsonl").read_text().splitlines()]
        found["collectives"] = [float(len(plan["collectives"])) for plan in plans if plan["kind"] == "comm_plan"][-1:]
    return found


def main() -> None:
    ranks.TIMEOUT_SECONDS = 600
    costs: dict[Case, np.ndarray] = {}
    counts: dict[Case, float] = {}
    for case in CASES:
        seconds = ranks.run_ranks(time_blocks, case.world_size, case)[0]
        passing, on, twice = (
            np.asarray(seconds[name]).reshape(-1, 2).mean(axis=1) / case.steps for name in ("pass", "on", "pass_twice")
        )
        off = passing - float((twice - passing).mean())
        costs[case], counts[case] = on - off, seconds["collectives"][0]
        low, high = interval(on / off - 1)
        share = float(np.median(on / off - 1))
        verdict = ""
        if case.bound is not None:
            verdict = f"; bound {case.bound:.1%}: {'reached' if high <= case.bound else 'MISSED'}"
        print(
            f"{case.world_size} rank(s), {counts[case]:.0f} collective(s), {case.layers} layers: step "
            f"{np.median(off) * 1e3:.2f} ms, measuring costs {share:+.2%} [{low:+.2%}, {high:+.2%}], "
            f"{np.median(on - off) * 1e6:.0f} us over {case.rounds} rounds of {case.steps} steps, of that "
            f"{np.median(twice - passing) * 1e6:.0f} us on the way through Python{verdict}",
            flush=True,
        )
    further = (costs[MANY] - costs[FEW].mean()) / (counts[MANY] - counts[FEW])
    low, high = interval(further)
    print(
        f"a further collective costs {np.median(further) * 1e6:.1f} us [{low * 1e6:.1f}, {high * 1e6:.1f}]; bound "
        f"{PER_COLLECTIVE_BOUND * 1e6:.0f} us: {'reached' if high <= PER_COLLECTIVE_BOUND else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
