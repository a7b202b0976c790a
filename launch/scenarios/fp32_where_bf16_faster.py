"""fp32, where this machine was measured to multiply much faster in bf16."""

from __future__ import annotations

from .. import calibrations, devices
from ._contract import Planted, Scenario, subject

GAIN = 1.5


def _with(tokens: float, precision: str) -> Planted:
    model = subject(width=512, inner=2048, tokens=round(tokens), layers=2)
    return Planted(options={**model, "micro_batch": 4, "precision": precision})


def _why_not() -> str | None:
    found = devices.detect()
    calibration = calibrations.fitting(found.kind, found.name)
    if calibration is None:
        return "this machine has no calibration; scalelab doctor --calibrate makes one"
    rates = calibration.matmul_flops_per_second
    if not {"fp32", "bf16"} <= set(rates) or rates["bf16"].median < GAIN * rates["fp32"].median:
        return f"by its calibration {calibration.name}, bf16 is not {GAIN} times as fast as fp32"
    return None


scenario = Scenario(
    name="fp32_where_bf16_faster",
    says="large products in fp32, which are much faster in bf16 here",
    label="precision_unused",
    plant=lambda strength, world_size: _with(strength, "fp32"),
    remove=lambda strength, world_size: _with(strength, "bf16"),
    strengths=(128, 256),
    whole=round,
    unit="tokens in a row",
    devices=("cpu", "cuda"),
    world_sizes=(1, 2),
    why_not=_why_not,
)
