"""The `scalelab` command: one verb, one file in `commands/`; every error becomes an exit code here and nowhere else."""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import orjson

from .. import __version__  # pyright: ignore[reportMissingImports] (launch/entry, once installed)
from ..reports.steady import Steady, hush
from .errors import ConfigError, Exit, exit_code_of
from .text import plain

# Name, module in commands/, and what it does; modules are imported when their verb is used.
COMMANDS = {
    "run": "train one model under one strategy and write a run folder",
    "sweep": "make every run of a matrix on equal terms, resumably",
    "compare": "hold runs against others: effect, interval between runs, and a verdict",
    "diagnose": "say what holds a run back, why, and what to do first",
    "report": "rebuild the summary and the report of run and sweep folders, and print them",
    "push": "send a finished run to TensorBoard, wandb or mlflow",
    "import": "make a run folder from profiler traces that others recorded",
    "doctor": "say what this machine can run, and with --calibrate measure its rates",
    "data": "make a set of driving scenes, or check one against its manifest",
}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    code = run_command(list(sys.argv[1:] if argv is None else argv))
    Steady(sys.stdout).flush()
    # Else the interpreter looks through all that was imported before it ends, for half a second where that is torch.
    gc.freeze()
    sys.exit(int(code))


def run_command(argv: list[str]) -> Exit:
    """The exit code of the command `argv`; what went wrong is on stderr, and on stdout too with `--json`."""
    try:
        return Exit(_dispatch(argv))
    except BrokenPipeError:
        # The reader of our output left (`| head`): nobody is there to be told more.
        hush(sys.stdout)
        return Exit.OK
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code_of(error)
        _report(error, code, as_json="--json" in argv)
        return code


def _dispatch(argv: list[str]) -> int:
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help", "help"):
        print(_overview())
        return Exit.OK
    if verb in ("-V", "--version"):
        print(f"scalelab {__version__}")
        return Exit.OK
    if verb not in COMMANDS:
        near = difflib.get_close_matches(verb, COMMANDS, n=1, cutoff=0.4)
        offer = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown command {verb!r}, allowed {', '.join(COMMANDS)}{offer}", hint="scalelab --help")
    return importlib.import_module(f".commands.{verb}", __package__).main(argv[1:])


def _overview() -> str:
    parser = argparse.ArgumentParser(
        prog="scalelab",
        description="Train one model under every data-parallel strategy and see where each second and byte goes.",
        epilog="scalelab COMMAND --help lists a command's options. Exit codes: "
        + "; ".join(f"{code.value} {code.meaning}" for code in Exit)
        + ".",
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        verbs.add_parser(name, help=text)
    parser.add_argument("--version", action="store_true", help="print the version")
    return parser.format_help().rstrip()


def _report(error: BaseException, code: Exit, *, as_json: bool) -> None:
    hint = getattr(error, "hint", "")
    message = str(error) or type(error).__name__
    if code is Exit.INTERRUPTED:
        message = "interrupted by Ctrl-C"
    if code is Exit.INTERNAL:
        traceback.print_exception(error)
        hint = "this is a bug in scalelab: please report the lines above"
    lines = [f"error: {plain(line)}" for line in message.splitlines()] + ([f"hint: {plain(hint)}"] if hint else [])
    print("\n".join(lines), file=Steady(sys.stderr), flush=True)
    if as_json:
        failure = {"error": {"exit_code": int(code), "meaning": code.meaning, "message": message, "hint": hint}}
        print(orjson.dumps(failure).decode())
