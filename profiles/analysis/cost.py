"""The part of the summary that says what samples cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .reasons import Null


def cost(
    step_seconds: Mapping[str, Any],
    samples: float | None,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    null: Null,
) -> dict[str, Any]:
    """Device-hours per million samples = ranks x seconds per sample / 3600 x 10^6."""
    hours = None
    if step_seconds["mean"] is None or samples is None:
        why = "no measured step was finished" if samples is not None else "samples were not counted"
        null("cost.device_hours_per_million_samples", why)
        null("cost.gpu_hours_per_million_samples", why)
    else:
        hours = facts["world_size"] * step_seconds["mean"] / samples / 3600 * 1e6
    on_gpu = config["device"] == "cuda"
    if not on_gpu:
        null("cost.gpu_hours_per_million_samples", "the run used no GPU")
    for name in ("usd_per_million_samples", "usd_per_gpu_hour", "price_source", "whole_run", "by_cause"):
        null(f"cost.{name}", "no price was given")
    return {
        "device_kind": facts["device_name"],
        "device_hours_per_million_samples": hours,
        "gpu_hours_per_million_samples": hours if on_gpu else None,
        "usd_per_million_samples": None,
        "usd_per_gpu_hour": None,
        "price_source": None,
        "whole_run": None,
        "by_cause": None,
    }
