"""A sweep-summary.json in small, every kind of row and section once: what reports are written and tested against.

`tests/profiles/test_sweep_summary.py` holds its shape equal to what analysis writes. The figures are made up.
"""

from __future__ import annotations

from typing import Any


def estimate(mean: float, *values: float) -> dict[str, Any]:
    """A mean over runs with its interval between runs; one run has none."""
    interval = [round(mean * 0.97, 6), round(mean * 1.03, 6)] if len(values) > 1 else None
    return {"mean": mean, "ci95": interval, "values": list(values)}


def leaf(cause: str, seconds: float, share: float) -> dict[str, Any]:
    return {"cause": cause, "seconds": seconds, "share": share, "usd_per_million_samples": round(share * 34.7, 4)}


def run(repeat: int, name: str | None, state: str, why: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "repeat": repeat,
        "run": name,
        "state": state,
        "why": why,
        "exit_code": None,
        "seconds": None,
        "step_seconds": None,
        "samples_per_second": None,
        **more,
    }


NOT_MEASURED: dict[str, Any] = {
    "step_seconds": None,
    "samples_per_second": None,
    "device_hours_per_million_samples": None,
    "usd_per_million_samples": None,
    "energy_usd_per_million_samples": None,
    "by_cause": None,
    "comm_share": None,
    "mfu": None,
    "peak_bytes": None,
    "peak_rank": None,
    "oversubscribed": None,
    "device_name": None,
    "on_front": False,
    "recommended": False,
}


def cell(name: str, state: str, why: str | None, **more: Any) -> dict[str, Any]:
    strategy, precision, ranks = name.split("-")
    row = {
        "name": name,
        "strategy": strategy,
        "precision": precision,
        "world_size": int(ranks.removeprefix("x")),
        "micro_batch": 4,
        "grad_accumulation": 1,
        "global_batch": 8,
        "state": state,
        "why": why,
        "parity": {"state": "not checked", "why": "nothing was measured"},
        "runs": [],
        "measured_runs": 0,
        **NOT_MEASURED,
        "reasons": {name: why or "nothing was measured" for name, value in NOT_MEASURED.items() if value is None},
    }
    return {**row, **more}


CELLS: list[dict[str, Any]] = [
    cell(
        "ddp-fp32-x2",
        "measured",
        None,
        parity={"state": "reference", "why": None},
        runs=[
            run(
                repeat,
                f"20260101T00000{repeat}Z-ddp-fp32-x2-abc{repeat}",
                "measured",
                exit_code=0,
                seconds=9.0,
                step_seconds=0.25,
                samples_per_second=32.0,
            )
            for repeat in range(3)
        ],
        measured_runs=3,
        step_seconds=estimate(0.25, 0.25, 0.251, 0.249),
        samples_per_second=estimate(32.0, 32.0, 31.9, 32.1),
        device_hours_per_million_samples=estimate(17.36, 17.36, 17.4, 17.3),
        usd_per_million_samples=estimate(34.7, 34.72, 34.8, 34.6),
        by_cause=[leaf("backward", 0.125, 0.5), leaf("forward", 0.075, 0.3), leaf("comm.transfer", 0.05, 0.2)],
        comm_share=estimate(0.2, 0.2, 0.21, 0.19),
        peak_bytes=300_000_000,
        peak_rank=1,
        oversubscribed=False,
        device_name="a processor",
        on_front=True,
        recommended=True,
        reasons={
            "energy_usd_per_million_samples": "the run used no GPU",
            "mfu": "a processor is in no catalogue, and this run had no calibration",
        },
    ),
    cell("zero3-fp32-x2", "refused", "zero3: this model's parameters cannot be cut"),
    cell(
        "zero2-fp32-x2",
        "parity_failed",
        "loss parity: loss of step 3 is 1.2, expected 1.1",
        parity={"state": "failed", "why": "loss parity: loss of step 3 is 1.2, expected 1.1"},
        runs=[
            run(
                0,
                "20260101T000004Z-zero2-fp32-x2-abc4",
                "parity_failed",
                "loss parity: loss of step 3 is 1.2, expected 1.1",
                exit_code=8,
                seconds=9.0,
            )
        ],
    ),
    cell("fsdp2-fp32-x2", "missing", "not run yet: 3 of 3 repeats", runs=[run(0, None, "missing", "not run yet")]),
]

SWEEP_SUMMARY: dict[str, Any] = {
    "schema": 1,
    "sweep_id": "sweep-0123abcd",
    "created_utc": "2026-01-01T00:00:00Z",
    "command": ["scalelab", "sweep", "--strategies", "ddp,zero2,zero3,fsdp2"],
    "scaling": "strong",
    "repeats": 3,
    "seed": 0,
    "best_batch": False,
    "runs": {"planned": 9, "measured": 3, "failed": 0, "parity_failed": 1, "running": 0, "missing": 5, "refused": 1},
    "devices": [{"device": "cpu", "device_name": "a processor", "runs": 3}],
    "price": {
        "usd_per_gpu_hour": 2.0,
        "price_source": "given to report, per rank and hour",
        "usd_per_kwh": None,
    },
    "notes": ["CPU rankings of sharded strategies do not carry over to GPUs"],
    "cells": CELLS,
    # Runs in the folder that no cell counts: of earlier attempts, being made now, half-written.
    "other_runs": [{"run": "20260101T000009Z-ddp-fp32-x2-abc9", "state": "running", "why": "it has not ended"}],
    # Cheapest first; `against` compares each with the first, `verdict` says what may be said.
    "cheapest": {
        "measure": "usd_per_million_samples",
        "order": ["ddp-fp32-x2"],
        "best": "ddp-fp32-x2",
        "ties": [],
        "against": [
            # {"cell": "zero2-fp32-x2", "ratio": 1.2, "ci95": [1.1, 1.3], "verdict": "more" | "cannot tell"}
        ],
        "verdict": "one",  # one | tie | alone | quick look | none
        "why": "ddp-fp32-x2 is cheapest: 34.7 USD per million samples",
    },
    "fastest": {
        "measure": "samples_per_second",
        "order": ["ddp-fp32-x2"],
        "best": "ddp-fp32-x2",
        "ties": [],
        "against": [],
        "verdict": "alone",
        "why": "ddp-fp32-x2 is the only cell that was measured",
    },
    "pareto": {
        "time": "seconds_per_sample",
        "cost": "usd_per_million_samples",
        "points": [{"cell": "ddp-fp32-x2", "seconds_per_sample": 1 / 32, "cost": 34.7, "on_front": True}],
        "front": ["ddp-fp32-x2"],
    },
    "recommended": {
        "cell": "ddp-fp32-x2",
        "verdict": "alone",
        "why": "the only cell that was measured",
    },
    # One per strategy and precision, in the order of the plan.
    "series": [
        {
            "name": "ddp fp32",
            "strategy": "ddp",
            "precision": "fp32",
            "base_world_size": 1,
            "points": [
                {
                    "cell": "ddp-fp32-x1",
                    "world_size": 1,
                    "global_batch": 8,
                    "oversubscribed": False,
                    "fitted": True,
                    "samples_per_second": estimate(18.0, 18.0, 18.1, 17.9),
                    "speed_up": {"mean": 1.0, "ci95": None},
                    "efficiency": {"mean": 1.0, "ci95": None},
                    "cost_ratio": {"mean": 1.0, "ci95": None},
                    "comm_share": estimate(0.0, 0.0, 0.0, 0.0),
                    "peak_bytes": 300_000_000,
                    "reasons": {"speed_up.ci95": "the base of the series"},
                },
            ],
            # Between neighbours, N to 2N where the sweep has those. Parts add up to `lost` = 1 - efficiency.
            "losses": [
                {
                    "from_world_size": 1,
                    "to_world_size": 2,
                    "oversubscribed": False,
                    "efficiency": {"mean": 0.89, "ci95": [0.87, 0.91]},
                    "lost": 0.11,
                    "parts": [
                        # input | compute | optimizer | transfer | waiting | queued | exposed | unattributed
                        {"cause": "transfer", "share": 0.08, "ci95": [0.07, 0.09]},
                        {"cause": "compute", "share": 0.03, "ci95": [0.01, 0.05]},
                    ],
                    "reasons": {},
                }
            ],
            "fits": {
                # null with a reason under `reasons["fits.amdahl"]`
                "amdahl": {
                    "world_sizes": [1, 2, 4],
                    "serial_fraction": {"value": 0.05, "ci95": [0.03, 0.07]},
                    "residual": 0.02,  # root mean square of the relative error over runs
                    "degrees_of_freedom": 1,
                },
                "usl": {
                    "world_sizes": [1, 2, 4],
                    "contention": {"value": 0.04, "ci95": [0.02, 0.06]},
                    "coherency": {"value": 0.001, "ci95": [0.0, 0.002]},
                    "residual": 0.01,
                    "degrees_of_freedom": 0,
                    "knee": {"world_size": 31.0, "ci95": [20.0, None], "extrapolated": True, "from_world_size": 4},
                },
            },
            # By which fit; where extrapolated, from the largest world size that was measured and fitted.
            "curve": [
                {"world_size": 1, "speed_up": 1.0, "ci95": [1.0, 1.0], "cost_ratio": 1.0, "extrapolated": False},
                {"world_size": 8, "speed_up": 6.1, "ci95": [5.0, 7.0], "cost_ratio": 1.3, "extrapolated": True},
            ],
            "curve_of": "usl",
            "extrapolated_from_world_size": 4,
            # The largest N at which a sample costs at most what was asked.
            "affordable": {
                "asked": "at most 2 times the cost per sample at 1 rank",
                "cost_ratio": 2.0,
                "world_size": 18,
                "ci95": [14, None],
                "extrapolated": True,
                "from_world_size": 4,
            },
            "reasons": {},
        }
    ],
    "reasons": {"price.usd_per_kwh": "no tariff was given: --usd-per-kwh"},
}
