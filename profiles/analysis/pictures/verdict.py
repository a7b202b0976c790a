"""What a report says first: how the run ended, what takes most of its step, what removing a cause would buy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..traces import whole

FINISHED = "finished"
DEVICE_PARTS = ("compute_seconds", "exposed_communication_seconds", "exposed_copies_seconds", "idle_seconds")


def verdict(summary: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """`largest`: the phase with the largest share of the step. `headroom`: of the causes that were taken away in turn,
    the one that saved most with its whole interval above 0; `tried` says which were. `device`: of imported traces,
    where the time of their devices went. Each is None where nothing is known."""
    shares = {name: row for name, row in summary["phases"].items() if row is not None and row["share"] is not None}
    largest = max(shares, key=lambda name: shares[name]["share"], default=None)
    tried = summary["counterfactual"] or {}
    told = {name: row for name, row in tried.items() if row["ci95"] is not None and row["ci95"][0] > 0}
    best = max(told, key=lambda name: told[name]["headroom_seconds"], default=None)
    step = summary["step_seconds"]["mean"]
    return {
        "finished": facts["state"] == FINISHED and (summary["outcome"] or {}).get("exit_code") in (0, None),
        "largest": None if largest is None else {"phase": largest, **shares[largest]},
        "headroom": None
        if best is None
        else {"cause": best, **told[best], "share": None if not step else told[best]["headroom_seconds"] / step},
        "tried": sorted(tried),
        "device": device_time(summary) if summary["source"] == "imported" else None,
        "straggler": (summary["comm"] or {}).get("straggler"),
        "growth_bytes_per_step": _growth(summary["memory"]),
    }


def device_time(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """`parts` of a step of the devices, mean over ranks, the largest first, with their shares of it; `per` is "step",
    or "trace" of one that marks none. None where devices cannot be taken together, as `reasons` say."""
    if (trace := summary["trace"]) is None:
        return None
    devices = [each for row in whole(trace["per_rank"]) for each in row["devices"]]
    mean, per = trace["device_mean"], "step"
    if mean is None and len(devices) == 1:
        mean, per = devices[0], "trace"
    if mean is None or not mean["span_seconds"]:
        return None
    span = mean["span_seconds"]
    parts = [{"part": name, "seconds": mean[name], "share": mean[name] / span} for name in DEVICE_PARTS]
    return {
        "per": per,
        "on_host": all(each["device"] is None for each in devices),
        "parts": sorted(parts, key=lambda row: -row["share"]),
    }


def _growth(memory: Mapping[str, Any]) -> float | None:
    """What a step leaves behind, where its interval is above 0."""
    interval = memory["growth_ci95"]
    return memory["growth_bytes_per_step"] if interval is not None and interval[0] > 0 else None
