"""Words that several sections of a run's report use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..units import UNKNOWN

PHASES = {
    "data": "waiting for input (data)",
    "h2d": "copying to the device (h2d)",
    "forward": "forward",
    "backward": "backward",
    "comm_exposed": "exposed communication",
    "optimizer": "optimizer",
    "unattributed": "unattributed",
}
CAUSES = {
    "free_wire": "communication (a free wire)",
    "cached_batch": "input (one cached batch)",
    "no_optimizer": "the optimizer's update",
    "no_recompute": "recomputing activations",
}
"""What the tail of `--counterfactual` takes away."""

DEVICE = {
    "compute_seconds": "computing",
    "exposed_communication_seconds": "exposed communication",
    "exposed_copies_seconds": "exposed copies",
    "idle_seconds": "idle",
}
"""Where the time of a device went, as its trace has it."""

LEAVES = {
    "data": "waiting for input",
    "h2d": "copying to the device",
    "forward": "forward",
    "backward.gradient": "backward: gradients",
    "backward.recompute": "backward: recomputing",
    "backward": "backward",
    "comm": "exposed communication",
    "comm.transfer": "comm.: on the wire",
    "comm.waiting": "comm.: waiting for a late rank",
    "comm.queued": "comm.: queued",
    "optimizer": "optimizer",
    "events": "events between steps",
    "unattributed": "unattributed",
}
"""The leaves of the tree of causes, in the order of a step."""


def leaf(name: str) -> str:
    return LEAVES.get(name, name)


def phase(name: str | None) -> str:
    return UNKNOWN if name is None else PHASES.get(name, name)


def why(summary: Mapping[str, Any], path: str) -> str:
    """Why the field at `path` is null: its own reason, or that of what it is a part of."""
    reasons = summary["reasons"]
    parts = path.split(".")
    found = (reasons.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
    return next((reason for reason in found if reason is not None), "not recorded")
