"""Large tables whose every row is updated for a few samples."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject

# The allocator keeps what is freed up to 32 MiB: a larger gradient would be new memory in every step.
ROWS = 40_000


def _with(tables: float, frozen: bool) -> Planted:
    model = subject(width=128, tokens=32, layers=2, table=ROWS, tables=round(tables), frozen=frozen)
    return Planted(options={**model, "micro_batch": 4})


scenario = Scenario(
    name="heavy_optimizer",
    says="large embeddings, whose every row is updated for a few samples",
    label="optimizer_bound",
    plant=lambda strength, world_size: _with(strength, False),
    remove=lambda strength, world_size: _with(strength, True),
    strengths=(2, 5),
    whole=round,
    unit="tables of 20 MB",
    world_sizes=(1,),
)
