"""Every rank's loader waits before each batch, as for a remote store."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(seconds: float) -> Planted:
    return Planted(options={**subject(tokens=256, slow_data=seconds), "micro_batch": 8})


scenario = Scenario(
    name="slow_loader",
    says="the loader of every rank waits before each batch, as for a remote store",
    label="input_bound",
    plant=lambda strength, world_size: _with(strength),
    remove=lambda strength, world_size: _with(0.0),
    strengths=(0.04, 0.16),
    unit="seconds a batch",
    world_sizes=(1, 2),
)
