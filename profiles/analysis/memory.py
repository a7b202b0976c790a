"""The memory part of the summary: by kind at the peak and over one step, and what grows from step to step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from ..records import EndRecord
from ..used import MEMORY_KINDS, AllocatorRecord, MemoryStepRecord
from .load import RankRecords, Run
from .reasons import Null

MODEL_STATE = MEMORY_KINDS[:3]
NOT_RECORDED = "not recorded: the probe was off or the rank ended too early"
OWN_STEP = "in a job's own loop no step is followed"
OWN_STATE = "in a job's own loop model state is not told apart"
NO_ALLOCATOR = "there is no caching allocator on CPU"
SWITCHED_OFF = "the caching allocator is switched off (PYTORCH_NO_CUDA_MEMORY_CACHING)"
# If more than this share of the allocator's peak is in no followed storage, the two peaks may be at different instants.
UNSEEN_SHARE = 0.05
UNSEEN = "more than 5 % of the allocator's peak is in no storage of the followed step: it may be at another instant"
# Differences between followed steps that an interval needs.
LEAST_DIFFERENCES = 3


def memory(run: Run, null: Null) -> dict[str, Any]:
    """Kinds, instant and timeline on the rank with the highest peak; model state on the rank that holds most of it."""
    rows = [_rank(rank) for rank in run.ranks]
    by_rank = {rank.rank: rank for rank in run.ranks}
    peaks = [row for row in rows if row["peak_bytes"] is not None]
    worst = max(peaks, key=lambda row: row["peak_bytes"], default=None)
    states = [row for row in rows if row["parameters"] is not None]
    held = max(states, key=lambda row: sum(row[kind] for kind in MODEL_STATE), default=None)
    state = {kind: held[kind] if held else None for kind in MODEL_STATE}
    followed = by_rank[worst["rank"]].memory_step if worst else None
    why = why_not_followed(run)
    if held is None:
        null("memory.state", _why_no_state(run))
        null("memory.state_rank", _why_no_state(run))
    by_kind = worst["by_kind"] if worst else None
    if by_kind is None:
        # Of the kinds at the peak that much is known: it lives through the step, gradients from backward on.
        by_kind = {kind: state.get(kind) for kind in MEMORY_KINDS}
        for kind in MEMORY_KINDS:
            if by_kind[kind] is None:
                null(f"memory.by_kind.{kind}", why if kind not in MODEL_STATE else _why_no_state(run))
    if worst is None:
        null("memory.peak_bytes", f"{why}; rss_peak_bytes is the whole process")
        null("memory.source", why)
    if worst is None or worst["peak_at"] is None:
        null("memory.peak_at", why if worst is None or worst["by_kind"] is None else UNSEEN)
    elif worst["peak_at"]["phase"] is None:
        null("memory.peak_at.phase", "the peak lies between two phases")
    if worst and worst["peak_at"] and worst["peak_at"]["module"] is None:
        null("memory.peak_at.module", "the peak lies in none of the model's modules")
    timeline = None
    if followed is not None and followed.timeline is not None and worst is not None:
        timeline = {"rank": worst["rank"], **msgspec.structs.asdict(followed.timeline)}
    else:
        null("memory.timeline", why)
    found = {name: _largest(rows, name) for name in ("non_torch_bytes", "reserved_bytes", "rss_peak_bytes")}
    found |= {name: _largest(rows, name) for name in ("fragmentation", "alloc_retries")}
    for name, value in found.items():
        if value is None:
            null(f"memory.{name}", "no rank ended in order" if name == "rss_peak_bytes" else _no_allocator(run))
    for name in rows[0] if rows else ():
        if any(row[name] is None for row in rows):
            unseen = name == "peak_at" and all(row["by_kind"] is not None for row in rows)
            null(f"memory.per_rank.{name}", UNSEEN if unseen else _why_of_rank(name, run, why))
    for name, where in (("phase", "two phases"), ("module", "the model's modules")):
        if any(row["peak_at"] is not None and row["peak_at"][name] is None for row in rows):
            null(
                f"memory.per_rank.peak_at.{name}",
                f"the peak lies {'between' if name == 'phase' else 'in none of'} {where}",
            )
    return {
        "peak_bytes": worst["peak_bytes"] if worst else None,
        "peak_at": worst["peak_at"] if worst else None,
        "source": worst["source"] if worst else None,
        "by_kind": by_kind,
        "state": state if held else None,
        "state_rank": held["rank"] if held else None,
        "state_by_law": _by_law(run, held, null),
        **found,
        **_growth(run, why, null),
        "timeline": timeline,
        "per_rank": rows,
    }


def _by_law(run: Run, held: dict[str, Any] | None, null: Null) -> dict[str, int] | None:
    """What the law says of the rank whose measured state is told: ranks of one run may hold unlike shares."""
    ranks = (run.run_json.get("law") or {}).get("ranks") or []
    if held is not None and held["rank"] < len(ranks):
        return dict(ranks[held["rank"]])
    null("memory.state_by_law", _why_no_state(run) if held is None else "run.json has no law of its strategy")
    return None


def _rank(rank: RankRecords) -> dict[str, Any]:
    state, end, step = rank.memory, rank.end, rank.memory_step
    figures = _figures(step)
    allocated, reserved = (_over_run(end, step, f"{name}_peak_bytes") for name in ("allocated", "reserved"))
    peak, at, by_kind, source = None, None, None, None
    if step is not None and step.peak is not None:
        peak, source, by_kind = step.peak.bytes, "followed storages", dict(step.peak.by_kind)
        at = {"phase": step.peak.phase, "module": step.peak.module, "seconds": step.peak.seconds}
        if figures is not None and allocated is not None:
            unseen = allocated - peak
            by_kind["unaccounted"] += unseen
            if unseen > UNSEEN_SHARE * allocated:
                at = None
    if figures is not None:
        peak, source = allocated, "allocator"
    elif peak is None and end is not None and end.allocated_peak_bytes:
        peak, source = end.allocated_peak_bytes, "allocator"
    assert by_kind is None or sum(by_kind.values()) == peak, "kinds do not sum to the peak"
    return {
        "rank": rank.rank,
        "parameters": state.parameters_bytes if state else None,
        "gradients": state.gradients_bytes if state else None,
        "optimizer": state.optimizer_bytes if state else None,
        "peak_bytes": peak,
        "peak_at": at,
        "source": source,
        "by_kind": by_kind,
        "allocated_peak_bytes": allocated,
        "reserved_bytes": reserved,
        "fragmentation": 1 - allocated / reserved if figures and allocated is not None and reserved else None,
        "alloc_retries": figures.retries if figures else None,
        "non_torch_bytes": figures.driver_used_bytes - figures.reserved_bytes if figures else None,
        "rss_peak_bytes": end.rss_peak_bytes if end else None,
    }


def _figures(step: MemoryStepRecord | None) -> AllocatorRecord | None:
    """The caching allocator's; None where it is switched off, and says 0."""
    figures = step.allocator if step else None
    return figures if figures is not None and figures.reserved_peak_bytes > 0 else None


def _over_run(end: EndRecord | None, step: MemoryStepRecord | None, name: str) -> int | None:
    """The allocator's peak over the run: it counts anew from the followed step on."""
    found = [getattr(end, name)] if end else []
    if step is not None and step.allocator is not None:
        found += [getattr(step.allocator, name), getattr(step.allocator, f"earlier_{name}")]
    return max((value for value in found if value), default=None)  # 0 where the caching allocator is switched off


def _growth(run: Run, why: str, null: Null) -> dict[str, Any]:
    """What each followed step leaves behind beyond the one before it, on the rank where that is most."""
    rows = [(rank.memory_step, differences) for rank in run.ranks if len(differences := _differences(rank)) > 0]
    if not rows or any(len(differences) < LEAST_DIFFERENCES for _, differences in rows):
        for name in ("growth_bytes_per_step", "growth_ci95", "growth_by"):
            null(f"memory.{name}", why if not rows else "too few steps were followed to tell")
        return dict.fromkeys(("growth_bytes_per_step", "growth_ci95", "growth_by"))
    step, differences = max(rows, key=lambda row: float(np.mean(row[1])))
    mean = float(np.mean(differences))
    half = 0.0
    if len(set(differences)) > 1:
        from scipy import stats  # half a second to import: for those whose steps differ

        half = float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))
    by = step.left_by if step is not None and mean - half > 0 else None
    if by is None:
        null("memory.growth_by", "nothing was seen to grow, or it was made in none of the model's modules")
    return {"growth_bytes_per_step": mean, "growth_ci95": [mean - half, mean + half], "growth_by": by}


def _differences(rank: RankRecords) -> Sequence[int]:
    left = rank.memory_step.left_bytes if rank.memory_step else []
    return np.diff(left).tolist()


def _largest(rows: Sequence[dict[str, Any]], name: str) -> Any:
    return max((row[name] for row in rows if row[name] is not None), default=None)


def why_not_followed(run: Run) -> str:
    """Why no step's operators and storages were followed on every rank."""
    failed = [f"rank {r.rank}: {r.memory_step.failed}" for r in run.ranks if r.memory_step and r.memory_step.failed]
    return failed[0] if failed else _no_step(run)


def _no_step(run: Run) -> str:
    if run.own_loop:
        return OWN_STEP
    for option in ("probe", "memory_step"):
        if run.run_json["config"].get(option) == "off":
            return f"no step was followed: --{option.replace('_', '-')} off"
    return "no step was followed: the run ended before it"


def _no_allocator(run: Run) -> str:
    if run.run_json["config"]["device"] == "cpu":
        return NO_ALLOCATOR
    steps = [rank.memory_step for rank in run.ranks]
    off = any(step is not None and step.allocator is not None and _figures(step) is None for step in steps)
    return SWITCHED_OFF if off else _no_step(run)


def _why_no_state(run: Run) -> str:
    return OWN_STATE if run.own_loop else NOT_RECORDED


def _why_of_rank(name: str, run: Run, why: str) -> str:
    if name in ("peak_bytes", "peak_at", "source", "by_kind"):
        return why
    if name in MODEL_STATE:
        return _why_no_state(run)
    if name == "rss_peak_bytes":
        return NOT_RECORDED
    return _no_allocator(run)
