"""The code calls gc.collect() in every step."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(count: float, collect: bool) -> Planted:
    return Planted(options={**subject(tokens=256, garbage=round(count), collect=collect), "micro_batch": 4})


scenario = Scenario(
    name="gc_pauses",
    says="the code makes objects in cycles and collects them in every step",
    label="periodic_stall",
    plant=lambda strength, world_size: _with(strength, True),
    remove=lambda strength, world_size: _with(strength, False),
    strengths=(500000, 1000000),
    unit="objects a step",
    world_sizes=(1, 2),
)
