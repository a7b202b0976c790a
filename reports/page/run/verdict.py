"""The box on top: what happened, why, what next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ..section import Paragraph, Section
from ..words import CAUSES, DEVICE, phase, why

PLACE = 0
MORE_THAN_TRACES = (
    "Traces tell where the time went, not what removing a cause would buy: that takes records of steps, which "
    "scalelab run writes, and a Probe in a job's own loop."
)


def section(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> Section:
    verdict, facts = pictures["verdict"], pictures["facts"]
    if summary["source"] == "imported":
        title, tone = (
            "Imported traces: what they say of the time of a step",
            "warning" if summary["damage"] else "plain",
        )
    elif not verdict["finished"]:
        title, tone = _ended(facts), "bad"
    else:
        title, tone = _finished(summary), "warning" if verdict["straggler"] or summary["damage"] else "good"
    if summary["source"] == "imported":
        lines = [_device(summary, verdict["device"]), MORE_THAN_TRACES]
    else:
        lines = [] if verdict["finished"] else _why_ended(facts)
        lines += [*_time(summary, verdict), *_next(verdict, facts)]
    blocks = [Paragraph(f"Damaged: {line}.", "warning") for line in summary["damage"]]
    blocks += [Paragraph(line) for line in lines]
    if summary["oversubscribed"]:
        blocks.append(
            Paragraph(
                "More ranks than cores: the ranks took each other's time, and no speed here carries "
                "over to a machine that has them.",
                "warning",
            )
        )
    blocks += [Paragraph(note, "note") for note in facts["notes"]]
    return Section("verdict", title, blocks, box=True, tone=tone, short="Verdict")


def _finished(summary: Mapping[str, Any]) -> str:
    speed, steps = summary["throughput"]["samples_per_second"], summary["steps"]["measured"]
    expected = summary["steps"]["expected"]
    if summary["damage"] and steps < expected:
        return f"Damaged: {steps} of {expected} measured steps are there"
    over = units.counted(steps, "measured step")
    if speed is None:
        return f"Finished: {over}"
    step = units.milliseconds(summary["step_seconds"]["mean"])
    return f"Finished: {units.figures(speed)} samples/s, {step} a step over {over}"


def _ended(facts: Mapping[str, Any]) -> str:
    code = "" if facts["exit_code"] is None else f", exit code {facts['exit_code']}"
    return f"Not finished ({facts['state']}{code}): what follows is partial"


def _why_ended(facts: Mapping[str, Any]) -> list[str]:
    at, cause = facts["culprit"] or {}, facts["cause"]
    where = ""
    if at.get("rank") is not None:
        step = "" if at.get("step") is None else f" of step {at['step']}"
        where = f"Rank {at['rank']} in {at.get('phase') or 'no known phase'}{step}: "
    lines = [f"{where}{cause}"] if cause else ["Why it ended is not in its folder (status.json names no cause)."]
    return [*lines, *([f"What to do: {facts['hint']}"] if facts["hint"] else [])]


def _device(summary: Mapping[str, Any], found: Mapping[str, Any] | None) -> str:
    """Of imported traces."""
    if found is None:
        told = "trace.device_mean" if summary["trace"] else "trace"
        return f"Where the devices' time went cannot be said of all together: {why(summary, told)}."
    whose = "the hosts' threads" if found["on_host"] else "the devices"
    what = "a profiled step" if found["per"] == "step" else "the trace"
    first, *others = found["parts"]
    rest = ", ".join(f"{DEVICE[row['part']]} {units.percent(row['share'])}" for row in others)
    part = f"{DEVICE[first['part']]}: {units.percent(first['share'])}, {units.milliseconds(first['seconds'])}"
    return f"The largest part of {what} of {whose} is {part}; {rest}."


def _time(summary: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[str]:
    lines = []
    if (largest := verdict["largest"]) is not None:
        share = units.percent(largest["share"])
        lines.append(
            f"The largest part of a step is {phase(largest['phase'])}: {share}, {units.milliseconds(largest['mean'])}."
        )
    if (late := verdict["straggler"]) is not None:
        lines.append(
            f"Rank {late['rank']} is late, from its {late['cause']} on: {units.milliseconds(late['excess_seconds'])} a "
            f"step more of its own than the others, last in {late['share']:.0%} of the steps."
        )
    if (growth := verdict["growth_bytes_per_step"]) is not None:
        lines.append(f"Memory grows by {units.size(growth)} a step: tensors are kept from step to step.")
    return lines


def _next(verdict: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """What to do first: the diagnosis's word where there is one, else what taking a cause away was seen to save."""
    if (diagnosis := facts["diagnosis"]) is not None:
        return _diagnosis(diagnosis)
    if (best := verdict["headroom"]) is not None:
        spread = units.interval(best["ci95"], 1e3, "ms")
        share = "" if best["share"] is None else f", {units.percent(best['share'])} of it"
        saved = f"{units.milliseconds(best['headroom_seconds'])} {spread}{share}"
        told = f"Without {CAUSES[best['cause']]} a step saves {saved}: look there first."
    elif verdict["tried"]:
        told = "Nothing that was taken away in turn saved time beyond doubt."
    else:
        told = "What a cause's removal would buy was not tried: --counterfactual does."
    if (unreadable := facts["diagnosis_unreadable"]) is not None:
        return [told, f"The diagnosis cannot be read: {unreadable}. `scalelab diagnose` makes it anew."]
    return [told, "No diagnosis was run."]


def _diagnosis(diagnosis: Mapping[str, Any]) -> list[str]:
    verdict = diagnosis["verdict"]
    share = f", {verdict['severity_share']:.0%} of the step" if verdict.get("severity_share") else ""
    lines = [f"Diagnosis: {verdict['label']}{share}. {verdict.get('says') or ''}".strip()]
    # Others cost too little, or too unsurely, to act on; the card of `scalelab diagnose` has them.
    for finding in [each for each in diagnosis["findings"] if each.get("counts")][:1]:
        lines += [each["says"] for each in finding["evidence"]]
        lines.append(f"Next: {finding['next']['says']}")
    return lines
