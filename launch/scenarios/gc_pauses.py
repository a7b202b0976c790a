"""The code calls gc.collect() in every step, and holds many objects for it to look through."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(count: float, collect: bool) -> Planted:
    return Planted(options={**subject(tokens=128, objects=round(count), collect=collect), "micro_batch": 4})


scenario = Scenario(
    name="gc_pauses",
    says="the code holds many objects and has the collector look through them in every step",
    label="periodic_stall",
    plant=lambda strength, world_size: _with(strength, True),
    remove=lambda strength, world_size: _with(strength, False),
    strengths=(300000, 900000),
    whole=round,
    unit="objects",
    world_sizes=(1, 2),
)
