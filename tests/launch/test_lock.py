"""A run folder has one writer at a time, and a writer that is gone holds nothing up."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from scalelab.launch import lock
from scalelab.launch.errors import Exit, exit_code_of
from scalelab.launch.lock import FolderInUse, Holder, holder, locked
from scalelab.profiles.storage import OutputError

from tests.support.locks import stale, without_flock, write
from tests.support.planted import KILLED, each_call_failing, each_call_killed

RACES = 50
# Takes the lock whenever told a folder, says what came of it, and holds it until told to let go.
RACER = """
import os, sys, contextlib
from pathlib import Path
from scalelab.launch.lock import FolderInUse, locked
for line in sys.stdin:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(Path(line.strip())))
            print("won", os.getpid(), flush=True)
        except FolderInUse as error:
            print("lost", error.holder and error.holder.pid, flush=True)
        sys.stdin.readline()
    print("out", flush=True)
"""


def racer() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RACER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def answer(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


@pytest.mark.fault(49)
def test_of_two_processes_one_wins_and_the_other_knows_who(tmp_path: Path) -> None:
    """Fifty races, a third of them for a folder that a dead process had: one winner each, named to the loser."""
    racers = [racer(), racer()]
    try:
        for race in range(RACES):
            folder = tmp_path / str(race)
            folder.mkdir()
            if race % 3 == 0:
                write(folder, stale())
            for process in racers:
                tell(process, str(folder))
            answers = sorted([answer(process) for process in racers], reverse=True)
            assert [verdict for verdict, _ in answers] == ["won", "lost"], race
            assert answers[0][1] == answers[1][1], race
            for process in racers:
                tell(process, "")
            assert [answer(process) for process in racers] == [["out"], ["out"]]
            assert not list(folder.iterdir())
    finally:
        for process in racers:
            process.kill()
            process.communicate()


@pytest.mark.fault(49)
def test_a_folder_in_use_says_by_whom(tmp_path: Path) -> None:
    """The error names process, host and time, ends with its own exit code, and leaves the holder in place."""
    with locked(tmp_path) as previous:
        assert previous is None
        ours = holder(tmp_path)
        assert ours is not None
        with pytest.raises(FolderInUse) as caught, locked(tmp_path):
            pass
        assert caught.value.holder == ours
        for part in (str(os.getpid()), socket.gethostname(), ours.since):
            assert part in str(caught.value)
        assert caught.value.hint
        assert exit_code_of(caught.value) is Exit.FOLDER_IN_USE
        assert holder(tmp_path) == ours
    assert holder(tmp_path) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(50)
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(stale(), id="dead"),
        pytest.param(stale(pid=os.getpid(), started=1.0), id="pid used again"),
        pytest.param(stale(pid=os.getpid(), boot_id="another"), id="rebooted"),
        pytest.param(stale(pid=-1), id="no pid"),
    ],
)
def test_a_lock_left_behind_is_taken_over(
    tmp_path: Path, gone: Holder, flock: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one whose it was is known to the caller, who can say so."""
    if not flock:
        without_flock(monkeypatch)
    write(tmp_path, gone)
    assert holder(tmp_path) is None
    with locked(tmp_path) as previous:
        assert previous == gone
        now = holder(tmp_path)
        assert now is not None
        assert now.pid == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.fault(50)
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_a_lock_of_another_host_is_never_taken(tmp_path: Path, flock: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process cannot be seen from here; the hint says which file to remove when that host is gone."""
    if not flock:
        without_flock(monkeypatch)
    there = stale(host="node-7", boot_id="another")
    write(tmp_path, there)
    with pytest.raises(FolderInUse, match=r"process \d+ on node-7 since") as caught, locked(tmp_path):
        pass
    assert f"remove {tmp_path / 'lock'} by hand" in caught.value.hint
    assert holder(tmp_path) == there


@pytest.mark.fault(50)
@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"\xff\x00", b"[]"])
def test_a_file_that_names_nobody_is_nobodys(tmp_path: Path, content: bytes) -> None:
    """As a crash leaves it between locking and naming."""
    (tmp_path / lock.NAME).write_bytes(content)
    assert holder(tmp_path) is None
    with locked(tmp_path) as previous:
        assert previous is None


@pytest.mark.fault(50)
def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    """kill -9: the kernel lets go, even while the dead process has not been waited for."""
    process = racer()
    tell(process, str(tmp_path))
    assert answer(process)[0] == "won"
    held = holder(tmp_path)
    assert held is not None
    assert held.pid == process.pid
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert holder(tmp_path) is None
    with locked(tmp_path) as previous:
        assert previous == held
    process.communicate()


# Holds a folder, and has a child that is only forked and one that runs another program.
PARENT = """
import os, subprocess, sys, time
from pathlib import Path
from scalelab.launch.lock import locked
with locked(Path(sys.argv[1])):
    program = subprocess.Popen(["sleep", "60"], close_fds=False)
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(begin, b".")
        time.sleep(60)
        os._exit(0)
    os.read(begun, 1)
    print(child, program.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.fault(50)
def test_children_do_not_hold_the_folder(tmp_path: Path) -> None:
    """Children that outlive a killed holder do not keep its folder from being taken over."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    children = [int(pid) for pid in answer(parent)]
    try:
        assert len(children) == 2
        parent.kill()
        parent.wait()
        with locked(tmp_path) as previous:
            assert previous is not None
            assert previous.pid == parent.pid
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
        parent.communicate()


@pytest.mark.fault(50)
def test_another_container_on_this_kernel_is_judged_by_flock_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a host name of its own and pids that mean nothing here; the kernel's lock is the same."""
    there = stale(host="container")
    write(tmp_path, there)
    assert holder(tmp_path) == there
    with locked(tmp_path) as previous:
        assert previous == there
    write(tmp_path, there)
    without_flock(monkeypatch)
    with pytest.raises(FolderInUse, match="container"), locked(tmp_path):
        pass


@pytest.mark.fault(28, 50)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("left", [None, stale()], ids=["fresh", "left behind"])
def test_a_lock_that_cannot_be_written_is_no_lock(tmp_path: Path, code: int, left: Holder | None) -> None:
    """Whichever call fails: the documented error, nothing left that would stop the next one."""

    def take() -> None:
        with locked(tmp_path):
            assert holder(tmp_path) is not None

    for failure in each_call_failing(take, code, documented=OutputError):
        assert failure is None or str(tmp_path / "lock") in str(failure)
        with locked(tmp_path):
            pass
        assert not list(tmp_path.iterdir())
        if left is not None:
            write(tmp_path, left)


@pytest.mark.fault(50)
def test_a_process_killed_while_it_takes_the_lock_does_not_have_it(tmp_path: Path) -> None:
    """kill -9 at each call of taking it over."""

    def take() -> None:
        with locked(tmp_path):
            pass

    write(tmp_path, stale())
    ends = []
    for code in each_call_killed(take):
        ends.append(code)
        assert holder(tmp_path) is None
        with locked(tmp_path):
            pass
        write(tmp_path, stale())
    assert ends[-1] == 0
    assert ends[:-1] == [KILLED] * (len(ends) - 1)
    assert len(ends) >= 3


def test_a_removed_file_that_was_open_is_not_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder may end between our opening and locking it: then the folder's file is another one, or none."""
    write(tmp_path, stale())
    real, opened = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not opened:
            opened.append(os.fstat(descriptor).st_ino)
            (tmp_path / lock.NAME).unlink()
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path) as previous:
        assert previous is None
        assert holder(tmp_path) is not None
        with pytest.raises(FolderInUse), locked(tmp_path):
            pass


def test_a_name_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has locked but not yet written is waited for, and unknown after a while."""
    monkeypatch.setattr(lock, "NAMING_SECONDS", 0.05)
    descriptor = os.open(tmp_path / lock.NAME, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(FolderInUse, match="has not named itself"), locked(tmp_path):
        pass
    os.close(descriptor)
