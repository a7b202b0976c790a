"""A calibration of this machine, put together from measurements in processes of their own. No torch."""

from __future__ import annotations

import datetime
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import orjson

from ...profiles.calibration import Calibration, RunSpread
from .. import environment
from ..devices import Devices
from ..errors import PreflightError
from ..refusals import AMPERE
from .quiet import OthersWatch
from .ranks import RanksError, measure_on_ranks

# A run whose rate is taken: the smallest preset, so that all of them together take about a minute.
MODEL, STEPS, WARMUP = "nano", 30, 5
# A measurement on ranks may take this long, and three times as long as its rates should.
BASE_SECONDS, RATES = 300.0, 3 * 40


def calibrate(
    devices: Devices, *, name: str | None, ranks: int, seconds: float, repeats: int, say: Callable[[str], None]
) -> Calibration:
    """Measure this machine, each rate for about `seconds`. Raises PreflightError when ranks cannot be joined or a run
    fails."""
    cores, now = environment.available_cores(), datetime.datetime.now(datetime.UTC)
    threads = cores if devices.kind == "cpu" else 1
    say(f"matrix products and copies on one device ({threads} threads)" if devices.kind == "cpu" else "one card")
    watch = OthersWatch()
    with watch:
        alone = _measured("alone", 1, devices, {"threads": threads, "dtypes": _dtypes(devices), "seconds": seconds})
        say(f"collectives between {ranks} ranks")
        between = _measured("collectives", ranks, devices, {"seconds": seconds})
        rates = []
        strategy = "ddp" if ranks > 1 else "single"
        for number in range(repeats):
            say(f"run {number + 1} of {repeats}, for their spread")
            rates.append(_rate(strategy, ranks))
    reasons = {}
    if devices.kind == "cpu":
        for way in ("host_to_device", "device_to_host"):
            reasons[f"{way}_bytes_per_second"] = "on a CPU there is no such link"
    if between["wire_factor"] is None:
        reasons["wire_factor"] = (
            "NCCL's bytes are not counted" if devices.kind == "cuda" else "this kernel does not count TCP's bytes"
        )
    if len(rates) < 2:
        reasons["run_spread"] = "fewer than two runs were made (--repeats)"
    if (others := watch.found()) is None:
        reasons["others_busy_cores"] = "this host does not tell what its cores are at, or too little time passed"
    return Calibration(
        name=name or default_name(devices, ranks),
        made_utc=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        host=socket.gethostname(),
        device=devices.kind,
        device_name=devices.name,
        cores=cores,
        threads=threads,
        ranks=ranks,
        backend="nccl" if devices.kind == "cuda" else "gloo",
        versions=environment.versions(),
        matmul_flops_per_second=alone["matmul"],
        memory_bytes_per_second=alone["memory"],
        host_to_device_bytes_per_second=alone.get("host_to_device"),
        device_to_host_bytes_per_second=alone.get("device_to_host"),
        collective_seconds=between["seconds"],
        wire_factor=between["wire_factor"],
        run_spread=_spread(strategy, rates) if len(rates) > 1 else None,
        others_busy_cores=others,
        reasons=reasons,
    )


def default_name(devices: Devices, ranks: int) -> str:
    """A name for a calibration that says what it is of."""
    device = re.sub(r"[^a-z0-9]+", "-", devices.name.lower()).strip("-")[:40]
    return f"{device or devices.kind}-{environment.available_cores()}c-{ranks}r"


def _dtypes(devices: Devices) -> list[str]:
    if devices.kind == "cpu":
        return ["fp32", "bf16", "fp16"]
    ampere = devices.compute_capability is None or devices.compute_capability >= AMPERE
    return ["fp32", "tf32", "bf16", "fp16"] if ampere else ["fp32", "fp16"]


def _measured(what: str, ranks: int, devices: Devices, options: dict[str, Any]) -> dict[str, Any]:
    try:
        limit = BASE_SECONDS + RATES * options["seconds"] * max(1.0, ranks / environment.available_cores())
        return measure_on_ranks(what, ranks, devices.kind, options, timeout_seconds=limit)
    except RanksError as error:
        hint = "scalelab doctor says what is wrong; a smaller --seconds takes less time"
        raise PreflightError(f"doctor --calibrate: {ranks} ranks: {error}", hint=hint) from error


def _rate(strategy: str, ranks: int) -> float:
    """Samples per second of one run of the smallest preset, in processes of its own."""
    with tempfile.TemporaryDirectory(prefix="scalelab-") as out:
        command = [
            *(sys.executable, "-m", "scalelab", "run"),
            *("--model", MODEL, "--strategy", strategy, "--gpus", str(ranks)),
            *("--steps", str(STEPS), "--warmup", str(WARMUP), "--out", out, "--json"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("hint:")]
        last = (lines or ["no message"])[-1]
        raise PreflightError(f"doctor --calibrate: a run of {MODEL} failed: {last}", hint=" ".join(command[2:]))
    return orjson.loads(done.stdout)["throughput"]["samples_per_second"]


def _spread(strategy: str, rates: list[float]) -> RunSpread:
    relative = statistics.stdev(rates) / statistics.fmean(rates)
    return RunSpread(model=MODEL, strategy=strategy, steps=STEPS, samples_per_second=rates, relative_sd=relative)
