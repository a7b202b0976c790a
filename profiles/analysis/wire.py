"""What collectives put on the wire, per byte of payload: sent by each rank, on average over ranks.

A ring over n ranks sends 2 (n-1)/n of an all-reduce's bytes per rank, and (n-1)/n of those of an all-gather, a
reduce-scatter or a broadcast: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
workstations", and NVIDIA's nccl-tests, doc/PERFORMANCE.md. Gloo carries a reduce-scatter out as an all-reduce.
"""

from __future__ import annotations


def wire_factor(kind: str, world_size: int, device: str) -> float | None:
    """Bytes on the wire per payload byte and rank; None for a kind of which it is not known."""
    ring = (world_size - 1) / world_size
    if kind == "barrier":
        return 0.0
    if kind == "all_reduce" or (kind == "reduce_scatter" and device == "cpu"):
        return 2 * ring
    return ring if kind in ("all_gather", "reduce_scatter", "broadcast") else None
