"""A scenario run for real: `scalelab run` in a process of its own, with the fault or without."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from ...profiles.runfolder import RunFolder
from ...reports.units import counted
from ..errors import Exit, PreflightError, ScalelabError
from ..supervision.parent import PARENT_VARIABLE
from ..sweep import child
from ..sweep.child import Ended, Make, arguments, make_run
from ._contract import Planted, Scenario

STEPS, WARMUP = 30, 5
CHILD = child.__name__


class ScenarioError(ScalelabError):
    """The run of a scenario did not end well; its exit code is that of the run."""

    def __init__(self, message: str, code: int, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = Exit(code) if code in set(Exit) else Exit.INTERNAL


def run_scenario(
    scenario: Scenario,
    *,
    seed: int,
    world_size: int,
    device: str,
    out: Path,
    say: Callable[[str], None],
    removed: bool = False,
    extra: Mapping[str, Any] | None = None,
) -> RunFolder:
    """The run folder of one run of `scenario`. Raises PreflightError where this machine cannot have it."""
    if device not in scenario.devices:
        raise PreflightError(
            f"scenario {scenario.name} needs {' or '.join(scenario.devices)}, and this run is on {device}",
            hint="scalelab diagnose --help lists the scenarios of each device",
        )
    if (why := scenario.why_not()) is not None:
        raise PreflightError(f"scenario {scenario.name} cannot be had here: {why}")
    strength = scenario.strength(seed)
    side = scenario.remove if removed else scenario.plant
    assert side is not None
    planted = side(strength, world_size)
    say(f"scenario {scenario.name}: {scenario.says} ({scenario.told(strength)}), {counted(world_size, 'rank')}")
    name = f"{scenario.name}{'-removed' if removed else ''}"
    options = {
        "strategy": "ddp" if world_size > 1 else "single", "steps": STEPS, "warmup": WARMUP, "device": device,
        "gpus": world_size, "seed": seed, "out": str(out), "name": name, **planted.options, **(extra or {}),
    }  # fmt: skip
    return _run(planted, options)


def make_within(planted: Planted) -> Make:
    """Makes runs as `make_run` does, each within what is around `planted` on its one host."""

    def make(given: Mapping[str, Any], **options: Any) -> Ended:
        with planted.around() as (prefix,):
            return make_run(given, **options, prefix=prefix)

    return make


def _run(planted: Planted, options: Mapping[str, Any]) -> RunFolder:
    with planted.around() as prefixes:
        processes = [
            start_run(prefix, [*arguments({**options, **_place(host, len(prefixes))}), "--json"])
            for host, prefix in enumerate(prefixes)
        ]
        try:
            ended = [process.communicate() for process in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.terminate()
    for process, (_, told) in zip(processes, ended, strict=True):
        if process.returncode:
            raise ScenarioError("the run of the scenario failed:\n" + told.strip()[-2000:], process.returncode)
    return RunFolder(Path(orjson.loads(ended[0][0].splitlines()[-1])["run_folder"]))


def start_run(prefix: Sequence[str], options: Sequence[str]) -> subprocess.Popen[str]:
    """`scalelab run` with `options`, behind `prefix`. By itself, so that many can be forked from one that has imported
    all."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", CHILD, *options],
        # It does not outlive this process, however that ends.
        env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _place(host: int, hosts: int) -> dict[str, int]:
    """Options of one of several hosts."""
    return {"nodes": hosts, "node_rank": host} if hosts > 1 else {}
