"""What is shown while a run goes on and at its end: true to the numbers, plain where nothing can be redrawn."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from scalelab.launch.reporting import summarise_and_report
from scalelab.launch.supervision.pulse import EVENTS
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import Record
from scalelab.profiles.used import MemoryRecord
from scalelab.reports import units
from scalelab.reports.live import BETWEEN, PLAIN_SECONDS, LiveLine
from scalelab.reports.table import run_table, size

from tests.profiles.test_memory import memory_step
from tests.profiles.test_summary import folder_with, run_json, step
from tests.support.reported import made_run


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def live(stream: io.StringIO, clock: Clock) -> LiveLine:
    return LiveLine(stream, world_size=2, global_batch=8, total_steps=10, warmup=2, probe=True, clock=clock)


def test_the_line_goes_from_starting_ranks_to_steps() -> None:
    """Each stage of a run has its words; rate and remaining time follow the steps."""
    clock = Clock()
    line = live(io.StringIO(), clock)
    assert line.line().startswith("starting: importing torch")
    line.message({"rank": 0, "state": "joining"})
    assert line.line().startswith("starting ranks 0/2")
    line.message({"rank": 0, "state": "training"})
    assert line.line().startswith("starting ranks 1/2")
    line.message({"rank": 1, "state": "training"})
    assert line.line().startswith("first step")
    line.message({"rank": 0, "step": 1, "role": "warmup", "seconds": 0.5, "loss": 2.0, "memory_bytes": 2**30})
    text = line.line()
    for part in ("warm-up step 2/10", "0.500 s/step", "16.0 samples/s", "loss 2.000", "1.00 GiB", "ETA 4.0 s"):
        assert part in text
    line.message({"rank": 0, "step": 12, "role": "counterfactual", "seconds": 0.5})
    assert line.line() == "counterfactual tail, after 10 steps: step 3"
    tail = {"done": 4, "of": 35, "seconds_left": 720.0}
    line.message({"rank": 0, "step": 90, "role": "counterfactual", "seconds": 0.5, "tail": tail})
    assert line.line() == "counterfactual tail: block 5 of 35, about 12 min 0 s left"


def test_what_takes_long_between_steps_has_a_line_of_its_own() -> None:
    """A checkpoint, an evaluation, the profiler's writing: from a few seconds on, until it is over."""
    assert set(BETWEEN) == set(EVENTS)
    clock = Clock()
    line = live(io.StringIO(), clock)
    line.message({"rank": 0, "step": 3, "role": "measured", "seconds": 0.5, "loss": 2.0, "memory_bytes": 1})
    line.message({"rank": 0, "doing": "checkpoint"})
    assert line.line().startswith("step 4/10")
    clock.now += 90
    assert line.line() == "writing a checkpoint (1 min 30 s)"
    line.message({"rank": 0, "doing": None})
    assert line.line().startswith("step 4/10")


def test_plain_output_has_no_escapes_and_does_not_flood() -> None:
    """Piped, the line is printed when the stage changes and then every few seconds."""
    clock, stream = Clock(), io.StringIO()
    with live(stream, clock) as line:
        for rank in range(2):
            line.message({"rank": rank, "state": "training"})
        for index in range(200):
            clock.now += PLAIN_SECONDS / 50
            line.message({"rank": 0, "step": index, "role": "measured", "seconds": 0.1, "loss": 1.0, "memory_bytes": 1})
            line.tick()
    assert "\x1b" not in stream.getvalue()
    assert 4 <= len(stream.getvalue().splitlines()) <= 8


def test_the_table_shows_every_phase_or_why_not(tmp_path: Path) -> None:
    """All phases, the unknown ones with their reason, the step, and state beside its law; names are no markup."""
    records = [step(1, 0.5), MemoryRecord(step=1, parameters_bytes=2**20, gradients_bytes=1, optimizer_bytes=3)]
    facts = run_json()
    facts["model"]["name"] = "[red]x[/red]"
    facts["law"] = {"ranks": [{"parameters": 2**21, "gradients": 1, "optimizer": 3}]}
    summary = summarise(load_run(folder_with(tmp_path, facts, records, records)))
    stream = io.StringIO()
    Console(file=stream, width=100).print(run_table(summary))
    text = stream.getvalue()
    for part in (
        "[red]x[/red]",
        "unattributed",
        "comm_exposed is not known",
        "500.0",
        "1.00 MiB",
        "2.00 MiB",
        "16.00 samples/s",
    ):
        assert part in text, part


def test_sizes_keep_their_unit() -> None:
    """Binary units by name, unknown as a dash."""
    assert [size(value) for value in (None, 0, 1023, 1536, 3 * 2**30)] == ["-", "0 B", "1023 B", "1.50 KiB", "3.00 GiB"]


def test_the_table_says_where_the_peak_is_and_what_grows(tmp_path: Path) -> None:
    """Kinds at the peak beside model state and law, the module of the peak, and growth that is certain."""
    records = [
        step(1, 0.5),
        MemoryRecord(step=1, parameters_bytes=100, gradients_bytes=1, optimizer_bytes=3),
        memory_step(3 * 2**20 + 100, [0, 2048, 4096, 6144]),
    ]
    law = {"ranks": [{"parameters": 100, "gradients": 1, "optimizer": 3}]}
    summary = summarise(load_run(folder_with(tmp_path, {**run_json(), "law": law}, records, records)))
    stream = io.StringIO()
    Console(file=stream, width=100).print(run_table(summary))
    text = stream.getvalue()
    for part in (
        "activations",
        "3.00 MiB",
        "the peak is in backward of blocks.1",
        "GROWS by 2.00 KiB a step",
        "blocks.0",
    ):
        assert part in text, part
    summary["memory"]["growth_ci95"] = [-1.0, 5.0]
    stream.truncate(0)
    Console(file=stream, width=100).print(run_table(summary))
    assert "GROWS" not in stream.getvalue()


def test_words_fit_their_numbers(tmp_path: Path) -> None:
    """One step is no steps, no interval leaves no gap, and two ranks on a CPU share its cores."""
    ranks: list[list[Record]] = [[step(0, 1.0)] for _ in range(2)]
    folder = folder_with(tmp_path, run_json(), *ranks)
    summary = summarise(load_run(folder))
    peak = {"flops_per_second": 1e12, "devices": 1, "dtype": "fp32", "source": "measured"}
    summary["utilization"] |= {"mfu": 0.5, "hfu": 0.5, "peak": peak}
    stream = io.StringIO()
    Console(file=stream, width=200).print(run_table(summary))
    told = stream.getvalue()
    assert "8.00 samples/s in this run, 1 step after 0 of warm-up" in told
    assert "MFU 50.00% of 1 TFLOP/s in fp32, that of all cores together (measured)" in told
    assert "device(s)" not in told
    summary["comm"] |= {"exposed_seconds": 0.1, "calls_per_step": 1.0, "payload_bytes_per_step": {}}
    summary["comm"] |= {"waiting_seconds": 0.0, "transfer_seconds": 0.1, "queued_seconds": 0.0, "alone_seconds": None}
    Console(file=stream, width=200).print(run_table(summary))
    assert "1 collective a step" in stream.getvalue()


def test_the_table_has_the_dollars_that_the_page_has(tmp_path: Path) -> None:
    """With their interval and where the price is from; without a price there is no line of them."""
    folder = made_run(tmp_path)
    summary = summarise_and_report(folder, Given(usd_per_gpu_hour=2.5))
    stream = io.StringIO()
    Console(file=stream, width=200).print(run_table(summary))
    cost = summary["cost"]
    usd = f"{units.usd(cost['usd_per_million_samples'])} {units.interval(cost['usd_ci95'])}"
    assert f"{usd} per million samples, at $2.50: given to report" in stream.getvalue()
    page = (folder.path / "report.md").read_text().replace("\\", "")
    assert units.usd(cost["usd_per_million_samples"]) in page
    Console(file=stream, width=200).print(run_table(summarise_and_report(folder)))
    assert stream.getvalue().count("$") == 2
