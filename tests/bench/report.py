"""How long reports take, and how large they are: of a run of 1,024 ranks x 1,000 steps, and of a sweep of 24 runs."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.pictures import pictures
from scalelab.profiles.analysis.summary import write_summary
from scalelab.profiles.runfolder import RunFolder
from scalelab.profiles.sweepfolder import Attempt, Cell, SweepFolder, SweepPlan
from scalelab.reports.page.write import run_report, write

from tests.support.reported import made_run

RANKS, STEPS, CALLS = 1024, 1000, 2
RUN_SECONDS, RUN_BYTES, PAGE_BYTES = 60.0, 2 << 30, 6 << 20
SWEEP_CELLS, SWEEP_REPEATS, SWEEP_RANKS = 8, 3, 8
SWEEP_SECONDS, HELP_SECONDS = 5.0, 0.5


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "run":
        _measure(RunFolder(Path(sys.argv[2])))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = made_run(Path(place), ranks=RANKS, steps=STEPS, calls=CALLS)
        size = sum(path.stat().st_size for path in (folder.path / "ranks").iterdir())
        print(f"{RANKS} ranks x {STEPS} steps x {CALLS} collectives: {size / 2**20:.0f} MiB of records", flush=True)
        # A process of its own, so that its peak is its own.
        subprocess.run([sys.executable, "-m", "tests.bench.report", "run", str(folder.path)], check=True)
    with tempfile.TemporaryDirectory() as place:
        sweep = _sweep(Path(place) / "sweep")
        for what in ("from records alone", "again, nothing changed"):
            took = _timed("-m", "scalelab", "report", str(sweep.path))
            print(f"sweep of {SWEEP_CELLS * SWEEP_REPEATS} runs x {SWEEP_RANKS} ranks x {STEPS} steps, {what}: "
                  f"{took:.1f} s; bound {SWEEP_SECONDS:.0f} s: {_verdict(took <= SWEEP_SECONDS)}")  # fmt: skip
    took = min(_timed("-m", "scalelab", "report", "--help") for _ in range(5))
    print(
        f"scalelab report --help: {took:.2f} s, the best of 5; bound {HELP_SECONDS} s: {_verdict(took <= HELP_SECONDS)}"
    )


def _timed(*argv: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *argv], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _measure(folder: RunFolder) -> None:
    marks = [time.perf_counter()]
    run = load_run(folder)
    marks.append(time.perf_counter())
    summary = write_summary(folder, run=run)
    marks.append(time.perf_counter())
    drawn = pictures(run, summary, folder)
    marks.append(time.perf_counter())
    write(folder.path, run_report(summary, drawn))
    marks.append(time.perf_counter())
    parts = zip(("reading", "summary", "pictures", "page"), marks, marks[1:], strict=False)
    total = marks[-1] - marks[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = (folder.path / "report.html").stat().st_size
    print(", ".join(f"{name} {end - begin:.1f} s" for name, begin, end in parts))
    print(f"in all {total:.1f} s; bound {RUN_SECONDS:.0f} s: {_verdict(total <= RUN_SECONDS)}")
    print(f"memory {peak / 2**30:.2f} GiB; bound {RUN_BYTES / 2**30:.0f} GiB: {_verdict(peak <= RUN_BYTES)}")
    print(f"page {size / 2**20:.2f} MiB; bound {PAGE_BYTES >> 20} MiB: {_verdict(size <= PAGE_BYTES)}", flush=True)


def _sweep(path: Path) -> SweepFolder:
    path.mkdir()
    strategies = [f"ddp{index}" for index in range(SWEEP_CELLS)]
    cells = [
        Cell(name=f"{name}-fp32-x{SWEEP_RANKS}", strategy=name, precision="fp32", world_size=SWEEP_RANKS, micro_batch=4,
             grad_accumulation=1, global_batch=4 * SWEEP_RANKS, config={})
        for name in strategies
    ]  # fmt: skip
    order = [(cell.name, repeat) for repeat in range(SWEEP_REPEATS) for cell in cells]
    plan = SweepPlan(
        sweep_id="sweep-bench", created_utc="2026-01-01T00:00:00Z", command=["scalelab", "sweep"], scaling="strong",
        repeats=SWEEP_REPEATS, seed=0, cells=cells, order=order,
    )  # fmt: skip
    (path / "sweep.json").write_text(plan.model_dump_json())
    with (path / "attempts.jsonl").open("w") as attempts:
        for name, repeat in order:
            run = made_run(path, ranks=SWEEP_RANKS, steps=STEPS, calls=CALLS, name=name)
            attempt = Attempt(cell=name, repeat=repeat, run=run.path.name, exit_code=0, started_utc="", seconds=1.0)
            attempts.write(attempt.model_dump_json() + "\n")
    return SweepFolder(path)


def _verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


if __name__ == "__main__":
    main()
