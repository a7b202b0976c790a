"""Precisions that a CPU computes without instructions of its own: what a sweep says before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from ...profiles.sweepfolder import Cell
from .. import calibrations
from ..devices import Devices
from ..environment import cpu_flags
from ..plan import BF16_FLAGS


def emulated_notes(cells: Sequence[Cell], here: Devices) -> list[str]:
    """A note for each precision of `cells` that is emulated here. How many times slower it is only a calibration of
    this machine tells, by its matrix products."""
    if here.kind != "cpu":
        return []
    native = {"fp32"} | ({"bf16", "bf16-params"} if cpu_flags() & BF16_FLAGS else set())
    asked = dict.fromkeys(cell.precision for cell in cells if cell.refused is None)
    found = calibrations.fitting("cpu", here.name)
    rates = {} if found is None else found.matmul_flops_per_second
    notes = []
    for name in (each for each in asked if each not in native):
        dtype = name.removesuffix("-params")
        note = f"{name} is emulated on this processor: its runs may take many times longer than those in fp32"
        if found is not None and {"fp32", dtype} <= rates.keys():
            factor = rates["fp32"].median / rates[dtype].median
            note += f" (matrix products {factor:.3g} times, calibration {found.name} of {found.made_utc})"
        notes.append(note)
    return notes
