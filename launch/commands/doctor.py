"""`scalelab doctor`: what this machine can run, line by line, and with `--calibrate` what it was measured to do."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict

from ...reports.console import Console
from ...reports.doctor import calibration_table, check_line
from ...reports.steady import Steady
from .. import calibrations, devices
from ..doctor.calibrate import calibrate
from ..doctor.checks import Check, checks
from ..errors import Exit
from ..options import PlainText, option, read_options
from ..text import plain

SUMMARY = "Say what this machine can run, with OK, WARN or FAIL for each line. Exit code 3 when a line is FAIL."
FLAGS = {
    "calibrate": "measure this machine's rates (about two minutes), and keep them for runs to be held against",
    "json": "print the result as JSON on stdout; everything else goes to stderr",
}


def _name(value: str) -> str:
    if not value or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}", value):
        raise ValueError("1 to 80 of A-Z, a-z, 0-9, dots, dashes and underscores, the first no dot")
    return value


class DoctorOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: int | None = option(
        "how much", "ranks to join; by default all CUDA devices, else 2 CPU ranks", None, ge=1, le=1024
    )
    repeats: int = option("how much", "runs whose spread is taken by --calibrate", 5, ge=0, le=100)
    seconds: float = option(
        "how much", "how long each rate is measured by --calibrate", 0.5, gt=0, le=60, allow_inf_nan=False
    )
    name: Annotated[str, BeforeValidator(_name)] | None = option(
        "where", "what the calibration is called; by default after the device, cores and ranks", None
    )
    out: PlainText = option("where", "where run folders would be made", "runs")


def main(argv: Sequence[str]) -> int:
    """The exit code of `scalelab doctor ARGV`."""
    options, flags = read_options("doctor", SUMMARY, DoctorOptions, FLAGS, argv)
    if options is None:
        return Exit.OK
    as_json, here = "json" in flags, devices.detect()
    ranks = options.gpus or here.count or 2
    stream = sys.stderr if as_json else sys.stdout
    console = Console(stream)
    lines = []
    for check in checks(here, ranks, Path(options.out)):
        lines.append(check)
        console.print(check_line(asdict(check)), soft_wrap=True)
    failed = any(check.state == "FAIL" for check in lines)
    calibration = path = None
    if "calibrate" in flags and not failed:

        def say(text: str) -> None:
            print(plain(f"measuring: {text}"), file=Steady(sys.stderr), flush=True)

        calibration = calibrate(
            here, name=options.name, ranks=ranks, seconds=options.seconds, repeats=options.repeats, say=say
        )
        path = calibrations.store(calibration)
        console.print(calibration_table(calibration.model_dump()))
        for doubt in calibration.doubts:
            lines.append(Check("calibration", "WARN", f"{doubt}: repeat on a quiet machine"))
            console.print(check_line(asdict(lines[-1])), soft_wrap=True)
        print(plain(f"calibration: {path}"), file=Steady(stream))
    if as_json:
        result = {
            "checks": [asdict(check) for check in lines],
            "calibration": calibration and {**calibration.model_dump(), "file": str(path)},
        }
        print(orjson.dumps(result).decode(), file=Steady(sys.stdout))
    return Exit.PREFLIGHT if failed else Exit.OK
