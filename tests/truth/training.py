"""A training whose causes of time are known: ranks that compute, and delays planted where a test wants them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scalelab.launch import strategies
from scalelab.launch.assemble import start_record
from scalelab.launch.build import prepare
from scalelab.launch.loop import train
from scalelab.launch.ranks import Rank
from scalelab.launch.schedule import Step
from scalelab.launch.setting import Setting
from scalelab.launch.strategies._contract import Sharded
from scalelab.profiles.analysis.load import Run, load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.capture.probe import Probe
from scalelab.profiles.capture.timeline import HostTimeline
from scalelab.profiles.runfolder import RunFolder, appending

from tests.support import micro_model, ranks
from tests.support.training import supported

WIDTH = 47
WARMUP = 5
BASE = Setting(world_size=2, device="cpu", micro_batch=3, lr=1e-3)


@dataclass(frozen=True)
class Delay:
    """`seconds` more in `phase` on `rank` (None: on all), in blocks of `every` steps in turn without and with it; 0 is
    in every step."""

    phase: str
    seconds: float
    rank: int | None = None
    every: int = 0

    def now(self, rank: int, step: int, phase: str) -> bool:
        on = self.every == 0 or (step // self.every) % 2 == 1
        return phase == self.phase and self.rank in (None, rank) and on


@dataclass
class Witness:
    """What the model and the loader themselves saw, by a clock read within them: seconds by step, and how long each
    planted delay was in truth (a sleep takes longer than asked)."""

    delays: list[float] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=lambda: {"data": [], "forward": []})
    begin: float = 0.0
    end: float = 0.0


class _Stretched(torch.autograd.Function):
    """Passes its input on; its backward takes longer."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stretch: Callable[[], None]) -> torch.Tensor:
        ctx.stretch = stretch
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.stretch()
        return grad_outputs[0], None


def _work(times: int, matrix: torch.Tensor) -> None:
    """A few milliseconds of the processor."""
    x = matrix
    for _ in range(times):
        x = torch.tanh(x @ matrix)


def train_planted(
    rank: Rank,
    name: str,
    steps: int,
    delays: tuple[Delay, ...],
    work: int,
    out: str,
    width: int = WIDTH,
    before: Callable[[], None] = lambda: None,
    after: Callable[[Sharded, Iterator[Any], Probe], None] = lambda run, batches, probe: None,
) -> Witness:
    """Train the micro model under strategy `name`; the rank's records go to the run folder `out`. `before` is called
    when all is ready, `after` may go on with the run."""
    (setting, *_) = supported(strategies.load(name), [BASE])
    witness, place = Witness(), {"step": 0}
    matrix = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)) / 16

    def stretch(phase: str) -> None:
        _work(work, matrix)
        for delay in delays:
            if delay.now(rank.rank, place["step"], phase):
                began = time.perf_counter()
                time.sleep(delay.seconds)
                witness.delays.append(time.perf_counter() - began)

    torch.manual_seed(0)
    model = micro_model.build_model(width)
    plain = model.forward

    def forward(batch: Any) -> torch.Tensor:
        began = time.perf_counter()
        stretch("forward")
        # Within the graph of the head, whose gradient comes first: the delay lies before every reduction.
        loss = _Stretched.apply(plain(batch), functools.partial(stretch, "backward"))
        witness.seconds["forward"].append(time.perf_counter() - began)
        return loss

    model.forward = forward
    prepare(model, micro_model.blocks(model), "micro", setting)
    run = strategies.load(name).shard(model, setting, micro_model.blocks(model))
    run.torch_optimizer.register_step_pre_hook(lambda *_: stretch("optimizer"))
    batch = {"x": torch.randn(3, 7), "y": torch.randn(3)}

    def feed() -> Iterator[Any]:
        while True:
            began = time.perf_counter()
            stretch("data")
            witness.seconds["data"].append(time.perf_counter() - began)
            yield batch
            place["step"] += 1

    folder = RunFolder(Path(out))
    with appending(folder.rank_file(rank.rank)) as write:
        write(start_record(rank, torch.device("cpu"), 1))
        probe = Probe(write, HostTimeline(), comm=ranks.recorder)
        schedule = [
            Step(index=i, role="warmup" if i < WARMUP else "measured", lr=1e-3, samples=3)
            for i in range(WARMUP + steps)
        ]
        before()
        witness.begin = time.perf_counter()
        batches = feed()
        train(run, batches, schedule, probe, lambda batch: batch)
        witness.end = time.perf_counter()
        after(run, batches, probe)
        probe.close()
    run.close()
    return witness


def planted(
    out: Path, name: str, steps: int, *delays: Delay, work: int = 4, world_size: int = 2
) -> tuple[dict[str, Any], Run, list[Witness]]:
    """The summary and records of a run with `delays`, and what each rank's model saw."""
    folder = new_folder(out, name, world_size)
    witnesses = ranks.run_ranks(train_planted, world_size, name, steps, delays, work, str(folder.path))
    run = load_run(folder)
    return summarise(run), run, witnesses


def new_folder(out: Path, name: str, world_size: int) -> RunFolder:
    """A run folder whose run.json says of such a training what analysis asks for."""
    folder = RunFolder.create(out, name)
    config = {
        "strategy": name, "engine": "native", "launcher": "fork", "device": "cpu", "micro_batch": 3,
        "grad_accumulation": 1, "global_batch": 3 * world_size, "model": "micro", "probe": "on", "compile": False,
        "record_grad_norm": False, "checkpointing": "none",
    }  # fmt: skip
    folder.write(
        "run.json",
        {
            "name": name, "device_name": "cpu", "world_size": world_size, "oversubscribed": False,
            "precision": {"name": "fp32"}, "target": None, "config": config,
        },
    )  # fmt: skip
    return folder
