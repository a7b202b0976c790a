"""Summaries that are made anew where they are not those of the records and the code of now, several at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
from scalelab.profiles.analysis.summary import write_summary
from scalelab.profiles.runfolder import RunFolder

from tests.support.sweeps import run_json, write_run

REFRESH = """
import sys
from pathlib import Path
from scalelab.profiles.analysis import current
from scalelab.profiles.runfolder import RunFolder
current.os.sched_getaffinity = lambda pid: {0, 1}
current.refresh_summaries([RunFolder(Path(each)) for each in sys.argv[1:]])
"""


def test_stale_summaries_are_made_in_processes_of_their_own_and_others_left(tmp_path: Path) -> None:
    """As each alone would be; one that cannot be read stops no other, and what is up to date is not touched."""
    folders = [RunFolder.create(tmp_path, f"run{index}") for index in range(4)]
    for index, folder in enumerate(folders):
        write_run(folder, run_json(folder.path.name, 2), seconds=1.0 + index)
    fresh, damaged = folders[2:]
    write_summary(fresh)
    os.utime(fresh.path / "summary.json", ns=(2**62, 2**62))
    (damaged.path / "run.json").write_text("{")
    subprocess.run([sys.executable, "-c", REFRESH, *(str(each.path) for each in folders)], check=True)
    for folder in folders[:2]:
        made = orjson.loads((folder.path / "summary.json").read_bytes())
        assert made == orjson.loads(orjson.dumps(write_summary(folder)))
    assert (fresh.path / "summary.json").stat().st_mtime_ns == 2**62
    assert not (damaged.path / "summary.json").exists()
