"""A sweep in small with every kind of row and section once, made of no real run: what reports are tested against.

`python -m tests.support.sweep_example` prints its sweep-summary.json.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from scalelab.profiles.analysis.sweep import write_sweep_summary
from scalelab.profiles.sweepfolder import SweepFolder

from .sweeps import COMM, SHARES, MadeSweep

SPREAD = (0.99, 1.0, 1.01)
SENDING = {**SHARES, "unattributed": 0.05, "comm.transfer": 0.06, "comm.waiting": 0.03, "comm.queued": 0.01}


def example_sweep(path: Path, usd_per_gpu_hour: float | None = 2.0) -> SweepFolder:
    """DDP and ZeRO-3 at 1 to 8 ranks, three runs each; cells that were refused, failed, left the tolerance, are missing
    or were made once; an oversubscribed one; a run folder that nobody counts."""
    made = MadeSweep(path, repeats=3)
    for strategy, contention, coherency in (("ddp", 0.03, 0.002), ("zero3", 0.08, 0.001)):
        for world in (1, 2, 4, 8):
            seconds = (1 + contention * (world - 1) + coherency * world * (world - 1)) / world
            made.cell(
                strategy,
                world,
                [seconds * spread for spread in SPREAD],
                shares={**SHARES, **dict.fromkeys(COMM, 0.0)} if world == 1 else SENDING,
                usd_per_gpu_hour=usd_per_gpu_hour,
                events=0.02,
            )
    made.cell(
        "ddp",
        16,
        [0.3, 0.31, 0.32],
        shares=SENDING,
        usd_per_gpu_hour=usd_per_gpu_hour,
        facts={"oversubscribed": True},
    )
    made.cell("deepspeed", 2, refused="deepspeed: fp16 needs CUDA; use bf16")
    apart = made.cell("zero2", 2)
    made.attempt(apart, 0, made.run_folder(apart, 0).run_id, 8, "loss parity: loss of step 3 is 1.2, expected 1.1")
    failed = made.cell("zero1", 2)
    made.attempt(failed, 0, None, 7, "rank 1 ran out of memory")
    made.cell("fsdp2", 2)
    made.cell("fsdp2", 4, [0.4], shares=SENDING, usd_per_gpu_hour=usd_per_gpu_hour)
    left = made.run_folder(failed, 9)
    left.write("run.json", {"name": "zero1-fp32-x2", "run_id": left.run_id})
    left.write("status.json", {"state": "interrupted", "exit_code": None, "cause": "its supervisor was killed"})
    return made.write()


def example_summary(usd_per_gpu_hour: float | None = 2.0) -> dict[str, Any]:
    """Its sweep-summary.json."""
    with TemporaryDirectory() as place:
        return write_sweep_summary(example_sweep(Path(place) / "sweep", usd_per_gpu_hour))


if __name__ == "__main__":
    print(orjson.dumps(example_summary(), option=orjson.OPT_INDENT_2).decode())
