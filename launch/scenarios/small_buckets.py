"""Gradients are sent in many small messages."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def _with(layers: float, bucket_mb: float, **more: bool) -> Planted:
    model = subject(width=164, inner=0, tokens=16, layers=round(layers))
    return Planted(options={**model, "micro_batch": 2, "bucket_mb": bucket_mb, **more})


scenario = Scenario(
    name="small_buckets",
    says="gradients are sent in buckets of 0.1 MiB",
    label="comm_latency",
    # What the calls cost is told by the tail, behind the measured steps.
    plant=lambda strength, world_size: _with(strength, 0.1, counterfactual=True),
    remove=lambda strength, world_size: _with(strength, 25.0),
    strengths=(30, 60),
    whole=round,
    unit="layers of 0.1 MiB",
)
