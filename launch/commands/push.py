"""`scalelab push RUN --to TRACKER`: sends a finished run to an experiment tracker, never in the step path. No torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import orjson
from pydantic import BaseModel, ConfigDict

from ..errors import ConfigError, Exit
from ..options import option, read_options
from ..text import plain

SUMMARY = "Send a finished run to an experiment tracker: its series step by step, what it was and what it came to."
FLAGS = {"json": "print where it was sent as JSON on stdout"}
HINT = "give a folder that holds a run.json, or make a run"


class PushOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str = option("which", "a run folder", "runs/latest")
    to: str = option("where", "tensorboard, wandb or mlflow", "tensorboard")
    timeout: float = option(
        "where",
        "seconds after which a tracker that does not answer is given up",
        120.0,
        gt=0,
        le=86400,
        allow_inf_nan=False,
    )


def main(argv: Sequence[str]) -> int:
    """The exit code of `scalelab push ARGV`. What goes wrong at the tracker changes nothing in the run's folder."""
    options, flags = read_options("push", SUMMARY, PushOptions, FLAGS, argv, positional="run")
    if options is None:
        return Exit.OK
    # Here and not above: `--help` and errors of usage answer without them.
    from ...profiles.analysis.current import current_summary
    from ...profiles.analysis.load import load_run
    from ...profiles.analysis.tracked import tracked
    from ...profiles.runfolder import RunFolder
    from ...reports.steady import Steady
    from .. import trackers

    trackers.check(options.to)
    path = Path(options.run).resolve()
    if not path.is_dir():
        raise ConfigError(f"{path}: no such run folder", hint=HINT)
    folder = RunFolder(path)
    try:
        run = load_run(folder)
        state = run.status.get("state")
        if state == "running":
            raise ConfigError(f"{path}: still running", hint="push it when it has ended")
        told = tracked(run, current_summary(folder))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error), hint=getattr(error, "hint", "") or HINT) from error
    seen_at = trackers.send(options.to, told, path, options.timeout)
    if "json" in flags:
        values = sum(len(rows) for rows in told["series"].values())
        print(
            orjson.dumps(
                {"to": options.to, "seen_at": seen_at, "series": len(told["series"]), "values": values}
            ).decode()
        )
    else:
        print(plain(f"sent to {options.to}: {seen_at}"), file=Steady(sys.stdout))
    return Exit.OK
