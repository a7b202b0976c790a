"""Parts of a whole, and other tables of a report that a summary has no row of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

BLOCKED = ("waiting", "transfer", "queued")
RANKS = 16
"""Rows of ranks that a page shows."""


def exposed(summary: Mapping[str, Any]) -> dict[str, dict[str, float | None]] | None:
    """Why communication was exposed: `seconds` a step and their `share`, by cause. None where it was not split."""
    comm = summary["comm"]
    if comm is None or comm["exposed_seconds"] is None or comm["waiting_seconds"] is None:
        return None
    return _shares({name: comm[f"{name}_seconds"] for name in BLOCKED}, comm["exposed_seconds"], "seconds")


def sent(summary: Mapping[str, Any], law: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Payload bytes of a step by collective, as measured and by the strategy's law; None where one of them has none."""
    comm = summary["comm"]
    measured = (comm and comm["payload_bytes_per_step"]) or {}
    expected: dict[str, float] = {}
    for row in (law or {}).get("collectives", []):
        expected[row["kind"]] = expected.get(row["kind"], 0) + row["payload_bytes_per_step"]
    kinds = dict.fromkeys([*measured, *expected])
    return [{"kind": kind, "bytes": measured.get(kind), "law_bytes": expected.get(kind)} for kind in kinds]


def kinds(summary: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Bytes at the peak by kind, and their shares of it. None where the peak was not looked into."""
    memory = summary["memory"]
    known = memory["by_kind"]["temporary"] is not None
    return _shares(
        {kind: count if known else None for kind, count in memory["by_kind"].items()}, memory["peak_bytes"], "bytes"
    )


def fullest_ranks(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of memory of the ranks with the highest peak, the highest first."""
    return sorted(summary["memory"]["per_rank"], key=lambda row: -(row["peak_bytes"] or 0))[:RANKS]


def branches(summary: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Operations of a sample by branch of the model, and their shares of all."""
    found = summary["model"].get("flops_by_branch") or {}
    return _shares(found, sum(found.values()), "flops")


def of_a_hundred(leaves: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """What each cause takes of 100, in tenths; those of less than a half together, as a last row without a `cause`.

    Each is rounded by itself, as in the table of the same shares: amounts that were made to sum to 100 would differ
    from it by a tenth."""
    rows = [row for row in leaves or () if row["share"] is not None]
    amounts = [round(row["share"] * 100, 1) for row in rows]
    named = [{"cause": row["cause"], "amount": each} for row, each in zip(rows, amounts, strict=True) if each >= 0.5]
    rest = round(100 * sum(row["share"] for row, each in zip(rows, amounts, strict=True) if each < 0.5), 1)
    return [*named, *([{"cause": None, "amount": rest}] if rest else [])]


def losses(values: Sequence[float | None] | None) -> dict[str, Any]:
    """The `first` and the `last` that are `known`, so many, and how many are `missing`."""
    values = values or ()
    known = [each for each in values if each is not None]
    ends = {"first": known[0], "last": known[-1]} if known else {"first": None, "last": None}
    return {**ends, "known": len(known), "missing": len(values) - len(known)}


def _shares(parts: Mapping[str, float | None], whole: float | None, unit: str) -> dict[str, dict[str, float | None]]:
    return {
        name: {unit: part, "share": part / whole if part is not None and whole else None}
        for name, part in parts.items()
    }
