"""summary.json (schema 1): what a run's records say, with a reason for each thing they do not say.

Seconds are per step, means over ranks of per-rank values. Phases and `unattributed` sum to the step on every rank
and step; the identity is asserted where it is computed.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..records import SCHEMA
from ..runfolder import RunFolder, SchemaError
from .communication import comm, communication
from .cost import cost, reprice, usd_to_target
from .damage import expected_steps, lost_records, lost_traces
from .data import data
from .efficiency import efficiency, model
from .host_syncs import host_syncs
from .imported import NOT_IN_A_TRACE, overlay
from .load import Run, load_run
from .memory import memory
from .prices import Given, rates
from .reasons import Null, nulls
from .steps import detail, events, per_rank, phases, samples_per_step, step_seconds, throughput
from .tail import counterfactual, overhead
from .telemetry import telemetry
from .traces import merge_traces, read_traces, trace_files, traces, without_trace
from .training import grad_norm, loss, losses_not_finite, quality
from .withheld import withheld

Rows = Sequence[dict[str, Any]]
NOT_MERGED: Mapping[str, Any] = {"why": "there is no trace"}


def write_summary(folder: RunFolder, given: Given | None = None, *, run: Run | None = None) -> dict[str, Any]:
    """Summarise `folder` into its summary.json, at the prices `given` if any, which it then holds as `repriced`, and
    return the summary. `run` is its run where it has been read."""
    try:
        folder.read("summary.json")
    except SchemaError:  # one of a newer scalelab is not replaced
        raise
    except ValueError:  # a damaged one is
        pass
    summary = analyse(folder, run or load_run(folder))
    if given:
        prices = {"usd_per_gpu_hour": given.usd_per_gpu_hour, "usd_per_kwh": given.usd_per_kwh}
        told = {name: price for name, price in prices.items() if price is not None}
        summary = {**reprice(summary, given), "repriced": told}
    folder.write("summary.json", summary)
    return summary


def analyse(folder: RunFolder, run: Run) -> dict[str, Any]:
    """The summary of `run`, which `folder` holds, with what its traces say."""
    files = trace_files(folder.path)
    rows = read_traces(files, on_cpu=run.run_json["config"]["device"] == "cpu")
    return summarise(run, rows, merge_traces(folder.path, files, run))


def analyse_as_priced(folder: RunFolder, run: Run) -> dict[str, Any]:
    """The same, at the prices that a reader gave to the summary that is in `folder`, if any did."""
    summary = analyse(folder, run)
    given = given_before(folder)
    return reprice(summary, given) if given else summary


def given_before(folder: RunFolder) -> Given:
    """The prices that a reader gave to the summary that is in `folder`; none where it cannot be read."""
    try:
        return Given(**(folder.read("summary.json") or {}).get("repriced", {}))
    except SchemaError:
        raise
    except (ValueError, TypeError, AttributeError):
        return Given()


@functools.cache
def analysis_digest() -> str:
    """Changes with any change of the code and the tables that make summaries."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    # Those of sweeps, pictures and diagnosis read summaries, and make none.
    for place in (here, here / "trace", here.parent):
        for path in sorted(path for kind in ("*.py", "*.csv") for path in place.glob(kind)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def summarise(run: Run, rows: Rows = (), merged: Mapping[str, Any] = NOT_MERGED) -> dict[str, Any]:
    """The summary of `run`, and of what its traces say (`rows` of `read_traces`, `merged` of `merge_traces`). Every
    null has an entry in `reasons` under its dotted path."""
    if run.run_json.get("source") == "imported":
        return _imported(run, rows, merged)
    reasons: dict[str, str] = {}
    lost = [without_trace(rank.rank, rank.profiler_failed) for rank in run.ranks if rank.profiler_failed is not None]
    summary = _summary(run, sorted([*rows, *lost], key=lambda row: row["rank"]), merged, reasons)
    summary = withheld(summary, run.status, reasons.__setitem__)
    return {**summary, "reasons": dict(sorted(reasons.items()))}


def _imported(run: Run, rows: Rows, merged: Mapping[str, Any]) -> dict[str, Any]:
    """Where nothing else was recorded, every null has the same reason, but what the traces themselves say of theirs."""
    reasons: dict[str, str] = {}
    summary = _summary(run, rows, merged, reasons)
    reasons = {path: reasons[path] if path.startswith("trace") else NOT_IN_A_TRACE for path in reasons}
    for path in _nulls(summary):
        if not any(path == told or path.startswith(f"{told}.") for told in reasons):
            reasons[path] = NOT_IN_A_TRACE

    def null(path: str, why: str) -> None:
        reasons[path] = why

    found = overlay(summary, rows, null)
    known = [path for path in reasons if _at(found, path) is not None]
    return {**found, "reasons": {path: reasons[path] for path in sorted(reasons) if path not in known}}


def _nulls(value: Any, path: str = "") -> list[str]:
    """The dotted path of every null in a nest of objects."""
    if isinstance(value, Mapping):
        return [found for name, each in value.items() for found in _nulls(each, f"{path}.{name}" if path else name)]
    return [path] if value is None else []


def _at(summary: Mapping[str, Any], path: str) -> Any:
    """The value under a dotted path; None where there is none."""
    value: Any = summary
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _summary(run: Run, rows: Rows, merged: Mapping[str, Any], reasons: dict[str, str]) -> dict[str, Any]:
    """The summary without its reasons, which are entered in `reasons`."""

    def null(path: str, why: str) -> None:
        reasons[path] = why

    config, facts = run.run_json["config"], run.run_json
    seconds = step_seconds(run, null)
    samples = samples_per_step(run)
    known = communication(run)
    about = model(run, null)
    prices = rates(run.run_json)
    traced = min((len(row["steps"]) for row in rows if row["unusable"] is None), default=0)
    summary: dict[str, Any] = {
        "schema": SCHEMA,
        "source": "measured",
        "run_id": run.run_id,
        "name": facts["name"],
        "strategy": config["strategy"],
        "engine": config["engine"],
        "launcher": config["launcher"],
        "device": config["device"],
        "device_name": facts["device_name"],
        "world_size": facts["world_size"],
        "nodes": config.get("nodes", 1),
        "oversubscribed": facts["oversubscribed"],
        "precision": facts["precision"],
        "checkpointing": config["checkpointing"],
        "compile": config["compile"],
        "micro_batch": config["micro_batch"],
        "grad_accumulation": config["grad_accumulation"],
        "global_batch": config["global_batch"],
        "model": about,
        "data": data(run, null),
        "steps": {**_steps(run, null), "profiled": traced},
        "throughput": throughput(seconds, samples, null, run.why_no_step),
        "step_seconds": seconds,
        "phases": phases(run, known, null),
        "detail": detail(run, known, null),
        "events": events(run),
        "per_rank": per_rank(run, known, null),
        "comm": comm(run, known, null),
        "memory": memory(run, null),
        "host_syncs": host_syncs(run, null),
        "utilization": {**efficiency(run, about, seconds, samples, null), **telemetry(run, null)},
        "cost": None,
        "quality": quality(run, null),
        "loss": loss(run),
        "grad_norm": grad_norm(run, null),
        "counterfactual": counterfactual(run, null),
        "overhead": overhead(run, null),
        "trace": traces(rows, merged, null, _why_no_trace(run)),
        "calibration": _calibration(run, null),
        "outcome": _outcome(run, null),
        "analysis": analysis_digest(),
        "damage": lost_traces(rows),
        "unreadable_lines": sum(each.unreadable for each in (*run.ranks, *run.telemetry)) + run.unreadable_of_hosts,
    }
    if facts.get("source") != "imported":
        summary["damage"] = [*lost_records(run, summary["steps"]["measured"]), *summary["damage"]]
    _not_told(summary, null)
    summary["cost"] = cost(run, {**summary, "reasons": reasons}, samples, prices, null)
    summary["quality"]["usd_to_target"] = usd_to_target(summary["quality"], facts["world_size"], prices.hour, null)
    if summary["loss"] is None:
        null("loss", run.why_no_step)
    elif config["strategy"] == "own" and not any(rank.steps.losses[1].any() for rank in run.ranks):
        summary["loss"] = None
        null("loss", "the loop did not tell its losses; probe.loss(loss) does")
    return summary


def _steps(run: Run, null: Null) -> dict[str, int | None]:
    windows = [rank.window.steps for rank in run.ranks if rank.window]
    if windows and not run.complete_steps:
        unknown = nulls("steps", ("skipped", "loss_not_finite"), run.why_no_step, null)
        if (warmup := run.run_json["config"].get("warmup")) is None:
            null("steps.warmup", run.why_no_step)
        measured = min(windows) if len(windows) == run.run_json["world_size"] else 0
        return {"warmup": warmup, "measured": measured, "expected": expected_steps(run), **unknown}
    return {
        "warmup": min((int((~rank.steps.measured).sum()) for rank in run.ranks), default=0),
        "measured": len(run.complete_steps),
        "expected": expected_steps(run),
        "skipped": min((int(rank.steps.skipped.sum()) for rank in run.ranks), default=0),
        "loss_not_finite": losses_not_finite(run),
    }


def _outcome(run: Run, null: Null) -> dict[str, Any]:
    found = {"state": run.status.get("state", "unknown"), "exit_code": run.status.get("exit_code")}
    if found["exit_code"] is None:
        null("outcome.exit_code", "nothing says that the run has ended: it goes on, or what watched over it was killed")
    return found


def _not_told(summary: Mapping[str, Any], null: Null) -> None:
    """Options that are null are those of a job under a loop of its own."""
    options = ("checkpointing", "compile", "micro_batch", "grad_accumulation", "global_batch")
    told = {name: summary[name] for name in options}
    told |= {f"precision.{name}": value for name, value in (summary["precision"] or {}).items()}
    for path, value in told.items():
        if value is None:
            null(path, "a job's own loop does not tell it")


def _why_no_trace(run: Run) -> str:
    if run.own_loop:
        return "a job's own loop has no profiler window; scalelab import reads a trace that it made"
    if not run.run_json["config"].get("profile_steps"):
        return "no profiler window was run; --profile-steps runs one"
    return "the run ended before its profiler window was complete"


def _calibration(run: Run, null: Null) -> dict[str, Any] | None:
    """By name and date, what the run's rates are held against."""
    if (found := run.calibration) is None:
        null("calibration", run.why_no_calibration)
        return None
    return {"name": found.name, "made_utc": found.made_utc, "doubts": found.doubts}
