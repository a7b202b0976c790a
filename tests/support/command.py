"""`scalelab` as a shell runs it: as a process of its own (`scalelab`), or without the four seconds of processor that
torch's import takes in the command and again in the process that forks ranks (`quick_scalelab`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import traceback
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
    """The same, forked from the server of `tests.support.ranks`, and its ranks' forker from that: every library is
    there already, and nothing runs at their exit."""
    command = Forked([str(each) for each in argv], env, cwd)
    out, err = command.communicate(TIMEOUT_SECONDS)
    assert command.returncode not in (None, -9), f"scalelab {' '.join(map(str, argv))} took {TIMEOUT_SECONDS} s"
    return command.returncode, json.loads(out) if out.strip() else {}, err


class Forked:
    """`scalelab` with arguments `argv`, started: as much of a subprocess.Popen as who waits for it needs."""

    def __init__(self, argv: list[str], env: Mapping[str, str] = os.environ, cwd: Path | None = None) -> None:
        self._place = tempfile.TemporaryDirectory()
        self._says = [Path(self._place.name) / name for name in ("out", "err")]
        arguments = (argv, dict(env), str(cwd or Path.cwd()), [str(path) for path in self._says])
        self._process = context.Process(target=_command, args=arguments)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        self._process.terminate()

    def communicate(self, timeout: float | None = None) -> tuple[str, ...]:
        """What it printed on stdout and stderr, once it has ended."""
        try:
            self._process.join(timeout)
            return tuple(path.read_text() if path.exists() else "" for path in self._says)
        finally:
            if self._process.exitcode is None:  # its ranks end with it
                self._process.kill()
                self._process.join()
            self._place.cleanup()


def _command(argv: list[str], environment: dict[str, str], folder: str, says: Sequence[str]) -> None:
    from scalelab.launch import cli
    from scalelab.launch.supervision import launchers

    os.chdir(folder)
    with open(os.devnull, "rb") as nothing, open(says[0], "wb") as out, open(says[1], "wb") as err:
        _become(["scalelab", *argv], environment, nothing, out, err)
    launchers.start_forker = _forked
    cli.main(argv)


def _become(argv: list[str], environment: Mapping[str, str], *streams: IO[bytes]) -> None:
    """Take on arguments, environment and the three standard streams."""
    sys.argv = argv
    os.environ.clear()
    os.environ.update(environment)
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = (open(n, "w" if n else "r", closefd=False) for n in range(3))  # noqa: SIM115


class _Forker:
    """A process that forks ranks: as much of a subprocess.Popen as `launching` needs."""

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


def _forked(command: Sequence[str], environment: Mapping[str, str], says: IO[bytes]) -> _Forker:
    """In the place of `launchers.start_forker`: what `python -m scalelab.….forker ARGUMENTS` does."""
    from scalelab.launch.supervision import forker

    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(read)
        return _Forker(pid, open(write, "wb"))
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
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)
