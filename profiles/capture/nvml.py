"""What NVML says of the cards of a run, field by field, and why it does not say something.

Imports no torch and makes no CUDA context: NVML asks the driver. What its functions give, in which units and over
which time, is by NVIDIA's reference (nvml.h); the module that is asked is nvidia-ml-py's `pynvml`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..used import WatchedCard

# Bits of nvmlDeviceGetCurrentClocksEventReasons, by nvml.h.
CLOCK_EVENTS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}
# "Throughput in KB/s": nvml.h does not say which thousand.
PCIE_UNIT_BYTES = 1000
# After these a card answers nothing any more.
_GONE = ("GpuIsLost", "GpuNotFound", "ResetRequired", "Uninitialized", "DriverNotLoaded", "LibraryNotFound")
# After these it may answer the next time. Whatever else NVML answers, it will answer again.
_PASSING = ("Timeout", "InUse", "NoData", "NotReady", "Memory", "InsufficientResources", "Unknown")
# NVML_VALUE_NOT_AVAILABLE, in 32 bits and in 64.
_ABSENT = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
_MIG = "a MIG instance: NVML gives this for the whole card only, of which others may have parts"
_MIG_UNKNOWN = "the card is in MIG mode, and which of its instances the rank has is not known"

Lack = Callable[[str | None, str], None]
"""Told of a field that is not given (None: all of them), and why."""


class CardGoneError(Exception):
    """The card answers nothing any more. The text says why."""


@dataclass(frozen=True)
class _Question:
    """One call to NVML: the fields that its numbers are, once multiplied by `scale`."""

    fields: tuple[str, ...]
    ask: Callable[[Any], tuple[Any, ...]]
    scale: float = 1


class Card:
    """One card, or MIG instance. `lack` is told of each field that it does not give, once."""

    def __init__(self, nvml: Any, handle: Any, lack: Lack, *, mig: bool = False) -> None:
        self._handle = handle
        self._lack = lack
        self._told: set[str] = set()
        self._passing = tuple(_errors(nvml, _PASSING))
        self._gone = tuple(_errors(nvml, _GONE))
        self._questions = _questions(nvml)
        self._pcie = _pcie_questions(nvml)
        if mig:
            kept = [question for question in self._questions if question.fields == ("memory_used_bytes",)]
            for question in (*self._questions, *self._pcie):
                if question not in kept:
                    self._tell(question, _MIG)
            self._questions, self._pcie = kept, []

    def read(self) -> dict[str, Any]:
        """Every field but those of PCIe, null where it is not given. Raises CardGoneError."""
        return {name: value for question in list(self._questions) for name, value in self._ask(question).items()}

    def read_pcie(self, turn: int) -> dict[str, Any]:
        """Bytes a second over the next 20 ms, for which this waits: one direction, then with the next `turn` the other.

        Raises CardGoneError.
        """
        return self._ask(self._pcie[turn % len(self._pcie)]) if self._pcie else {}

    def _ask(self, question: _Question) -> dict[str, Any]:
        try:
            values = question.ask(self._handle)
            if not any(value in _ABSENT for value in values if isinstance(value, int)):
                scaled = values if question.scale == 1 else tuple(value * question.scale for value in values)
                return dict(zip(question.fields, scaled, strict=True))
            why, again = "NVML answers that the value is not available", True
        except self._gone as error:
            raise CardGoneError(f"NVML: {error}") from error
        except self._passing as error:
            why, again = f"NVML: {error}", True
        except Exception as error:  # also what ctypes makes of a library that is older than the module
            why, again = f"NVML: {error}", False
        self._tell(question, why)
        if not again:
            self._questions = [each for each in self._questions if each is not question]
            self._pcie = [each for each in self._pcie if each is not question]
        return dict.fromkeys(question.fields)

    def _tell(self, question: _Question, why: str) -> None:
        for name in question.fields:
            if name not in self._told:
                self._told.add(name)
                self._lack(name, why)


def _questions(nvml: Any) -> list[_Question]:
    """All but PCIe. Energy comes first: nearest to the time that the reading has."""

    def rates(card: Any) -> tuple[Any, ...]:
        found = nvml.nvmlDeviceGetUtilizationRates(card)
        return found.gpu, found.memory

    def events(card: Any) -> tuple[Any, ...]:
        try:
            bits = nvml.nvmlDeviceGetCurrentClocksEventReasons(card)
        except (AttributeError, nvml.NVMLError_FunctionNotFound):
            # Older drivers, and older versions of the module, have the older name alone.
            bits = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(card)
        rest = bits & ~sum(CLOCK_EVENTS)
        return ([name for bit, name in CLOCK_EVENTS.items() if bits & bit] + [f"unknown_{rest:#x}"] * bool(rest),)

    return [
        _Question(("energy_joules",), lambda card: (nvml.nvmlDeviceGetTotalEnergyConsumption(card),), 1e-3),
        _Question(("power_watts",), lambda card: (nvml.nvmlDeviceGetPowerUsage(card),), 1e-3),
        _Question(("gpu_percent", "memory_percent"), rates),
        _Question(("memory_used_bytes",), lambda card: (nvml.nvmlDeviceGetMemoryInfo(card).used,)),
        _Question(("sm_clock_mhz",), lambda card: (nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM),)),
        _Question(("memory_clock_mhz",), lambda card: (nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM),)),
        _Question(
            ("temperature_celsius",), lambda card: (nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU),)
        ),
        _Question(("clock_events",), events),
    ]


def _pcie_questions(nvml: Any) -> list[_Question]:
    def question(name: str, counter: int) -> _Question:
        return _Question((name,), lambda card: (nvml.nvmlDeviceGetPcieThroughput(card, counter),), PCIE_UNIT_BYTES)

    return [
        question("pcie_rx_bytes_per_second", nvml.NVML_PCIE_UTIL_RX_BYTES),
        question("pcie_tx_bytes_per_second", nvml.NVML_PCIE_UTIL_TX_BYTES),
    ]


def load_nvml() -> Any:
    """The module, with NVML initialised. Raises whatever keeps it from that."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def find_cards(
    load: Callable[[], Any], uuids: Mapping[int, str | None], lack: Callable[[int, str | None, str], None]
) -> tuple[list[WatchedCard], dict[int, Card]]:
    """The cards that ranks have, by their `uuids` (of each rank, as CUDA gives it), and those of them that can be read,
    by place in that list. `load` gives the module; `lack` is told what the card of a place does not give."""
    watched: list[WatchedCard] = []
    cards: dict[int, Card] = {}
    nvml, broken = None, ""
    try:
        nvml = load()
    except Exception as error:  # no module, no library, no driver, no permission: nothing is read, and the run goes on
        broken = f"NVML does not load: {error}"
    for uuid in dict.fromkeys(uuids.values()):
        place, ranks = len(watched), sorted(rank for rank, each in uuids.items() if each == uuid)

        def lacks(name: str | None, why: str, place: int = place) -> None:
            lack(place, name, why)

        handle, mig, name = None, False, None
        if uuid is None:
            lacks(None, "torch gave no UUID of the rank's card")
        elif nvml is None:
            lacks(None, broken)
        else:
            try:
                handle, mig = _handle(nvml, uuid)
                with contextlib.suppress(Exception):  # the card is read without one
                    name = _text(nvml.nvmlDeviceGetName(handle))
                if not mig and _in_mig_mode(nvml, handle):
                    lacks(None, _MIG_UNKNOWN)
                    handle = None
            except Exception as error:  # whatever keeps NVML from the card, it is a reason and no failure of the run
                lacks(None, f"NVML does not give the card {uuid}: {error}")
                handle = None
        watched.append(WatchedCard(ranks=ranks, uuid=uuid, name=name, mig=mig))
        if handle is not None:
            cards[place] = Card(nvml, handle, lacks, mig=mig)
    return watched, cards


def _handle(nvml: Any, uuid: str) -> tuple[Any, bool]:
    """NVML's handle of what CUDA calls `uuid`, and whether it is a MIG instance: CUDA leaves out which it is."""
    bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
    try:
        return nvml.nvmlDeviceGetHandleByUUID(f"GPU-{bare}"), False
    except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
        return nvml.nvmlDeviceGetHandleByUUID(f"MIG-{bare}"), True


def _in_mig_mode(nvml: Any, handle: Any) -> bool:
    try:
        return nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except (nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
        return False


def _text(name: str | bytes) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else name


def _errors(nvml: Any, names: tuple[str, ...]) -> list[type[Exception]]:
    """NVML's errors of those names, as far as this version of the module has them."""
    return [kind for name in names if (kind := getattr(nvml, f"NVMLError_{name}", None)) is not None]
