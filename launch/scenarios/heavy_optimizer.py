"""A large table whose every row is updated for a few samples."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(rows: float, frozen: bool) -> Planted:
    model = subject(width=128, tokens=32, layers=2, table=round(rows), frozen=frozen)
    return Planted(options={**model, "micro_batch": 4})


scenario = Scenario(
    name="heavy_optimizer",
    says="a large embedding, whose every row is updated for a few samples",
    label="optimizer_bound",
    plant=lambda strength, world_size: _with(strength, False),
    remove=lambda strength, world_size: _with(strength, True),
    strengths=(60000, 150000),
    unit="rows of 128",
    world_sizes=(1,),
)
