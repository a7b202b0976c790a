"""Real runs of one configuration, made one after the other and kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from scalelab.profiles.analysis.compared import UnfitError, compared_run
from scalelab.profiles.runfolder import RunFolder

# As many as disjoint sides of ten need; no new one is begun after the limit.
LEAST, LIMIT_SECONDS = 20, 480
COMMAND = ("run", "--model=nano", "--strategy=ddp", "--gpus=2", "--steps=100", "--warmup=10", "--memory-step=off")


@dataclass(frozen=True)
class Made:
    """A run: its mean step, the interval that it claims for it by itself, and what else the machine did."""

    name: str
    step_seconds: float
    ci95: tuple[float, float]
    load: float | None
    processor: str


def pool(folder: Path) -> list[Made]:
    """The runs in `folder`, at least LEAST where the time allows."""
    folder.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    while len(found := _finished(folder)) < LEAST and time.monotonic() - begin < LIMIT_SECONDS:
        load = os.getloadavg()[0]
        command = [sys.executable, "-m", "scalelab", *COMMAND, f"--out={folder}", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr.strip()[-500:], file=sys.stderr)
            break
        run = Path(orjson.loads(done.stdout)["run_folder"])
        # What ran beside it: the load when it began, before its own ranks count.
        (run / "load.json").write_bytes(orjson.dumps(load))
        print(f"run {len(found) + 1} of {LEAST}, load {load:.1f} before it", file=sys.stderr, flush=True)
    return found


def _finished(folder: Path) -> list[Made]:
    """Finished runs in the order they were made in."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_symlink() or not (path / "run.json").is_file():
            continue
        try:
            run = compared_run(RunFolder(path))
        except UnfitError:
            continue
        load = path / "load.json"
        found.append(
            Made(
                name=run.name,
                step_seconds=run.at("step_seconds.mean"),
                ci95=tuple(run.at("step_seconds.ci95")),
                load=orjson.loads(load.read_bytes()) if load.is_file() else None,
                processor=f"{run.environment['cores']} cores of {run.environment['cpu']}",
            )
        )
    return found


def described(found: list[Made]) -> list[str]:
    """What the runs are, for whoever reads the figures."""
    seconds = np.asarray([run.step_seconds for run in found])
    logs = np.log(seconds)
    spread = float(logs.std(ddof=1))
    neighbours = float(np.corrcoef(logs[:-1], logs[1:])[0, 1])
    loads = [run.load for run in found if run.load is not None]
    apart = sum(
        a.ci95[1] < b.ci95[0] or b.ci95[1] < a.ci95[0] for index, a in enumerate(found) for b in found[index + 1 :]
    )
    pairs = len(found) * (len(found) - 1) // 2
    beside = f"; load average before each {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    what = f"`scalelab {' '.join(COMMAND)}` on {found[0].processor}, {platform.system()}, {found[0].name[:8]}{beside}"
    times = f"step {seconds.min() * 1e3:.1f} to {seconds.max() * 1e3:.1f} ms, sd {spread:.1%}"
    return [
        what,
        f"{times}, correlation of neighbours {neighbours:+.2f}",
        f"by the intervals that single runs claim for themselves, {apart} of {pairs} pairs would be called different",
    ]
