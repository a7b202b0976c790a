"""Sharded checkpoints: written beside their place by all ranks, named when whole.

checkpoints/step-000020/MANIFEST.json   world size, strategy, versions, and every file with its size
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
from torch import distributed

from ..profiles.runfolder import RunFolder, replace_file
from .environment import versions
from .strategies._contract import Sharded

MANIFEST = "MANIFEST.json"


def save(run: Sharded, folder: RunFolder, *, step: int, strategy: str) -> dict[str, Any]:
    """Write the state after `step` steps. Called on all ranks; returns the checkpoint's path and bytes.

    Until the last rename there is only a folder ending in `.partial`, which no reader takes for a checkpoint.
    """
    final = folder.path / "checkpoints" / f"step-{step:06d}"
    partial = final.with_name(final.name + ".partial")
    rank = distributed.get_rank()
    if rank == 0:
        partial.mkdir(parents=True)
    distributed.barrier()
    run.save(partial)
    distributed.barrier()
    if rank == 0:
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        manifest = {
            "step": step,
            "strategy": strategy,
            "world_size": distributed.get_world_size(),
            "versions": versions(),
            "files": {str(path.relative_to(partial)): path.stat().st_size for path in files},
        }
        replace_file(partial / MANIFEST, orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        partial.rename(final)
    distributed.barrier()
    return {"path": str(final.relative_to(folder.path)), "bytes": _size(final)}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
