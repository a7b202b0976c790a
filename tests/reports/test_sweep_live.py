"""What a sweep shows while a run is under way, where nothing can be redrawn."""

from __future__ import annotations

import io
from pathlib import Path

from scalelab.profiles.sweepfolder import SweepFolder
from scalelab.reports.sweep_live import PLAIN_SECONDS, SweepLive

from tests.reports.test_live_and_table import Clock
from tests.support.sweeps import MadeSweep


def made(path: Path) -> SweepFolder:
    sweep = MadeSweep(path)
    cell = sweep.cell("zero1", 2, [12.5])
    sweep.cells[0] = cell.model_copy(update={"config": {**cell.config, "checkpointing": "none"}})
    return sweep.write()


def test_the_run_at_hand_has_a_line_every_ten_seconds(tmp_path: Path) -> None:
    """Its step of how many and how long it takes; a run that is soon over has none."""
    folder, clock, stream = made(tmp_path / "sweep"), Clock(), io.StringIO()
    log = folder.log_file("zero1-fp32-x2", 0)
    log.parent.mkdir()
    with SweepLive(stream, folder, folder.plan(), str, clock) as live:
        live.begins(("zero1-fp32-x2", 0), 1, 2)
        for second in range(35):
            log.write_text(f"step {second}/35  1.0 s/step\n")
            live.tick()
            clock.now += 1.0
        live.begins(("zero1-fp32-x2", 0), 2, 2)
        clock.now += PLAIN_SECONDS / 2
        live.tick()
    lines = stream.getvalue().splitlines()
    assert [line.split(": ")[0].split(" (")[1] for line in lines] == ["10 s)", "20 s)", "30 s)"]
    assert lines[0] == "[1/2] zero1 fp32 2 ranks, repeat 0 (10 s): step 10/35  1.0 s/step"


def test_figures_of_a_run_that_ended_are_in_units_that_fit(tmp_path: Path) -> None:
    """12.5 s a step is no 1.25e+04 ms."""
    folder, stream = made(tmp_path / "sweep"), io.StringIO()
    (attempt,) = folder.attempts()[0].values()
    with SweepLive(stream, folder, folder.plan(), str, Clock()) as live:
        live.ended(attempt.model_copy(update={"parity": "the reference"}), 1, 1, None)
    assert stream.getvalue() == "[1/1] zero1 fp32 2 ranks, repeat 0: 12.5 s a step, 2.56 samples/s\n"
