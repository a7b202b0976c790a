"""Cards are read field by field: what one does not give is null with the reason, and nothing that fails is a 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from scalelab.profiles.capture.nvml import CLOCK_EVENTS
from scalelab.profiles.capture.telemetry import PERIOD_SECONDS, watch
from scalelab.profiles.records import Record
from scalelab.profiles.used import TelemetryLackRecord, TelemetryRecord, TelemetryStartRecord

from tests.support import fake_nvml
from tests.support.fake_nvml import FakeCard

UUID, OTHER = "11111111-aaaa-bbbb-cccc-000000000001", "22222222-aaaa-bbbb-cccc-000000000002"
FIELDS = set(TelemetryRecord.__struct_fields__) - {"card", "at_ns"}
PCIE = {"pcie_rx_bytes_per_second", "pcie_tx_bytes_per_second"}


@dataclass
class Watched:
    """What a watch over planted cards wrote, on a clock that moves only while it waits."""

    cards: list[FakeCard]
    now_ns: int = 0
    start: TelemetryStartRecord | None = None
    readings: list[TelemetryRecord] = field(default_factory=list)
    lacks: list[TelemetryLackRecord] = field(default_factory=list)

    def write(self, *records: Record) -> None:
        for record in records:
            if isinstance(record, TelemetryStartRecord):
                assert self.start is None
                assert not self.readings
                self.start = record
            elif isinstance(record, TelemetryRecord):
                self.readings.append(record)
            else:
                assert isinstance(record, TelemetryLackRecord)
                self.lacks.append(record)

    def given(self, card: int = 0) -> set[str]:
        """The fields that the card gave at any time."""
        mine = [reading for reading in self.readings if reading.card == card]
        return {name for name in FIELDS if any(getattr(reading, name) is not None for reading in mine)}

    def why(self, card: int = 0) -> dict[str | None, str]:
        return {lack.field: lack.why for lack in self.lacks if lack.card == card}


Watch = Callable[..., Watched]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watch:
    def run(
        *cards: FakeCard,
        uuids: Mapping[int, str | None] | None = None,
        samples: int = 40,
        broken: str | None = None,
        load: Callable[[], Any] = fake_nvml.load,
    ) -> Watched:
        found = Watched(list(cards))
        monkeypatch.setattr(fake_nvml, "cards", list(cards))
        monkeypatch.setattr(fake_nvml, "broken", broken)
        monkeypatch.setattr(fake_nvml, "asked", [])
        monkeypatch.setattr(fake_nvml, "clock_ns", lambda: found.now_ns)
        waits = 0

        def stopped(seconds: float) -> bool:
            nonlocal waits
            waits += 1
            assert 0 <= seconds <= PERIOD_SECONDS
            found.now_ns += round(seconds * 1e9)
            return waits >= samples

        ranks = {0: UUID} if uuids is None else uuids
        watch(ranks, found.write, stopped, host="h", boot_id="b", load=load, clock_ns=lambda: found.now_ns)
        return found

    return run


def test_a_card_that_gives_all_is_read_at_an_even_pace(watched: Watch) -> None:
    """Every field comes in its unit, ten times a second and once more at the end; nothing is lacking."""
    found = watched(FakeCard(f"GPU-{UUID}", watts=250.0, percent=80, clock_events=0x4 | 0x20))
    assert found.given() == FIELDS
    assert not found.lacks
    assert [reading.at_ns for reading in found.readings] == [round(index * 1e8) for index in range(41)]
    reading = found.readings[-2]
    assert (reading.power_watts, reading.gpu_percent, reading.memory_percent) == (250.0, 80, 40)
    assert (reading.sm_clock_mhz, reading.memory_clock_mhz, reading.temperature_celsius) == (1700, 2600, 60)
    assert reading.clock_events == ["sw_power_cap", "sw_thermal_slowdown"]
    assert reading.energy_joules == pytest.approx(5000 + 250 * reading.at_ns * 1e-9)
    assert {each.pcie_rx_bytes_per_second for each in found.readings} == {None, 7000}
    assert {each.pcie_tx_bytes_per_second for each in found.readings} == {None, 3000}


def test_pcie_is_asked_of_one_card_and_direction_with_every_second_sample(watched: Watch) -> None:
    """Its calls block for 20 ms: they take a fifth of a sample's time at most, and come round to every counter."""
    watched(FakeCard(f"GPU-{UUID}"), FakeCard(f"GPU-{OTHER}"), uuids={0: UUID, 1: OTHER}, samples=80)
    calls = [uuid for name, uuid in fake_nvml.asked if name == "PcieThroughput"]
    samples = sum(name == "PowerUsage" for name, _ in fake_nvml.asked) / 2
    assert len(calls) == pytest.approx(samples / 2, abs=1)
    assert calls.count(f"GPU-{UUID}") == pytest.approx(len(calls) / 2, abs=1)


# What NVML's functions give, by their names without `nvmlDeviceGet`.
GIVES = {
    "UtilizationRates": {"gpu_percent", "memory_percent"},
    "MemoryInfo": {"memory_used_bytes"},
    "PowerUsage": {"power_watts"},
    "TotalEnergyConsumption": {"energy_joules"},
    "ClockInfo": {"sm_clock_mhz", "memory_clock_mhz"},
    "Temperature": {"temperature_celsius"},
    "CurrentClocksEventReasons": {"clock_events"},
    "PcieThroughput": PCIE,
}


@pytest.mark.parametrize("error", ["NotSupported", "NoPermission"])
@pytest.mark.parametrize("function", list(GIVES))
def test_what_a_card_refuses_is_null_with_the_reason_and_not_asked_again(
    watched: Watch, function: str, error: str
) -> None:
    """All else is read on; the refusal is told once for each field."""
    found = watched(FakeCard(f"GPU-{UUID}", errors={function: error}))
    assert found.given() == FIELDS - GIVES[function]
    assert found.why() == dict.fromkeys(GIVES[function], f"NVML: {error}")
    assert len(found.lacks) == len(GIVES[function])
    assert sum(name == function for name, _ in fake_nvml.asked) <= len(GIVES[function])


def test_a_passing_failure_is_told_once_and_asked_again(watched: Watch) -> None:
    """A time-out leaves a null in its own reading alone."""

    class Slow(FakeCard):
        """Answers in time again from half a second on."""

        @property
        def errors(self) -> dict[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
            return {"PowerUsage": "Timeout"} if fake_nvml.clock_ns() < 5 * 10**8 else {}

        @errors.setter
        def errors(self, _: dict[str, str]) -> None:
            return

    found = watched(Slow(f"GPU-{UUID}"), samples=9)
    assert found.why() == {"power_watts": "NVML: Timeout"}
    assert len(found.lacks) == 1
    assert [reading.power_watts for reading in found.readings] == [None] * 5 + [100.0] * 5


def test_older_drivers_are_asked_by_the_older_name(watched: Watch) -> None:
    """Without the newer function of clock event reasons the older one gives the same."""
    found = watched(FakeCard(f"GPU-{UUID}", clock_events=0x8, errors={"CurrentClocksEventReasons": "FunctionNotFound"}))
    assert not found.lacks
    assert found.readings[0].clock_events == ["hw_slowdown"]


def test_every_bit_of_clock_events_has_a_name_and_unknown_ones_are_shown(watched: Watch) -> None:
    """No bit is dropped."""
    found = watched(FakeCard(f"GPU-{UUID}", clock_events=sum(CLOCK_EVENTS) | 1 << 40))
    assert found.readings[0].clock_events == [*CLOCK_EVENTS.values(), "unknown_0x10000000000"]


def test_a_value_that_says_it_is_none_is_null(watched: Watch) -> None:
    """NVML has numbers for a value that is not available: they are no measurement."""
    found = watched(FakeCard(f"GPU-{UUID}", watts=(2**32 - 1) / 1000))
    assert "power_watts" not in found.given()
    assert "not available" in found.why()["power_watts"]


@pytest.mark.fault(40)
def test_a_card_that_is_lost_in_the_middle_ends_its_own_readings_alone(watched: Watch) -> None:
    """What was read before stays; the others are read on; when the last is lost the watch ends by itself."""
    lost, whole = FakeCard(f"GPU-{UUID}", lost_at_ns=10**9), FakeCard(f"GPU-{OTHER}")
    found = watched(lost, whole, uuids={0: UUID, 1: OTHER}, samples=30)
    assert found.why(0) == {None: "NVML: GpuIsLost"}
    assert sum(reading.card == 0 for reading in found.readings) == 10
    assert sum(reading.card == 1 for reading in found.readings) == 31
    assert len(found.lacks) == 1
    alone = watched(FakeCard(f"GPU-{UUID}", lost_at_ns=10**9), samples=10**6)
    assert alone.now_ns == 10**9


@pytest.mark.fault(40)
@pytest.mark.parametrize("error", ["LibraryNotFound", "NoPermission", "Unknown"])
def test_nvml_that_does_not_load_is_a_reason(watched: Watch, error: str) -> None:
    """The file names the cards and says why nothing is known of them."""
    found = watched(FakeCard(f"GPU-{UUID}"), broken=error)
    assert not found.readings
    assert found.start is not None
    assert [card.uuid for card in found.start.cards] == [UUID]
    assert found.why() == {None: f"NVML does not load: {error}"}


def test_a_missing_module_is_a_reason(watched: Watch) -> None:
    """nvidia-ml-py itself may be gone."""

    def load() -> Any:
        raise ModuleNotFoundError("No module named 'pynvml'")

    assert "No module named 'pynvml'" in watched(FakeCard(f"GPU-{UUID}"), load=load).why()[None]


@pytest.mark.fault(40)
def test_of_a_mig_instance_only_its_memory_is_asked(watched: Watch) -> None:
    """Power, energy and clocks are the whole card's, of which others have parts."""
    found = watched(FakeCard(f"MIG-{UUID}"))
    assert found.start is not None
    assert found.start.cards[0].mig
    assert found.given() == {"memory_used_bytes"}
    assert set(found.why()) == FIELDS - {"memory_used_bytes"}
    assert all("MIG instance" in why for why in found.why().values())


@pytest.mark.fault(40)
def test_a_card_in_mig_mode_whose_instance_is_not_known_is_not_read(watched: Watch) -> None:
    """Its numbers would be those of all instances."""
    found = watched(FakeCard(f"GPU-{UUID}", mig_mode=fake_nvml.NVML_DEVICE_MIG_ENABLE))
    assert not found.readings
    assert "MIG mode" in found.why()[None]


def test_cards_of_others_are_never_asked(watched: Watch) -> None:
    """Which card a rank has is by its UUID, not by its place: CUDA_VISIBLE_DEVICES may leave some out."""
    found = watched(FakeCard(f"GPU-{OTHER}", watts=700.0), FakeCard(f"GPU-{UUID}", watts=100.0), uuids={0: UUID})
    assert {uuid for _, uuid in fake_nvml.asked} == {f"GPU-{UUID}"}
    assert {reading.power_watts for reading in found.readings} == {100.0}


def test_ranks_that_share_a_card_are_read_once(watched: Watch) -> None:
    """Two ranks of one card are one row."""
    found = watched(FakeCard(f"GPU-{UUID}"), uuids={0: UUID, 1: UUID}, samples=3)
    assert found.start is not None
    assert [card.ranks for card in found.start.cards] == [[0, 1]]
    assert len(found.readings) == 4


@pytest.mark.parametrize(("uuid", "why"), [(None, "torch gave no UUID"), (OTHER, "NVML does not give the card")])
def test_a_card_that_cannot_be_found_is_a_reason(watched: Watch, uuid: str | None, why: str) -> None:
    """Without a UUID, or with one that NVML does not know, another card is never taken for it."""
    found = watched(FakeCard(f"GPU-{UUID}"), uuids={0: uuid})
    assert not found.readings
    assert why in found.why()[None]


def test_the_names_that_are_asked_for_are_pynvmls() -> None:
    """The stand-in has no function, constant or exception that nvidia-ml-py does not have."""
    pynvml = pytest.importorskip("pynvml")
    names = [name for name in dir(fake_nvml) if name.lower().startswith("nvml")]
    assert len(names) > 25
    assert [name for name in names if not hasattr(pynvml, name)] == []
    for name in names:
        if isinstance(value := getattr(fake_nvml, name), int):
            assert value == getattr(pynvml, name), name
