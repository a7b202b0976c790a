"""Where the device's time goes, by cause: a tree whose leaves sum to all of it.

    data · h2d · forward · backward {gradient, recompute} · comm {transfer, waiting, queued} · optimizer · events ·
    unattributed

Seconds are per measured step, means over ranks, of the steps and of the events that follow them. A node whose parts are
not known stays whole, a leaf itself, and says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .load import Run
from .reasons import Null

PATH = "cost.by_cause"
PARTS = {"backward": ("gradient", "recompute"), "comm": ("transfer", "waiting", "queued")}
CLOSES_TO = 1e-6
"""Seconds: what sums of floats may differ by."""

Node = dict[str, Any]


def by_cause(run: Run, summary: Mapping[str, Any], null: Null) -> dict[str, Node | None] | None:
    """The tree of a run whose `step_seconds`, `phases`, `detail` and `comm` are in `summary`: seconds and shares."""
    phases, step = summary["phases"], summary["step_seconds"]["mean"]
    if not run.complete_steps or step is None or phases["forward"] is None:
        null(PATH, "the phases of a step are not known")
        return None
    seconds: dict[str, Any] = {name: None if row is None else row["mean"] for name, row in phases.items()}
    tree: dict[str, Any] = {
        "data": seconds["data"],
        "h2d": seconds["h2d"],
        "forward": seconds["forward"],
        "backward": _backward(seconds["backward"], summary["detail"], null),
        "comm": _comm(seconds["comm_exposed"], summary["comm"], null),
        "optimizer": seconds["optimizer"],
        "events": event_seconds(run),
        "unattributed": seconds["unattributed"],
    }
    for name, of in (("data", "data"), ("h2d", "h2d"), ("comm", "comm_exposed"), ("optimizer", "optimizer")):
        if tree[name] is None:
            null(f"{PATH}.{name}", summary.get("reasons", {}).get(f"phases.{of}", f"see phases.{of}"))
    total = step + tree["events"]
    found = {name: None if value is None else _node(value, total) for name, value in tree.items()}
    summed = sum(node["seconds"] for _, node in leaves(found))
    assert math.isclose(summed, total, rel_tol=0, abs_tol=CLOSES_TO), f"causes sum to {summed} s of {total} s"
    return found


def total_seconds(tree: Mapping[str, Node | None]) -> float:
    """Seconds of a step and the events that follow it."""
    return sum(node["seconds"] for node in tree.values() if node is not None)


def leaves(tree: Mapping[str, Node | None]) -> Iterator[tuple[str, Node]]:
    """The tree's leaves under their dotted names; a node that could not be parted is one."""
    for name, node in tree.items():
        if node is None:
            continue
        parts = {part: node[part] for part in PARTS.get(name, ()) if node[part] is not None}
        if parts:
            yield from ((f"{name}.{part}", row) for part, row in parts.items())
        else:
            yield name, node


def event_seconds(run: Run) -> float:
    """Seconds of the events that follow measured steps, per measured step, mean over ranks. The profiler's are not
    training's: it comes after."""
    steps = run.complete_steps
    within = sum(
        event.seconds
        for rank in run.ranks
        for event in rank.events
        if event.event != "profiler" and steps[0] <= event.step <= steps[-1]
    )
    return within / len(run.ranks) / len(steps)


def _backward(seconds: float, detail: Mapping[str, Any], null: Null) -> dict[str, float | None]:
    recompute = detail["recompute_seconds"]
    if recompute is None:
        why = "recompute was not timed apart: see detail.recompute_seconds"
    elif recompute > seconds:
        why = "what recompute waited for communication is in its time, and not told apart"
    else:
        return {"": seconds, "gradient": seconds - recompute, "recompute": recompute}
    return {"": seconds, **_whole("backward", why, null)}


def _comm(seconds: float | None, comm: Mapping[str, Any], null: Null) -> dict[str, float | None] | None:
    if seconds is None:
        return None
    parts = {name: comm[f"{name}_seconds"] for name in PARTS["comm"]}
    if None in parts.values():
        return {"": seconds, **_whole("comm", "why a rank was blocked is not known: see comm.waiting_seconds", null)}
    return {"": seconds, **parts}


def _whole(name: str, why: str, null: Null) -> dict[str, None]:
    for part in PARTS[name]:
        null(f"{PATH}.{name}.{part}", why)
    return dict.fromkeys(PARTS[name])


def _node(value: float | Mapping[str, float | None], total: float) -> Node:
    if not isinstance(value, Mapping):
        return {"seconds": value, "share": value / total}
    parts = {name: None if part is None else _node(part, total) for name, part in value.items() if name}
    whole = value[""]
    assert whole is not None
    return {**_node(whole, total), **parts}
