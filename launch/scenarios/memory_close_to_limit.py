"""A run in a memory cgroup that it nearly fills."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ._contract import Planted, Scenario, subject

LIMIT_BYTES = 4 << 30
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
NAME = f"scalelab-scenario-{os.getpid()}-{secrets.token_hex(2)}"


def _files() -> tuple[Path, str, str] | None:
    """Where cgroups of memory are made, and their files of use and limit; None where there is none to make."""
    if (V1 / "memory.limit_in_bytes").exists():
        return V1, "memory.usage_in_bytes", "memory.limit_in_bytes"
    controllers = V2 / "cgroup.subtree_control"
    if controllers.exists() and "memory" in controllers.read_text().split():
        return V2, "memory.current", "memory.max"
    return None


def _why_not() -> str | None:
    if (found := _files()) is None:
        return "no memory cgroup can be made"
    return None if os.access(found[0], os.W_OK) else f"needs root, to make a cgroup in {found[0]}"


@contextlib.contextmanager
def _limited() -> Iterator[Sequence[Sequence[str]]]:
    found = _files()
    assert found is not None
    place = found[0] / NAME
    place.mkdir()
    try:
        (place / found[2]).write_text(str(LIMIT_BYTES))
        yield (("sh", "-c", f'echo $$ > {place}/cgroup.procs && exec "$@"', "sh"),)
    finally:
        # It is in use until the last process in it is gone, a moment after the run is.
        for _ in range(50):
            with contextlib.suppress(OSError):
                place.rmdir()
                break
            time.sleep(0.1)


def _with(share: float) -> Planted:
    found = _files()
    assert found is not None
    place = found[0] / NAME
    ballast = f"{place / found[1]}:{place / found[2]}:{share}" if share else ""
    return Planted(options={**subject(tokens=256, ballast=ballast), "micro_batch": 8}, around=_limited)


scenario = Scenario(
    name="memory_close_to_limit",
    says="the run fills nearly all of the memory that its cgroup may have",
    label="memory_pressure",
    plant=lambda strength, world_size: _with(strength),
    remove=lambda strength, world_size: _with(0.0),
    strengths=(0.945, 0.96),
    unit="of the limit before the first step",
    world_sizes=(1,),
    why_not=_why_not,
)
