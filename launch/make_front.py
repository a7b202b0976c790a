"""What `make TARGET NAME=VALUE …` runs: turns make's command-line variables into options of the `scalelab` command.

make hands them over in the MAKEFLAGS environment variable, so no shell and no make function ever reads a value.
Variables of the environment do not take part.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .cli import run_command
from .config import RunConfig
from .errors import Exit
from .supervision.parent import die_with_parent
from .sweep.options import SweepOptions
from .text import plain
from .validation import unknown

# Option names by target. Values become `--name=value`; MODEL_OPTION="a=1 b=2" becomes two.
TARGETS = {
    "run": (*RunConfig.model_fields, "profile", "dry_run", "json"),
    "sweep": (*SweepOptions.model_fields, "profile", "dry_run", "json"),
    "tensorboard": ("run", "port"),
    "compare": ("a", "b", "fail_if", "allow", "margin", "json"),
    "report": ("run", "json"),
    "diagnose": ("run", "scenario", "seed", "gpus", "verify", "rounds", "steps", "out", "json"),
}
FLAGS = ("dry_run", "json", "verify")
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
# Short names of make's for options of long ones.
SHORT = {"profile": "profile_steps"}
REPEATED = "model_option"
# Variables that are no option's value but stand by themselves, in this order, by target.
PLACES = {"compare": ("A", "B"), "report": ("RUN",), "diagnose": ("RUN",)}


def main(argv: Sequence[str]) -> int:
    """Run target `argv[0]` with make's variables; returns the command's exit code."""
    target = argv[0]
    variables = command_line_variables(os.environ.get("MAKEFLAGS", ""))
    allowed = {name.upper() for name in TARGETS[target]}
    problems = [unknown(f"make {target}", name, allowed) for name in variables if name not in allowed]
    problems += [
        f"{name}: given {value!r}, allowed {', '.join((*YES, *NO[1:]))}, or nothing"
        for name, value in variables.items()
        if name in allowed and name.lower() in FLAGS and value.lower() not in (*YES, *NO)
    ]
    if problems:
        print("\n".join(f"error: {plain(problem)}" for problem in problems), file=sys.stderr)
        return _ended(Exit.USAGE)
    if target == "tensorboard":
        if (arguments := _tensorboard(variables.get("RUN", "runs/latest"), variables.get("PORT", "6006"))) is None:
            return _ended(Exit.USAGE)
        os.execv(arguments[0], arguments)  # so a signal to this process is one to TensorBoard
    places = [variables.pop(name) for name in PLACES.get(target, ()) if name in variables]
    given = [option for name, value in variables.items() for option in options(name, value)]
    # What follows -- is no option, whatever it begins with.
    return _ended(run_command([target, *given, *(["--", *places] if places else [])]))


def _ended(code: Exit) -> Exit:
    """`code`, said, since make hides it."""
    if code:
        print(f"exit code {int(code)} ({code.meaning}); make itself always ends with 2", file=sys.stderr)
    return code


def _tensorboard(run: str, port: str) -> list[str] | None:
    """The command that serves a run's traces; None, and why on stderr, where it has none."""
    traces = Path(run) / "traces"
    if not any(traces.glob("*.pt.trace.json*")):
        print(f"error: {plain(str(traces))}: holds no trace; make run PROFILE=3 records some", file=sys.stderr)
        return None
    return [sys.executable, "-m", "tensorboard.main", f"--logdir={traces}", f"--port={port}"]


def options(name: str, value: str) -> list[str]:
    """The command-line options for one of make's variables."""
    field = SHORT.get(name.lower(), name.lower())
    option = "--" + field.replace("_", "-")
    if field in FLAGS:
        return [option] if value.lower() in YES else []
    if field == REPEATED:
        return [f"{option}={part}" for part in value.split()]
    return [f"{option}={value}"]


def command_line_variables(makeflags: str) -> dict[str, str]:
    """The NAME=VALUE words of `MAKEFLAGS`, which follow `--`; a backslash protects a space or a backslash there,
    and a dollar is doubled (GNU make manual, "Options/Recursion"). The last assignment of a name counts, and comes
    first in the list."""
    _, marker, words = f" {makeflags}".partition(" -- ")
    found: dict[str, str] = {}
    if marker:
        for word in re.findall(r"(?:\\.|[^\\ ])+", words, flags=re.DOTALL):
            text = re.sub(r"\\(.)", r"\1", word, flags=re.DOTALL).replace("$$", "$")
            name, _, value = text.partition("=")
            found.setdefault(name.rstrip(":+?!"), value)
    return found


if __name__ == "__main__":
    # The pid that a user knows is make's: killed, it passes nothing on.
    die_with_parent(by=signal.SIGTERM)
    sys.exit(main(sys.argv[1:]))
