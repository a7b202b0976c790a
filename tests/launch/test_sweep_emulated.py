"""What a sweep says of precisions that this processor emulates, before the first run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from scalelab.launch.devices import Devices
from scalelab.launch.sweep import emulated

from tests.launch.test_sweep_runs import CPU, planned


def notes(monkeypatch: pytest.MonkeyPatch, flags: set[str], rates: dict[str, float], here: Devices = CPU) -> list[str]:
    known: Any = SimpleNamespace(
        name="here",
        made_utc="2026-01-01T00:00:00Z",
        matmul_flops_per_second={name: SimpleNamespace(median=rate) for name, rate in rates.items()},
    )
    monkeypatch.setattr(emulated, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(emulated.calibrations, "fitting", lambda *of: known if rates else None)
    _, _, plan = planned("--strategies=ddp", "--precisions=fp32,bf16")
    return emulated.emulated_notes(plan.cells, here)


def test_an_emulated_precision_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the factor of a calibration, named; without one no number; none where it is not emulated, or on CUDA."""
    (note,) = notes(monkeypatch, set(), {"fp32": 7.7e10, "bf16": 1.1e9})
    assert note == (
        "bf16 is emulated on this processor: its runs may take many times longer than those in fp32 "
        "(matrix products 70 times, calibration here of 2026-01-01T00:00:00Z)"
    )
    (note,) = notes(monkeypatch, set(), {})
    assert note.endswith("than those in fp32")
    assert notes(monkeypatch, set(emulated.BF16_FLAGS), {}) == []
    assert notes(monkeypatch, set(), {}, Devices("cuda", 2, "a card")) == []
