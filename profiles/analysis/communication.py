"""A run's communication as analysis sees it, and the `comm` part of the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calibration import Calibration, collective_seconds
from .clocks import Clocks, clocks
from .collectives import Exposed, Plan, RankComm, Split, exposed, split, unlike_steps
from .load import Run
from .reasons import Null, nulls
from .straggler import Straggler, find_straggler
from .wire import wire_factor

COMM = (
    "calls_per_step",
    "payload_bytes_per_step",
    "wire_bytes_per_step",
    "busy_seconds",
    "overlapped_seconds",
    "exposed_seconds",
    "exposed_by_phase",
    "transfer_seconds",
    "waiting_seconds",
    "queued_seconds",
    "bus_bandwidth",
    "bus_bandwidth_share",
    "exact_steps",
    "alone_seconds",
    "message_bytes",
    "clock_residual_seconds",
    "straggler",
)
PHASES_OF_COMM = ("forward", "backward", "optimizer")
SPLIT = ("transfer_seconds", "waiting_seconds", "queued_seconds")
WIRE = ("busy_seconds", "overlapped_seconds", "bus_bandwidth")


@dataclass(frozen=True, kw_only=True)
class Communication:
    """What is known of the collectives in the complete measured steps. `plans` are those of all ranks, each with in how
    many steps, rank 0's most frequent first; where it is split, the ranks' clocks agree to `clock_residual_seconds`."""

    exposed: Exposed | None
    split: Split | None
    plans: list[tuple[Plan, int]]
    why_unknown: str = ""
    why_not_split: str = ""
    clock_residual_seconds: float | None = None


NONE_SEEN = (
    "no collective was seen on several ranks: the model was wrapped before the probe was attached, or they are carried "
    "by a group of its own"
)


def communication(run: Run) -> Communication:
    """Read it from the records of `run`."""
    steps, world = run.complete_steps, run.run_json["world_size"]
    if world == 1:
        zeros = np.zeros((1, len(steps)))
        return Communication(exposed=Exposed(total=zeros, phases={}), split=None, plans=[])
    if not steps:
        return Communication(exposed=None, split=None, plans=[], why_unknown=run.why_no_step)
    ranks = []
    for rank, places in zip(run.ranks, run.places, strict=True):
        comm, begin_ns = rank.steps.comm.take(places), rank.steps.begin_ns[places]
        if begin_ns.min() < 0 or not set(np.unique(comm.plan).tolist()) <= set(rank.comm_plans):
            why = run.run_json.get("comm_unknown") or f"rank {rank.rank} has no record of its collectives"
            return Communication(exposed=None, split=None, plans=[], why_unknown=why)
        ranks.append(RankComm(rank.comm_plans, begin_ns, comm))
    counted = [(rank.plans, Counter(rank.steps.plan.tolist()).most_common()) for rank in ranks]
    plans = [(by_number[number], steps_of) for by_number, found in counted for number, steps_of in found]
    if run.own_loop and not any(plan for plan, _ in plans):
        return Communication(exposed=None, split=None, plans=[], why_unknown=NONE_SEEN)
    if unseen := _why_blocked_is_not_seen(run.run_json["config"]):
        return Communication(exposed=None, split=None, plans=plans, why_unknown=unseen)
    found = exposed(ranks)
    shared, why = clocks(run), ""
    if run.run_json["config"]["device"] != "cpu":
        why = "NCCL's collectives run on a stream of their own, where begin and end are not seen without a profiler"
    elif different := unlike_steps(ranks):
        why = f"in {different} of {len(steps)} steps the ranks ran different collectives"
    elif isinstance(shared, str):
        why = shared
    if why or not isinstance(shared, Clocks):
        return Communication(exposed=found, split=None, plans=plans, why_not_split=why)
    residual = shared.residual_seconds
    return Communication(
        exposed=found, split=split(ranks, shared.offsets_ns), plans=plans, clock_residual_seconds=residual
    )


def _why_blocked_is_not_seen(config: Mapping[str, Any]) -> str:
    """Why a rank's waiting cannot be seen on CUDA; empty where it can: where DDP's reducer sends while it computes."""
    if config["device"] == "cpu" or (config["strategy"] == "ddp" and config.get("overlap") is not False):
        return ""
    return (
        "on CUDA the compute stream waits for communication by stream events, outside of any call that is seen "
        "without a profiler"
    )


def comm(run: Run, known: Communication, null: Null) -> dict[str, Any]:
    """The `comm` part: calls and bytes per step, what of them was exposed, why, and who was late."""
    world = run.run_json["world_size"]
    if world == 1:
        return _alone(null)
    if not known.plans:
        return nulls("comm", COMM, known.why_unknown, null)
    found = {**dict.fromkeys(COMM), **_traffic(run, known.plans, null)}
    found["alone_seconds"] = _alone_seconds(run, known.plans, null)
    if known.exposed is None:
        return {**found, **nulls("comm", [name for name in COMM if found[name] is None], known.why_unknown, null)}
    found["exposed_seconds"] = float(known.exposed.total.mean())
    found["exposed_by_phase"] = {name: _of_phase(known.exposed, name) for name in PHASES_OF_COMM}
    found |= _parts(known, found["wire_bytes_per_step"], null)
    found["bus_bandwidth_share"] = _bandwidth_share(found, null)
    found["straggler"] = _straggler(run, known, null)
    found["clock_residual_seconds"] = known.clock_residual_seconds
    if known.clock_residual_seconds is None:
        null("comm.clock_residual_seconds", known.why_not_split)
    return found


def of_as_many(run: Run) -> Calibration | None:
    """The run's calibration if it is of as many ranks, on one host as that is."""
    found, world = run.calibration, run.run_json["world_size"]
    alike = found is not None and found.ranks == world and run.run_json["config"].get("nodes", 1) == 1
    return found if alike else None


def _alone_seconds(run: Run, plans: list[tuple[Plan, int]], null: Null) -> float | None:
    """How long the collectives of a step take one after the other on this machine when it does nothing else, as its
    calibration found."""
    calibration = of_as_many(run)
    if calibration is not None:
        counts: Counter[tuple[str, int]] = Counter()
        for plan, times in plans:
            for each in plan:
                counts[each.kind, each.payload_bytes] += times
        counts = Counter({key: count for key, count in counts.items() if key[0] != "barrier"})
        seconds = {key: collective_seconds(calibration, *key) for key in counts}
        unknown = sorted({kind for (kind, _), each in seconds.items() if each is None})
        if not unknown:
            return sum(counts[key] * (each or 0.0) for key, each in seconds.items()) / sum(times for _, times in plans)
        why = f"the calibration {calibration.name} has no {', '.join(unknown)}"
    elif run.calibration is not None:
        why = f"the calibration {run.calibration.name} is of {run.calibration.ranks} ranks on one host"
    else:
        why = run.why_no_calibration
    null("comm.alone_seconds", why)
    return None


def _bandwidth_share(comm: Mapping[str, Any], null: Null) -> float | None:
    """The bus bandwidth that was had, as a share of what the same bytes have on this machine at rest. Above 1 where
    collectives run side by side, as the calibration's run one after the other."""
    if comm["bus_bandwidth"] is None:
        null("comm.bus_bandwidth_share", "the bus bandwidth of this run is not known")
    elif comm["alone_seconds"] is None:
        null("comm.bus_bandwidth_share", "what a step's collectives take on this machine at rest is not known")
    else:
        return comm["alone_seconds"] / comm["busy_seconds"]
    return None


def _alone(null: Null) -> dict[str, Any]:
    for name in ("bus_bandwidth", "bus_bandwidth_share"):
        null(f"comm.{name}", "one rank sends nothing")
    null("comm.straggler", "one rank has no other to be late for")
    return {
        **dict.fromkeys(COMM, 0.0),
        "payload_bytes_per_step": {},
        "exact_steps": 0,
        "exposed_by_phase": dict.fromkeys(PHASES_OF_COMM, 0.0),
        "message_bytes": [],
        "bus_bandwidth": None,
        "bus_bandwidth_share": None,
        "straggler": None,
    }


def _of_phase(exposed: Exposed, name: str) -> float:
    return float(exposed.phases[name].mean()) if name in exposed.phases else 0.0


def _traffic(run: Run, plans: list[tuple[Plan, int]], null: Null) -> dict[str, Any]:
    """Calls, payload by kind and wire bytes per step, means over ranks; messages by size, each row up to a power of
    two."""
    world, device = run.run_json["world_size"], run.run_json["config"]["device"]
    payload: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    for plan, times in plans:
        for collective in plan:
            payload[collective.kind] += times * collective.payload_bytes
            sizes[1 << max(0, collective.payload_bytes - 1).bit_length()] += times
    factors = {kind: wire_factor(kind, world, device) for kind in payload}
    calibration = of_as_many(run)
    for kind in payload:
        if factors[kind] is None and calibration is not None and calibration.wire_factor:
            factors[kind] = calibration.wire_factor.get(kind)
    unknown = sorted(kind for kind, factor in factors.items() if factor is None and payload[kind])
    if unknown:
        null("comm.wire_bytes_per_step", f"how the backend sends {', '.join(unknown)} is not known")
    count = sum(times for _, times in plans)
    wire = sum(total * (factors[kind] or 0.0) for kind, total in payload.items())
    return {
        "calls_per_step": sum(times * len(plan) for plan, times in plans) / count,
        "payload_bytes_per_step": {kind: total / count for kind, total in sorted(payload.items())},
        "wire_bytes_per_step": None if unknown else wire / count,
        "message_bytes": [{"up_to_bytes": size, "calls_per_step": sizes[size] / count} for size in sorted(sizes)],
    }


def _parts(known: Communication, wire_bytes: float | None, null: Null) -> dict[str, Any]:
    found: dict[str, Any] = {**dict.fromkeys((*SPLIT, *WIRE)), "exact_steps": 0}
    if known.split is None:
        return {**found, **nulls("comm", (*SPLIT, *WIRE), known.why_not_split, null)}
    for name in SPLIT:
        found[name] = float(getattr(known.split, name.removesuffix("_seconds")).mean())
    exact = known.split.exact
    found["exact_steps"] = int(exact.sum())
    if not exact.any():
        return {**found, **nulls("comm", WIRE, "no measured step had the ends of all its collectives stamped", null)}
    busy = float(known.split.busy[:, exact].mean())
    found |= {"busy_seconds": busy, "overlapped_seconds": float(known.split.overlapped[:, exact].mean())}
    if wire_bytes is None or not busy:
        null("comm.bus_bandwidth", "the bytes on the wire are not known" if busy else "nothing was sent")
    else:
        found["bus_bandwidth"] = wire_bytes / busy
    return found


def _straggler(run: Run, known: Communication, null: Null) -> Mapping[str, Any] | None:
    assert known.exposed is not None
    last = known.split.last if known.split else None
    found = find_straggler(run, known.exposed, last)
    if isinstance(found, Straggler):
        return {"rank": found.rank, "share": found.share, "cause": found.cause, "excess_seconds": found.excess_seconds}
    null("comm.straggler", found)
    return None
