"""A large table whose every row is updated for a few samples."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(rows: float, size: int) -> Planted:
    model = subject(width=128, tokens=32, layers=2, table=round(rows))
    return Planted(options={**model, "micro_batch": 4, "optimizer": "sgd" if size else "adamw"})


scenario = Scenario(
    name="heavy_optimizer",
    says="a large embedding, whose every row is updated for a few samples",
    label="optimizer_bound",
    plant=lambda strength, world_size: _with(strength, 0),
    remove=lambda strength, world_size: _with(strength, 1),
    strengths=(60000, 150000),
    unit="rows of 128",
    world_sizes=(1,),
)
