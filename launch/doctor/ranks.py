"""Processes joined in a group for a measurement, and what rank 0 found."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from ..ranks import LISTENER_VARIABLE, Rank, listen_on_free_port


class RanksError(RuntimeError):
    """A rank ended with an error, or none came to an end in time."""


def measure_on_ranks(
    what: str, ranks: int, device: str, options: dict[str, Any], *, timeout_seconds: float
) -> dict[str, Any]:
    """What `measure.ON_RANKS[what]` returns on rank 0 of `ranks` processes that have joined. Raises RanksError."""
    listener = listen_on_free_port()
    port, descriptor = listener.getsockname()[1], listener.fileno()
    with tempfile.TemporaryDirectory(prefix="scalelab-") as folder, contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        processes = []
        for index in range(ranks):
            rank = Rank(rank=index, local_rank=index, world_size=ranks, local_world_size=ranks)
            errors = stack.enter_context((Path(folder) / f"{index}.log").open("wb"))
            command = [
                sys.executable,
                "-m",
                f"{__package__}.measure",
                what,
                device,
                folder,
                orjson.dumps(options).decode(),
            ]
            environment = {**os.environ, **rank.environment("127.0.0.1", port), LISTENER_VARIABLE: str(descriptor)}
            process = subprocess.Popen(
                command, env=environment, pass_fds=[descriptor], stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
            stack.callback(_end, process)
            processes.append(process)
        limit = time.monotonic() + timeout_seconds
        while any(process.poll() is None for process in processes):
            failed = [index for index, process in enumerate(processes) if process.poll()]
            if failed:
                break
            if time.monotonic() > limit:
                raise RanksError(f"no answer within {timeout_seconds:g} s")
            time.sleep(0.02)
        failed = [index for index, process in enumerate(processes) if process.poll()]
        # The first to fail is the cause; the others lost a peer.
        told = {index: error for index in range(ranks) if (error := _told(Path(folder) / f"error-{index}.json"))}
        if told:
            first = min(told, key=lambda index: told[index]["at"])
            raise RanksError(f"rank {first} failed: {told[first]['error']}")
        for index, process in enumerate(processes):
            if index in failed:
                raise RanksError(
                    f"rank {index} failed: {_last_line(Path(folder) / f'{index}.log', process.returncode)}"
                )
        return orjson.loads((Path(folder) / "found.json").read_bytes())


def _told(path: Path) -> dict[str, Any] | None:
    return orjson.loads(path.read_bytes()) if path.is_file() else None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _last_line(log: Path, code: int) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else f"exit code {code}"
