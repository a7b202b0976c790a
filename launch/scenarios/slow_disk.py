"""Samples come from a disk that gives few bytes a second."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(seconds: float) -> Planted:
    rate = 8 * (1 << 20) / seconds if seconds else 0.0
    return Planted(options={**subject(tokens=256, disk_bytes_per_second=rate), "micro_batch": 8})


scenario = Scenario(
    name="slow_disk",
    says="every sample is a MiB, read from a slow disk",
    label="input_bound",
    plant=lambda strength, world_size: _with(strength),
    remove=lambda strength, world_size: _with(0.0),
    strengths=(0.05, 0.16),
    unit="seconds a batch",
    world_sizes=(1, 2),
)
