"""On file systems without locks the file in a run folder decides who has it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from scalelab.launch.lock import FolderInUse, locked

from tests.support.locks import without_flock


@pytest.mark.fault(49)
def test_without_flock_the_file_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems have no locks: a live process's name is respected all the same."""
    without_flock(monkeypatch)
    with locked(tmp_path) as previous:
        assert previous is None
        with pytest.raises(FolderInUse, match=str(os.getpid())), locked(tmp_path):
            pass
    assert not list(tmp_path.iterdir())
