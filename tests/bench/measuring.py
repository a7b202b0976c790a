"""What measuring costs: our loop with the probe on, against the same loop with no hook, no seam and no record, in ABBA
blocks on the same model in the same processes.

Steps of about 10 and 100 ms with 1, 8 and 64 collectives tell the cost of a further one from the rest. On one rank,
whose collectives end at once, an interval is narrow; on two ranks that share two cores with gloo's threads it is wide.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scalelab.launch.loop import train
from scalelab.launch.ranks import Rank
from scalelab.launch.schedule import Step
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._native import NativeSharded
from scalelab.launch.supervision.pulse import Pulse
from scalelab.profiles.capture.finite import FiniteWatch, parts_of
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.capture.window import WindowProbe
from scalelab.profiles.runfolder import appending
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from tests.bench.loop import interval
from tests.support import ranks

WIDTH = 64


@dataclass(frozen=True)
class Case:
    """A model of `layers` on batches of `rows`, its gradients in about `buckets` messages."""

    name: str
    world_size: int
    layers: int
    rows: int
    buckets: int
    steps: int
    rounds: int
    bound: float


CASES = (
    Case("1 collective", 1, 8, 2900, 1, 20, 40, 0.01),
    Case("8 collectives", 1, 8, 2900, 8, 20, 40, 0.01),
    Case("64 collectives", 1, 64, 330, 64, 20, 40, 0.10),
    Case("8 collectives", 1, 8, 26000, 8, 4, 30, 0.003),
    Case("8 collectives", 2, 8, 2000, 8, 20, 40, 0.01),
    Case("8 collectives", 2, 8, 20000, 8, 4, 30, 0.003),
)


def model_of(case: Case) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(case.layers):
        layers += [nn.Linear(WIDTH, WIDTH), nn.GELU()]
    return nn.Sequential(*layers)


class Loss(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.body(batch).square().mean()


def time_blocks(rank: Rank, case: Case) -> dict[str, list[float]]:
    """Seconds of each block on this rank, by loop."""
    setting = Setting(world_size=case.world_size, device="cpu", bucket_mb=25.0, overlap=True)
    batch = torch.randn(case.rows, WIDTH, generator=torch.Generator().manual_seed(rank.rank))
    plain_group: Any = distributed.new_group(backend="gloo")
    bucket_mb = case.layers * WIDTH * (WIDTH + 1) * 4 / 2**20 / case.buckets
    model = Loss(model_of(case))
    finite = FiniteWatch(parts_of(model, list(model.body.children())))
    wrapped = DistributedDataParallel(model, bucket_cap_mb=bucket_mb, gradient_as_bucket_view=True)
    finite.sharded()
    run = NativeSharded(model, setting, call=wrapped, replicas=case.world_size)
    schedule = [Step(index=i, role="measured", lr=1e-4, samples=1) for i in range(case.steps)]

    def feed() -> Iterator[torch.Tensor]:
        while True:
            yield batch

    with tempfile.TemporaryDirectory() as name, appending(Path(name) / "r000.jsonl") as write:
        (Path(name) / "live").mkdir()
        pulse, timeline = Pulse(Path(name), rank.rank), HostTimeline()
        probe = Probe(write, timeline, at=pulse.at, finite=finite, comm=ranks.recorder)

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

        found: dict[str, list[float]] = {"off": [], "on": []}
        for number in range(case.rounds + 2):
            for name in ("off", "on", "on", "off"):
                if name == "on":
                    took = seconds(measured)
                else:
                    with finite.off(), ranks.recorder.off():
                        took = seconds(bare)
                if number >= 2:
                    found[name].append(took)
    return found


def main() -> None:
    ranks.TIMEOUT_SECONDS = 600
    for case in CASES:
        seconds = ranks.run_ranks(time_blocks, case.world_size, case)[0]
        off, on = (np.asarray(seconds[name]).reshape(-1, 2).sum(axis=1) / 2 / case.steps for name in ("off", "on"))
        low, high = interval(on / off - 1)
        cost = float(np.median(on / off - 1))
        verdict = "reached" if high <= case.bound else "MISSED"
        print(
            f"{case.world_size} rank(s), {case.name}: step {np.median(off) * 1e3:.2f} ms, measuring costs {cost:+.2%} "
            f"[{low:+.2%}, {high:+.2%}] = "
            f"{np.median(on - off) * 1e6:.0f} us over {case.rounds} ABBA rounds of {case.steps} steps; bound "
            f"{case.bound:.1%}: {verdict}"
        )


if __name__ == "__main__":
    main()
