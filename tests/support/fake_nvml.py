"""A stand-in for nvidia-ml-py: the names, units and exceptions of `pynvml` that telemetry uses, for planted cards.

Imported as it is, or copied to a folder as `pynvml.py` for a process, which finds its cards in FAKE_NVML.
"""

# ruff: noqa: N801, N802, N818 (the names are pynvml's)

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
NVML_TEMPERATURE_GPU = 0
NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1
NVML_DEVICE_MIG_ENABLE = 1
VARIABLE = "FAKE_NVML"


class NVMLError(Exception):
    def __str__(self) -> str:
        return type(self).__name__.removeprefix("NVMLError_")


class NVMLError_NotSupported(NVMLError): ...


class NVMLError_NoPermission(NVMLError): ...


class NVMLError_NotFound(NVMLError): ...


class NVMLError_InvalidArgument(NVMLError): ...


class NVMLError_FunctionNotFound(NVMLError): ...


class NVMLError_LibraryNotFound(NVMLError): ...


class NVMLError_GpuIsLost(NVMLError): ...


class NVMLError_Timeout(NVMLError): ...


class NVMLError_Unknown(NVMLError): ...


class FakeCard:
    """A card that draws `watts` and is busy for `percent` of the time. `errors` maps a function's name without its
    `nvmlDeviceGet` to the exception that it raises; `lost_at_ns` is when it falls off the bus."""

    def __init__(
        self,
        uuid: str,
        *,
        watts: float = 100.0,
        percent: int = 50,
        mig_mode: int = 0,
        clock_events: int = 0,
        errors: dict[str, str] | None = None,
        lost_at_ns: float = float("inf"),
        counter_joules: Callable[[float], float] | None = None,
    ) -> None:
        self.uuid, self.watts, self.percent, self.mig_mode = uuid, watts, percent, mig_mode
        self.clock_events, self.errors, self.lost_at_ns = clock_events, errors or {}, lost_at_ns
        self.counter_joules = counter_joules or (lambda seconds: 5000.0 + watts * seconds)


cards: list[FakeCard] = []
broken: str | None = None
"""The exception of nvmlInit, by name."""
asked: list[tuple[str, str]] = []
"""The calls that came: a function's name without `nvmlDeviceGet`, and the card's UUID."""
clock_ns: Callable[[], int] = time.perf_counter_ns


def nvmlInit() -> None:
    if broken is not None:
        raise globals()[f"NVMLError_{broken}"]


def load() -> Any:
    """What `load_nvml` does with the real one."""
    import sys

    nvmlInit()
    return sys.modules[__name__]


def nvmlDeviceGetHandleByUUID(uuid: str) -> FakeCard:
    for card in cards:
        if card.uuid == uuid:
            return card
    raise NVMLError_NotFound


def _answer(name: str, card: FakeCard, value: Any) -> Any:
    asked.append((name, card.uuid))
    if clock_ns() >= card.lost_at_ns:
        raise NVMLError_GpuIsLost
    if name in card.errors:
        raise globals()[f"NVMLError_{card.errors[name]}"]
    return value


def nvmlDeviceGetName(card: FakeCard) -> str:
    return _answer("Name", card, "a card")


def nvmlDeviceGetMigMode(card: FakeCard) -> list[int]:
    return _answer("MigMode", card, [card.mig_mode, card.mig_mode])


def nvmlDeviceGetUtilizationRates(card: FakeCard) -> Any:
    return _answer("UtilizationRates", card, SimpleNamespace(gpu=card.percent, memory=card.percent // 2))


def nvmlDeviceGetMemoryInfo(card: FakeCard) -> Any:
    return _answer("MemoryInfo", card, SimpleNamespace(total=1 << 30, used=1 << 20, free=0))


def nvmlDeviceGetPowerUsage(card: FakeCard) -> int:
    return _answer("PowerUsage", card, round(card.watts * 1000))


def nvmlDeviceGetTotalEnergyConsumption(card: FakeCard) -> int:
    return _answer("TotalEnergyConsumption", card, round(card.counter_joules(clock_ns() * 1e-9) * 1000))


def nvmlDeviceGetClockInfo(card: FakeCard, kind: int) -> int:
    return _answer("ClockInfo", card, {NVML_CLOCK_SM: 1700, NVML_CLOCK_MEM: 2600}[kind])


def nvmlDeviceGetTemperature(card: FakeCard, sensor: int) -> int:
    return _answer("Temperature", card, 60)


def nvmlDeviceGetCurrentClocksEventReasons(card: FakeCard) -> int:
    return _answer("CurrentClocksEventReasons", card, card.clock_events)


def nvmlDeviceGetCurrentClocksThrottleReasons(card: FakeCard) -> int:
    return _answer("CurrentClocksThrottleReasons", card, card.clock_events)


def nvmlDeviceGetPcieThroughput(card: FakeCard, counter: int) -> int:
    return _answer("PcieThroughput", card, {NVML_PCIE_UTIL_TX_BYTES: 3, NVML_PCIE_UTIL_RX_BYTES: 7}[counter])


if VARIABLE in os.environ:
    given = json.loads(os.environ[VARIABLE])
    broken = given.get("broken")
    cards = [FakeCard(**card) for card in given["cards"]]
