"""Throughput of every strategy and engine relative to DDP, and seconds from the command to the first finished step.

Whole runs of `scalelab run` on two ranks, interleaved so that drift hits all alike; the ratio of a round is a
strategy's samples/s over DDP's in the same round. On CPU the ranking says nothing about GPUs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from scalelab.launch import strategies

ROUNDS = 3
COMMAND = ["run", "--model=tiny", "--gpus=2", "--steps=20", "--warmup=4", "--json"]
POLL_SECONDS = 0.02


def variants() -> list[tuple[str, str]]:
    """Every strategy with each engine that runs it, DDP first; `single` runs on one rank and is left out."""
    names = sorted((name for name in strategies.names() if name != "single"), key=lambda name: name != "ddp")
    return [(name, engine) for name in names for engine in strategies.load(name).engines]


def one_run(name: str, engine: str, out: Path) -> tuple[float, float]:
    """Samples per second, and seconds from the command to the first finished step of rank 0."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "scalelab", *COMMAND, f"--strategy={name}", f"--engine={engine}", f"--out={out}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    first: float | None = None
    records = out / "latest" / "ranks" / "r000.jsonl"
    while process.poll() is None and first is None:
        if records.exists() and b'"kind":"step"' in records.read_bytes():
            first = time.monotonic() - begin
        time.sleep(POLL_SECONDS)
    text, _ = process.communicate()
    assert process.returncode == 0, f"{name} {engine}: exit {process.returncode}"
    assert first is not None
    return json.loads(text)["throughput"]["samples_per_second"], first


def main() -> None:
    speed: dict[tuple[str, str], list[float]] = {variant: [] for variant in variants()}
    start: dict[tuple[str, str], list[float]] = {variant: [] for variant in variants()}
    with tempfile.TemporaryDirectory() as folder:
        for index in range(ROUNDS):
            for variant in variants() if index % 2 == 0 else reversed(variants()):
                samples, seconds = one_run(*variant, Path(folder) / f"{'-'.join(variant)}-{index}")
                speed[variant].append(samples)
                start[variant].append(seconds)
    base = np.asarray(speed["ddp", "native"])
    print(f"tiny, fp32, 2 CPU ranks, {ROUNDS} rounds: throughput / ddp's in the same round; [lowest, highest]")
    for (name, engine), samples in speed.items():
        ratio, seconds = np.asarray(samples) / base, np.asarray(start[name, engine])
        print(
            f"  {name:6} {engine:10} {np.median(ratio):.3f} [{ratio.min():.3f}, {ratio.max():.3f}]  "
            f"{np.median(samples):6.2f} samples/s  first step after {np.median(seconds):.1f} s "
            f"[{seconds.min():.1f}, {seconds.max():.1f}]"
        )


if __name__ == "__main__":
    main()
