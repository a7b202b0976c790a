"""The memory part of the summary."""

from __future__ import annotations

from typing import Any

from .load import RankRecords, Run
from .reasons import Null

KINDS = ("parameters", "gradients", "optimizer", "activations", "communication", "temporary", "unaccounted")
MODEL_STATE = KINDS[:3]
NOT_RECORDED = "not recorded: the probe was off or the rank ended too early"


def memory(run: Run, null: Null) -> dict[str, Any]:
    """Model state by kind on the rank that holds most of it, and the peaks that the allocator and the system saw."""
    per_rank = [_rank(rank) for rank in run.ranks]
    states = [row for row in per_rank if row["parameters"] is not None]
    allocated = [row["allocated_peak_bytes"] for row in per_rank if row["allocated_peak_bytes"] is not None]
    resident = [row["rss_peak_bytes"] for row in per_rank if row["rss_peak_bytes"] is not None]
    if states:
        worst = max(states, key=lambda row: sum(row[kind] for kind in MODEL_STATE))
        by_kind = {kind: worst[kind] if kind in MODEL_STATE else None for kind in KINDS}
    else:
        by_kind = dict.fromkeys(KINDS)
        for kind in MODEL_STATE:
            null(
                f"memory.by_kind.{kind}",
                NOT_RECORDED,
            )
    for kind in KINDS[3:]:
        null(f"memory.by_kind.{kind}", "only model state is recorded in this run")
    if not allocated:
        null("memory.peak_bytes", "PyTorch counts no CPU allocations; rss_peak_bytes is the whole process")
        null("memory.reserved_bytes", "there is no caching allocator on CPU")
    for kind in (*MODEL_STATE, "allocated_peak_bytes", "rss_peak_bytes"):
        if any(row[kind] is None for row in per_rank):
            null(f"memory.per_rank.{kind}", "counted by CUDA's allocator" if kind.startswith("alloc") else NOT_RECORDED)
    null("memory.peak_at", "the peak's instant is not recorded in this run")
    null("memory.non_torch_bytes", "not recorded in this run")
    if not resident:
        null("memory.rss_peak_bytes", "no rank ended in order")
    reserved = [rank.end.reserved_peak_bytes for rank in run.ranks if rank.end and rank.end.reserved_peak_bytes]
    return {
        "peak_bytes": max(allocated, default=None),
        "peak_at": None,
        "source": "allocator" if allocated else "live tensors",
        "by_kind": by_kind,
        "non_torch_bytes": None,
        "reserved_bytes": max(reserved, default=None),
        "rss_peak_bytes": max(resident, default=None),
        "per_rank": per_rank,
    }


def _rank(rank: RankRecords) -> dict[str, Any]:
    state, end = rank.memory, rank.end
    return {
        "rank": rank.rank,
        "parameters": state.parameters_bytes if state else None,
        "gradients": state.gradients_bytes if state else None,
        "optimizer": state.optimizer_bytes if state else None,
        "allocated_peak_bytes": end.allocated_peak_bytes if end else None,
        "rss_peak_bytes": end.rss_peak_bytes if end else None,
    }
