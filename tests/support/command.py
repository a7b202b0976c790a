"""`scalelab` as a shell runs it: as a process of its own (`scalelab`), or without the four seconds of processor that
torch's import takes in the command and again in the process that forks ranks (`quick_scalelab`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.support.ranks import context

TIMEOUT_SECONDS = 200
# Exit code, the JSON on stdout, and stderr.
Answer = tuple[int, dict[str, Any], str]


def scalelab(*argv: object, **options: Any) -> Answer:
    """What one command answers."""
    command = [sys.executable, "-m", "scalelab", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS, **options)
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else {}, done.stderr


def quick_scalelab(*argv: object, env: Mapping[str, str] = os.environ, cwd: Path | None = None) -> Answer:
    """The same, forked from the server of `tests.support.ranks`, and its ranks' forker from that. All else is real."""
    with tempfile.TemporaryDirectory() as place:
        says = [Path(place) / name for name in ("out", "err")]
        arguments = ([str(each) for each in argv], dict(env), str(cwd or Path.cwd()), [str(path) for path in says])
        process = context.Process(target=_command, args=arguments)
        process.start()
        process.join(TIMEOUT_SECONDS)
        assert process.exitcode is not None, f"scalelab {' '.join(map(str, argv))} took {TIMEOUT_SECONDS} s"
        out, err = (path.read_text() for path in says)
        return process.exitcode, json.loads(out) if out.strip() else {}, err


def _command(argv: list[str], environment: dict[str, str], folder: str, says: Sequence[str]) -> None:
    from scalelab.launch import cli
    from scalelab.launch.supervision import launchers

    os.chdir(folder)
    with open(os.devnull, "rb") as nothing, open(says[0], "wb") as out, open(says[1], "wb") as err:
        _become(["scalelab", *argv], environment, nothing, out, err)
    launchers.started = _forked
    cli.main(argv)


def _become(argv: list[str], environment: Mapping[str, str], *streams: IO[bytes]) -> None:
    """Take on arguments, environment and the three standard streams."""
    sys.argv = argv
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115


class _Forked:
    """As much of a subprocess.Popen as `launching` needs."""

    def __init__(self, pid: int, stdin: IO[bytes]) -> None:
        self.pid = pid
        self.stdin = stdin
        self.returncode: int | None = None

    def poll(self, flags: int = os.WNOHANG) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int | None:
        return self.poll(0)

    def kill(self) -> None:
        os.kill(self.pid, 9)


def _forked(command: Sequence[str], environment: Mapping[str, str], says: IO[bytes]) -> _Forked:
    """In the place of `launchers.started`: a process that does what `python -m scalelab.….forker ARGUMENTS` does."""
    from scalelab.launch.supervision import forker

    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(read)
        return _Forked(pid, open(write, "wb"))
    code: object = 1
    try:
        os.setsid()
        os.close(write)
        with open(read, "rb") as order:
            _become(list(command[2:]), environment, order, says, says)
        forker.main()
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)
