"""The part of the summary that names where the host waits for its GPU, line by line."""

from __future__ import annotations

from typing import Any

from .load import Run
from .memory import why_not_followed
from .reasons import Null
from .trace.syncs import within_package


def host_syncs(run: Run, null: Null) -> list[dict[str, Any]] | None:
    """Operators for whose result the host waits (on CPU: would wait on a GPU), by line of the user's code, the most
    frequent first: calls in a step of one rank, the most of any rank."""
    steps = [rank.memory_step for rank in run.ranks if rank.memory_step and rank.memory_step.failed is None]
    if not steps:
        null("host_syncs", why_not_followed(run))
        return None
    calls: dict[tuple[str, str | None], int] = {}
    for step in steps:
        for sync in step.host_syncs:
            key = (sync.operator, sync.source and within_package(sync.source))
            calls[key] = max(calls.get(key, 0), sync.calls)
    return [
        {"operator": operator, "source": source, "calls_per_step": count}
        for (operator, source), count in sorted(calls.items(), key=lambda row: (-row[1], str(row[0])))
    ]
