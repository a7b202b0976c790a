"""The ranks' clocks side by side."""

from __future__ import annotations

from .load import Run


def offsets_ns(run: Run) -> tuple[list[int] | None, str]:
    """What to add to each rank's monotonic clock to make them one; or None, and why they cannot be compared.

    Ranks with the same boot id read the same clock.
    """
    boots = {rank.start.boot_id if rank.start else None for rank in run.ranks}
    if None in boots:
        return None, "a rank's first record, which names its clock, is missing"
    if len(boots) > 1:
        return None, "the ranks' hosts have clocks of their own, which were not compared"
    return [0] * len(run.ranks), ""
