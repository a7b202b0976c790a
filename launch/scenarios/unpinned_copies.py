"""Large batches are copied from memory that is not pinned."""

from __future__ import annotations

from ._contract import Planted, Scenario


def _with(size: float, pin: bool) -> Planted:
    return Planted(options={"model": "nano", "micro_batch": round(size), "pin": pin, "workers": 4})


scenario = Scenario(
    name="unpinned_copies",
    says="large batches are copied from memory that is not pinned",
    label="h2d_bound",
    plant=lambda strength, world_size: _with(strength, False),
    remove=lambda strength, world_size: _with(strength, True),
    strengths=(64, 128),
    whole=round,
    unit="samples",
    devices=("cuda",),
    world_sizes=(1, 2),
)
