"""What a folder of checkpoints holds."""

from __future__ import annotations

from scalelab.launch.checkpoint import newest
from scalelab.profiles.runfolder import RunFolder


def names(folder: RunFolder) -> set[str]:
    return {path.name for path in (folder.path / "checkpoints").iterdir()}


def found_step(folder: RunFolder) -> int | None:
    found = newest(folder)
    return None if found is None else found[1]["step"]
