"""Nothing is planted."""

from __future__ import annotations

from ._contract import Planted, Scenario, subject


def plant(strength: float, world_size: int) -> Planted:
    return Planted(options={**subject(tokens=int(strength)), "micro_batch": 8})


scenario = Scenario(
    name="healthy",
    says="a model that computes, with nothing planted",
    label="healthy",
    plant=plant,
    remove=None,
    strengths=(384, 640),
    whole=int,
    unit="tokens in a row",
    devices=("cpu", "cuda"),
    world_sizes=(1, 2, 4),
)
