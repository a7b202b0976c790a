"""The part of the summary about the data: which it was, and what of it was damaged and left out."""

from __future__ import annotations

from typing import Any

import msgspec

from .load import Run
from .reasons import Null, nulls

SHOWN = 20
"""Samples that were left out and are listed; all are counted."""


def data(run: Run, null: Null) -> dict[str, Any]:
    """The policy for damaged samples, the data's identity, and the distinct ones that any rank left out. One without
    key and offset is a shard, from where it is damaged on."""
    config, facts = run.run_json["config"], run.run_json.get("data")
    if facts is None:
        why = "the model brings its own loader, or none"
        return nulls("data", ("policy", "manifest_sha256", "skipped_samples", "skipped"), why, null)
    found = {(bad.split, bad.shard, bad.offset, bad.key): bad for rank in run.ranks for bad in rank.bad_samples}
    # A shard as a whole has no offset, and comes before its samples.
    distinct = [
        found[place] for place in sorted(found, key=lambda place: (*place[:2], place[2] is not None, place[2] or 0))
    ]
    return {
        "policy": config.get("bad_data", "fail"),
        "manifest_sha256": facts["manifest_sha256"],
        "skipped_samples": len(distinct),
        "skipped": [
            {name: value for name, value in msgspec.structs.asdict(bad).items() if value is not None}
            for bad in distinct[:SHOWN]
        ],
    }
