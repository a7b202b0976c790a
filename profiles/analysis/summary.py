"""summary.json (schema 1): what a run's records say, with a reason for each thing they do not say.

Seconds are per step, means over ranks of per-rank values. Phases and `unattributed` sum to the step on every rank
and step; the identity is asserted where it is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..records import PHASES, SCHEMA, EventRecord, StepRecord
from ..runfolder import RunFolder
from .load import Run, load_run
from .memory import memory
from .statistics import spread

ALL_PHASES = ("data", "h2d", "forward", "backward", "comm_exposed", "optimizer", "unattributed")
LEDGER_TOLERANCE_SECONDS = 1e-6

Null = Callable[[str, str], None]


def write_summary(folder: RunFolder) -> dict[str, Any]:
    """Summarise `folder` into its summary.json, and return the summary."""
    summary = summarise(load_run(folder))
    folder.write("summary.json", summary)
    return summary


def summarise(run: Run) -> dict[str, Any]:
    """The summary of `run`. Every null has an entry in `reasons` under its dotted path."""
    reasons: dict[str, str] = {}

    def null(path: str, why: str) -> None:
        reasons[path] = why

    config, facts = run.run_json["config"], run.run_json
    steps = run.complete_steps
    step_seconds = _step_seconds(run, null)
    summary = {
        "schema": SCHEMA,
        "source": "measured",
        "run_id": run.run_id,
        "name": facts["name"],
        "strategy": config["strategy"],
        "engine": "native",
        "launcher": config["launcher"],
        "device": config["device"],
        "device_name": facts["device_name"],
        "world_size": facts["world_size"],
        "nodes": 1,
        "oversubscribed": facts["oversubscribed"],
        "precision": facts["precision"],
        "checkpointing": "none",
        "compile": False,
        "micro_batch": config["micro_batch"],
        "grad_accumulation": config["grad_accumulation"],
        "global_batch": config["global_batch"],
        "model": _model(facts, null),
        "steps": {
            "warmup": min((sum(s.role == "warmup" for s in rank.steps) for rank in run.ranks), default=0),
            "measured": len(steps) or min((rank.window.steps for rank in run.ranks if rank.window), default=0),
            "profiled": 0,
        },
        "throughput": _throughput(step_seconds, config["global_batch"], null),
        "step_seconds": step_seconds,
        "phases": phases(run, null),
        "detail": _detail(run, null),
        "events": _events(run),
        "per_rank": _per_rank(run, null),
        "comm": _comm(facts["world_size"], null),
        "memory": memory(run, null),
        "utilization": _nulls("utilization", UTILIZATION, "not recorded in this run", null),
        "cost": _cost(step_seconds, config, facts, null),
        "quality": _quality(run, null),
        "loss": _loss(run),
        "grad_norm": _grad_norm(run, null),
        "counterfactual": None,
        "overhead": None,
        "outcome": {"state": run.status["state"], "exit_code": run.status["exit_code"]},
        "unreadable_lines": sum(rank.unreadable for rank in run.ranks),
    }
    null("counterfactual", "no counterfactual tail was run")
    null("overhead", "the cost of measuring was not measured in this run")
    if summary["loss"] is None:
        null("loss", "no step was recorded" + (" (--probe off)" if config["probe"] == "off" else ""))
    return {**summary, "reasons": dict(sorted(reasons.items()))}


UTILIZATION = ("gpu_percent", "mfu", "hfu", "useful_fraction", "joules_per_sample", "p99_h2d_seconds")
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
    "straggler",
)


def _nulls(prefix: str, names: tuple[str, ...], why: str, null: Null) -> dict[str, None]:
    for name in names:
        null(f"{prefix}.{name}", why)
    return dict.fromkeys(names)


def _model(facts: Mapping[str, Any], null: Null) -> dict[str, Any]:
    model = facts.get("model")
    null("model.flops_per_sample", "operations are not counted in this run")
    null("model.flops_by_branch", "operations are not counted in this run")
    if model is None:
        null("model.parameters", "the run ended before the model was built")
    return {
        "name": facts["config"]["model"],
        "parameters": model["parameters"] if model else None,
        "flops_per_sample": None,
        "flops_by_branch": None,
    }


def _step_seconds(run: Run, null: Null) -> dict[str, Any]:
    """Spread of the step over steps, each step being the mean over ranks."""
    steps = run.complete_steps
    windows = [rank.window for rank in run.ranks if rank.window]
    if not steps and windows and len(windows) == len(run.ranks):
        for name in ("median", "p10", "p90", "p99", "ci95"):
            null(f"step_seconds.{name}", "--probe off: the measured window is timed as a whole")
        return {**spread([]), "mean": float(np.mean([window.seconds / window.steps for window in windows]))}
    found = spread(run.matrix(lambda step: step.seconds).mean(axis=0)) if steps else spread([])
    for name, value in found.items():
        if value is None:
            null(
                f"step_seconds.{name}",
                f"{len(steps)} measured steps are too few" if steps else "no measured step was finished",
            )
    return found


def _throughput(step_seconds: Mapping[str, Any], global_batch: int, null: Null) -> dict[str, Any]:
    mean, interval = step_seconds["mean"], step_seconds["ci95"]
    if mean is None:
        null("throughput.samples_per_second", "no measured step was finished")
    if interval is None:
        null("throughput.ci95", "the step has no interval")
    return {
        "samples_per_second": None if mean is None else global_batch / mean,
        "ci95": None if interval is None else [global_batch / interval[1], global_batch / interval[0]],
    }


def phases(run: Run, null: Null) -> dict[str, Any]:
    """Mean, median and share of each phase; the shares sum to 1."""
    found: dict[str, Any] = dict.fromkeys(ALL_PHASES)
    if not run.complete_steps:
        for name in ALL_PHASES:
            null(f"phases.{name}", "no measured step was recorded")
        return found
    total = run.matrix(lambda step: step.seconds)
    ledger = {name: run.matrix(lambda step, name=name: step.phases.get(name, 0.0)) for name in PHASES}
    if run.run_json["config"]["device"] == "cpu":
        # Handing a CPU batch on copies nothing: the few microseconds of asking are nobody's phase.
        del ledger["h2d"]
        null("phases.h2d", "there is no copy to a device on CPU")
    ledger["unattributed"] = total - sum(ledger.values())
    assert ledger["unattributed"].min() > -LEDGER_TOLERANCE_SECONDS, "phases are longer than their step"
    if run.run_json["world_size"] == 1:
        ledger["comm_exposed"] = np.zeros_like(total)
    else:
        null("phases.comm_exposed", "not told apart in this run: backward and optimizer still contain it")
    for name, seconds in ledger.items():
        found[name] = {
            "mean": float(seconds.mean()),
            "median": float(np.median(seconds.mean(axis=0))),
            "share": float(seconds.mean() / total.mean()),
        }
    return found


def _detail(run: Run, null: Null) -> dict[str, Any]:
    null("detail.recompute_seconds", "nothing is recomputed in this run")
    null("detail.optimizer_comm_seconds", "communication was not recorded")
    if not run.complete_steps:
        null("detail.host_data_seconds", "no measured step was recorded")
    return {
        "recompute_seconds": None,
        "host_data_seconds": float(run.matrix(lambda s: s.host_data_seconds).mean()) if run.complete_steps else None,
        "optimizer_comm_seconds": None,
    }


def _events(run: Run) -> list[dict[str, Any]]:
    """Events by kind: how many, and seconds in all, mean over ranks."""
    records = [event for rank in run.ranks for event in rank.events]
    rows = []
    for kind in sorted({event.event for event in records}):
        alike = [event for event in records if event.event == kind]
        seconds = sum(event.seconds for event in alike) / len(run.ranks)
        rows.append({"kind": kind, "count": len({event.step for event in alike}), "seconds": seconds})
    return rows


def _per_rank(run: Run, null: Null) -> list[dict[str, Any]]:
    rows = []
    for rank in run.ranks:
        steps = [rank.measured[step] for step in run.complete_steps]
        names = [name for name in PHASES if not (name == "h2d" and run.run_json["config"]["device"] == "cpu")]
        rows.append(
            {
                "rank": rank.rank,
                "host": rank.start.host if rank.start else None,
                "phases": {n: float(np.mean([s.phases.get(n, 0.0) for s in steps])) for n in names} if steps else None,
                "step_seconds": float(np.mean([s.seconds for s in steps])) if steps else None,
                "own_seconds": None,
                "waiting_seconds": None,
            }
        )
    for name in ("own_seconds", "waiting_seconds"):
        null(f"per_rank.{name}", "communication was not recorded")
    if not run.complete_steps:
        null("per_rank.phases", "no measured step was recorded")
        null("per_rank.step_seconds", "no measured step was recorded")
    return rows


def _comm(world_size: int, null: Null) -> dict[str, Any]:
    if world_size > 1:
        return _nulls("comm", COMM, "communication was not recorded", null)
    zeros = dict.fromkeys(COMM, 0.0)
    null("comm.bus_bandwidth", "one rank sends nothing")
    null("comm.straggler", "one rank has no other to be late for")
    return {
        **zeros,
        "payload_bytes_per_step": {},
        "exposed_by_phase": {"forward": 0.0, "backward": 0.0, "optimizer": 0.0},
        "bus_bandwidth": None,
        "straggler": None,
    }


def _cost(
    step_seconds: Mapping[str, Any], config: Mapping[str, Any], facts: Mapping[str, Any], null: Null
) -> dict[str, Any]:
    """Device-hours per million samples = ranks x seconds per sample / 3600 x 10^6."""
    hours = None
    if step_seconds["mean"] is None:
        null("cost.device_hours_per_million_samples", "no measured step was finished")
    else:
        hours = facts["world_size"] * step_seconds["mean"] / config["global_batch"] / 3600 * 1e6
    on_gpu = config["device"] == "cuda"
    if not on_gpu:
        null("cost.gpu_hours_per_million_samples", "the run used no GPU")
    for name in ("usd_per_million_samples", "usd_per_gpu_hour", "price_source", "whole_run", "by_cause"):
        null(f"cost.{name}", "no price was given")
    return {
        "device_kind": facts["device_name"],
        "device_hours_per_million_samples": hours,
        "gpu_hours_per_million_samples": hours if on_gpu else None,
        "usd_per_million_samples": None,
        "usd_per_gpu_hour": None,
        "price_source": None,
        "whole_run": None,
        "by_cause": None,
    }


def _loss(run: Run) -> list[float | None] | None:
    """Mean over ranks and micro-batches, a number for each step that every rank finished, from the first warm-up."""
    return _by_step(run, lambda steps: _mean([loss for step in steps for loss in step.losses]))


def _grad_norm(run: Run, null: Null) -> list[float | None] | None:
    """Global norm before clipping: a sum of squares that k ranks hold alike counts for 1 / k on each."""

    def norm(steps: list[StepRecord]) -> float | None:
        parts = [(step.grad_square_sum, step.grad_replicas) for step in steps]
        shares = [square / replicas for square, replicas in parts if square is not None and replicas]
        return math.sqrt(sum(shares)) if len(shares) == len(parts) else None

    if not run.run_json["config"]["record_grad_norm"]:
        null("grad_norm", "not recorded; --record-grad-norm records it")
        return None
    return _by_step(run, norm)


def _by_step(run: Run, value: Callable[[list[StepRecord]], float | None]) -> list[float | None] | None:
    by_rank = [{step.step: step for step in rank.steps} for rank in run.ranks]
    common = sorted(set.intersection(*(set(steps) for steps in by_rank))) if by_rank else []
    return [value([steps[index] for steps in by_rank]) for index in common] or None


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _quality(run: Run, null: Null) -> dict[str, Any]:
    """The best of the held-out metric over evaluations, and when the target was first met on rank 0's timeline."""
    evaluations = [event for event in run.ranks[0].events if event.event == "evaluation"] if run.ranks else []
    target = run.run_json["target"]
    metric = target["metric"] if target else "ap_mean"
    scores = [(event, event.values.get(metric)) for event in evaluations]
    known = [(event, score) for event, score in scores if score is not None]
    null("quality.usd_to_target", "no price was given")
    found = {"metric": metric, "best": None, "seconds_to_target": None, "usd_to_target": None}
    if not known:
        null("quality.metric", "no evaluation gave a metric; --eval-every N evaluates on held-out scenes")
        null("quality.best", reason := "no evaluation gave a metric")
        null("quality.seconds_to_target", reason)
        return {**found, "metric": None}
    found["best"] = max(score for _, score in known)
    met = [event for event, score in known if target and score >= target["value"]]
    if met:
        found["seconds_to_target"] = _ended(met[0])
    else:
        null("quality.seconds_to_target", "the target was not met" if target else "no --target was given")
    return found


def _ended(event: EventRecord) -> float:
    return event.start_seconds + event.seconds
