"""What is said of the cards is what they did over the measured steps, to the number, or why it is not known."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.capture import telemetry
from scalelab.profiles.records import Record, StartRecord
from scalelab.profiles.runfolder import RunFolder, appending
from scalelab.reports.table import run_table

from tests.profiles.test_summary import explained, folder_with, run_json, silent, step
from tests.support import fake_nvml
from tests.support.fake_nvml import FakeCard

UUIDS = ["11111111-aaaa-bbbb-cccc-000000000001", "22222222-aaaa-bbbb-cccc-000000000002"]
FIRST_NS = 7_000_000_000
"""On the host's clock, when the first measured step begins."""
STEPS, STEP_SECONDS, SAMPLES = 20, 0.25, 4
BOOT = "boot"


def start(rank: int, **values: Any) -> StartRecord:
    fields: dict[str, Any] = {
        "local_rank": rank, "world_size": 2, "host": "h", "boot_id": BOOT, "pid": 1, "device": "cuda",
        "device_name": "a card", "device_uuid": UUIDS[rank], "wall_seconds": 0.0, "monotonic_seconds": 0.0,
        "threads": 1, "versions": {}, **values,
    }  # fmt: skip
    return StartRecord(rank=rank, **fields)


def steps(count: int = STEPS, *, pause_after: int | None = None, pause_seconds: float = 0.0) -> list[Record]:
    """Measured steps without a break, but for one after step `pause_after`; a warm-up step comes before."""
    records: list[Record] = [step(0, 1.0, "warmup", begin_ns=FIRST_NS - 10**9)]
    for index in range(count):
        late = pause_seconds if pause_after is not None and index > pause_after else 0.0
        at = index * STEP_SECONDS + late
        begin_ns = FIRST_NS + round(at * 1e9)
        records.append(step(index + 1, STEP_SECONDS, start_seconds=1.0 + at, samples=SAMPLES, begin_ns=begin_ns))
    return records


def watch(
    folder: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    *cards: FakeCard,
    ranks: int = 1,
    host: int = 0,
    boot_id: str = BOOT,
    from_seconds: float = -2.0,
    to_seconds: float = 12.0,
) -> None:
    """Write the telemetry of planted cards, read from and to these seconds from the first measured step."""
    now_ns = FIRST_NS + round(from_seconds * 1e9)
    end_ns = FIRST_NS + round(to_seconds * 1e9)
    monkeypatch.setattr(fake_nvml, "cards", list(cards))
    monkeypatch.setattr(fake_nvml, "clock_ns", lambda: now_ns)

    def stopped(seconds: float) -> bool:
        nonlocal now_ns
        now_ns += round(seconds * 1e9)
        return now_ns >= end_ns

    path = folder.telemetry_file(host)
    path.parent.mkdir(exist_ok=True)
    uuids: dict[int, str | None] = {rank: UUIDS[rank] for rank in range(ranks)}
    with appending(path) as write:
        telemetry.watch(uuids, write, stopped, host="h", boot_id=boot_id, load=fake_nvml.load, clock_ns=lambda: now_ns)


def cuda_run(tmp_path: Path, records: list[Record], ranks: int = 1) -> RunFolder:
    """A run on cards, whose ranks all have the same steps."""
    facts = run_json(ranks, device="cuda")
    return folder_with(tmp_path, facts, *([start(rank), *records] for rank in range(ranks)))


def utilization(folder: RunFolder) -> tuple[dict[str, Any], dict[str, str]]:
    """That part of the summary and its reasons; every null has one."""
    summary = summarise(load_run(folder))
    found, reasons = summary["utilization"], summary["reasons"]
    assert {path for path in silent(found, "utilization") if not explained(path, reasons)} == set()
    return found, {path.removeprefix("utilization."): why for path, why in reasons.items()}


def test_a_planted_hundred_watts_are_a_hundred_joules_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 W over steps of 0.25 s and 4 samples: 6.25 J a sample, by the energy counter."""
    folder = cuda_run(tmp_path, steps())
    watch(folder, monkeypatch, FakeCard(f"GPU-{UUIDS[0]}", watts=100.0, percent=80))
    found, _ = utilization(folder)
    assert found["joules_per_sample"] == pytest.approx(100 * STEP_SECONDS / SAMPLES, rel=1e-6)
    assert found["energy_source"] == {"method": "energy_counter", "why": "every card counts its energy"}
    assert found["power_watts"] == pytest.approx(100.0)
    assert (found["gpu_percent"], found["memory_percent"]) == (80.0, 40.0)
    assert (found["sm_clock_mhz"], found["memory_clock_mhz"]) == (1700.0, 2600.0)
    assert (found["memory_used_bytes"], found["temperature_celsius"]) == (1 << 20, 60)
    assert found["pcie_rx_bytes_per_second"] == 7000
    assert found["throttled_share"] == {"any": 0.0}
    assert [row["ranks"] for row in found["cards"]] == [[0]]


@pytest.mark.parametrize(
    ("card", "why"),
    [
        (FakeCard(f"GPU-{UUIDS[0]}", errors={"TotalEnergyConsumption": "NotSupported"}), "NotSupported"),
        (FakeCard(f"GPU-{UUIDS[0]}", counter_joules=lambda seconds: 100 * seconds % 1000), "went back"),
        (FakeCard(f"GPU-{UUIDS[0]}", counter_joules=lambda _: 5.0), "stood at 0"),
    ],
    ids=["missing", "wraps", "stands still"],
)
@pytest.mark.fault(40)
def test_without_a_counter_power_is_integrated_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, card: FakeCard, why: str
) -> None:
    """The same joules from the readings of power."""
    folder = cuda_run(tmp_path, steps())
    watch(folder, monkeypatch, card)
    found, _ = utilization(folder)
    assert found["joules_per_sample"] == pytest.approx(6.25, rel=1e-6)
    assert found["energy_source"]["method"] == "integrated_power"
    assert why in found["energy_source"]["why"]


def test_only_measured_steps_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a card does before, after and in an evaluation between is not theirs."""
    pause = (10 * STEP_SECONDS, 3.0)

    class Changing(FakeCard):
        """Draws 100 W in the measured steps and 900 W at any other time."""

        @property
        def watts(self) -> float:
            at = (fake_nvml.clock_ns() - FIRST_NS) * 1e-9
            measured = 0 <= at < STEPS * STEP_SECONDS + pause[1] and not pause[0] <= at < sum(pause)
            return 100.0 if measured else 900.0

        @watts.setter
        def watts(self, _: float) -> None:
            return

        @property
        def percent(self) -> int:
            return round(self.watts / 10)

        @percent.setter
        def percent(self, _: int) -> None:
            return

    def joules(seconds: float) -> float:
        at = seconds - FIRST_NS * 1e-9
        in_pause = min(max(at - pause[0], 0.0), pause[1])
        in_steps = min(max(at, 0.0), STEPS * STEP_SECONDS + pause[1]) - in_pause
        return 1e6 + 900 * at - 800 * in_steps

    folder = cuda_run(tmp_path, steps(pause_after=9, pause_seconds=pause[1]))
    watch(folder, monkeypatch, Changing(f"GPU-{UUIDS[0]}", counter_joules=joules))
    found, _ = utilization(folder)
    assert found["joules_per_sample"] == pytest.approx(6.25, rel=1e-6)
    assert found["gpu_percent"] == 10.0
    assert found["power_watts"] == pytest.approx(100.0)


def test_two_cards_are_a_mean_and_joules_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Percent and power are means over cards; a sample costs what all of them drew."""
    folder = cuda_run(tmp_path, steps(), ranks=2)
    cards = [FakeCard(f"GPU-{uuid}", watts=watts, percent=percent) for uuid, watts, percent in zip(
        UUIDS, (100.0, 300.0), (20, 60), strict=True)]  # fmt: skip
    watch(folder, monkeypatch, *cards, ranks=2)
    found, _ = utilization(folder)
    assert found["joules_per_sample"] == pytest.approx(400 * STEP_SECONDS / (2 * SAMPLES))
    assert (found["gpu_percent"], found["power_watts"]) == (40.0, pytest.approx(200.0))
    assert [(row["ranks"], row["gpu_percent"]) for row in found["cards"]] == [([0], 20.0), ([1], 60.0)]


def test_one_card_without_a_field_leaves_the_mean_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean over the cards that happen to answer would be of another thing; the reason names the card."""
    folder = cuda_run(tmp_path, steps(), ranks=2)
    cards = [FakeCard(f"GPU-{UUIDS[0]}", errors={"UtilizationRates": "NoPermission"}), FakeCard(f"GPU-{UUIDS[1]}")]
    watch(folder, monkeypatch, *cards, ranks=2)
    found, reasons = utilization(folder)
    assert found["gpu_percent"] is None
    assert reasons["gpu_percent"] == "card of rank 0: NVML: NoPermission"
    assert [row["gpu_percent"] for row in found["cards"]] == [None, 50.0]
    assert found["joules_per_sample"] is not None


def test_reasons_for_slow_clocks_are_shares_of_the_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle card is not held back; each reason has its share, and so has any at all."""

    class Hot(FakeCard):
        """Idle in the first half of the steps, in the second slowed down by heat and its power cap."""

        @property
        def clock_events(self) -> int:
            return 0x1 if fake_nvml.clock_ns() < FIRST_NS + STEPS * STEP_SECONDS * 5e8 else 0x20 | 0x4

        @clock_events.setter
        def clock_events(self, _: int) -> None:
            return

    folder = cuda_run(tmp_path, steps())
    watch(folder, monkeypatch, Hot(f"GPU-{UUIDS[0]}"))
    found, _ = utilization(folder)
    assert found["throttled_share"] == {"any": 0.5, "sw_power_cap": 0.5, "sw_thermal_slowdown": 0.5}


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ({"from_seconds": 0.5}, "began after"),
        ({"to_seconds": 3.0}, "ended before"),
        ({"boot_id": "another"}, "do not have one clock"),
    ],
)
def test_what_no_reading_covers_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: dict[str, Any], why: str
) -> None:
    """Neither a part of the window nor another clock stands for the whole."""
    folder = cuda_run(tmp_path, steps())
    watch(folder, monkeypatch, FakeCard(f"GPU-{UUIDS[0]}"), **seen)
    found, reasons = utilization(folder)
    assert found["gpu_percent"] is found["joules_per_sample"] is found["power_watts"] is None
    assert why in reasons["gpu_percent"]
    assert why in reasons["joules_per_sample"]


@pytest.mark.fault(40)
def test_a_hole_in_the_readings_is_not_bridged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds that nobody looked at are not known; the energy counter went on counting, yet its edges are far."""
    folder = cuda_run(tmp_path, steps())
    watch(folder, monkeypatch, FakeCard(f"GPU-{UUIDS[0]}"))
    path = folder.telemetry_file(0)
    lines = path.read_bytes().splitlines(keepends=True)
    # Readings are a tenth of a second apart, from two seconds before the first step on.
    path.write_bytes(b"".join(lines[:30] + lines[50:]))
    _, reasons = utilization(folder)
    assert "hole of 2.1 s" in reasons["gpu_percent"]


def test_a_card_that_is_lost_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for what is missing at the end is the one that NVML gave."""
    folder = cuda_run(tmp_path, steps())
    watch(folder, monkeypatch, FakeCard(f"GPU-{UUIDS[0]}", lost_at_ns=FIRST_NS + 10**9))
    _, reasons = utilization(folder)
    assert reasons["gpu_percent"] == "telemetry ended before the measured steps did (NVML: GpuIsLost)"


def test_a_window_shorter_than_nvmls_own_averages_is_not_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML's percentages would be of the time before it."""
    folder = cuda_run(tmp_path, steps(3))
    watch(folder, monkeypatch, FakeCard(f"GPU-{UUIDS[0]}"))
    found, reasons = utilization(folder)
    assert found["gpu_percent"] is None
    assert "0.75 s" in reasons["gpu_percent"]


@pytest.mark.fault(53)
def test_a_file_cut_anywhere_is_read_to_the_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A half last line is counted and passed over, at whichever byte it ends; nothing is raised."""
    folder = cuda_run(tmp_path, steps())
    watch(folder, monkeypatch, FakeCard(f"GPU-{UUIDS[0]}"), to_seconds=-1.7)
    path = folder.telemetry_file(0)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        (host,) = load_run(folder).telemetry
        whole = content[:length].count(b"\n") + (content[length : length + 1] == b"\n")
        assert (host.start is not None) + len(host.readings) == whole
        assert host.unreadable == (length > 0 and not content[:length].endswith(b"\n") and content[length] != 10)
    path.write_bytes(content[:-5])
    assert summarise(load_run(folder))["unreadable_lines"] == 1


@pytest.mark.fault(40)
def test_without_telemetry_the_reason_is_that(tmp_path: Path) -> None:
    """A loop of one's own, or a side process that never came up."""
    found, reasons = utilization(cuda_run(tmp_path, steps()))
    assert found["gpu_percent"] is found["cards"] is None
    assert "no telemetry was recorded" in reasons["joules_per_sample"]


def test_a_rank_whose_card_nobody_read_leaves_all_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The energy of half the cards is not that of a sample."""
    folder = cuda_run(tmp_path, steps(), ranks=2)
    watch(folder, monkeypatch, FakeCard(f"GPU-{UUIDS[0]}"), ranks=1)
    found, reasons = utilization(folder)
    assert found["joules_per_sample"] is None
    assert reasons["gpu_percent"] == "rank 1 is in no host's telemetry"


def test_on_cpu_all_is_null(tmp_path: Path) -> None:
    """There is no card to tell of."""
    found, reasons = utilization(folder_with(tmp_path, run_json(), [step(1, 1.0)], [step(1, 1.0)]))
    assert set(found.values()) == {None}
    for name in ("gpu_percent", "joules_per_sample", "p99_h2d_seconds"):
        assert reasons[name] == "the run used no GPU"


def test_p99_of_the_copy_needs_a_hundred_steps_on_cuda(tmp_path: Path) -> None:
    """One step in fifty copies for 40 ms, the others for 1: the 99th percentile is 40 ms, of the mean over ranks."""
    phases = [{"data": 0.0, "h2d": 0.04 if index % 50 == 0 else 0.001} for index in range(200)]
    records: list[Record] = [step(index, 1.0, phases=each) for index, each in enumerate(phases)]
    found, _ = utilization(cuda_run(tmp_path / "a", records))
    assert found["p99_h2d_seconds"] == pytest.approx(0.04)
    found, reasons = utilization(cuda_run(tmp_path / "b", records[:99]))
    assert found["p99_h2d_seconds"] is None
    assert reasons["p99_h2d_seconds"] == "too few measured steps (99)"


def test_the_table_has_one_line_of_it_where_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy with its method, and nothing on CPU."""
    folder = cuda_run(tmp_path / "a", steps())
    watch(folder, monkeypatch, FakeCard(f"GPU-{UUIDS[0]}", percent=80, clock_events=0x4))
    known, on_cpu = (io.StringIO(), io.StringIO())
    Console(file=known, width=200).print(run_table(summarise(load_run(folder))))
    for part in ("a kernel ran 80% of the time", "100 W a card", "6.25 J a sample", "energy counter", "sw_power_cap"):
        assert part in known.getvalue(), part
    cpu = folder_with(tmp_path / "b", run_json(), [step(1, 1.0)])
    Console(file=on_cpu, width=200).print(run_table(summarise(load_run(cpu))))
    assert "GPU" not in on_cpu.getvalue()
