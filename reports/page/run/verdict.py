"""The box on top: what happened, why, what next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import units
from ...diagnosis_words import beside, bought, buys, costs, first_of, lacking, overlapping, subject
from ..section import Block, Column, Paragraph, Section, Table
from ..words import CAUSES, DEVICE, phase, why

PLACE = 0
MORE_THAN_TRACES = (
    "Traces tell where the time went, not what removing a cause would buy: that takes records of steps, which "
    "scalelab run writes, and a Probe in a job's own loop."
)
_ALSO = (("also", "label"), ("of the step", "severity_share"), ("what to do", "next"))


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
        title, tone = _finished(summary), "good" if _well(summary, pictures) else "warning"
    if summary["source"] == "imported":
        lines = [_device(summary, verdict["device"]), MORE_THAN_TRACES]
    else:
        lines = [] if verdict["finished"] else _why_ended(facts)
        lines += [*_time(summary, verdict), *_next(verdict, facts)]
    blocks: list[Block] = [Paragraph(f"Damaged: {line}.", "warning") for line in summary["damage"]]
    blocks += [Paragraph(line) for line in lines]
    if facts["diagnosis"] is not None and summary["source"] != "imported":
        blocks += _diagnosis(facts["diagnosis"])
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


def _well(summary: Mapping[str, Any], pictures: Mapping[str, Any]) -> bool:
    """Whether nothing in the box is to be heeded: what is green is read no further."""
    diagnosis = pictures["facts"]["diagnosis"]
    healthy = diagnosis is None or diagnosis["verdict"]["label"] == "healthy"
    heeded = pictures["verdict"]["straggler"] or summary["oversubscribed"] or summary["damage"]
    return healthy and not heeded


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
    """What to do first where no diagnosis tells: what taking a cause away was seen to save."""
    if facts["diagnosis"] is not None:
        return []
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


def _diagnosis(diagnosis: Mapping[str, Any]) -> list[Block]:
    """All that the card of `scalelab diagnose` says."""
    verdict, first = diagnosis["verdict"], first_of(diagnosis)
    told = costs(verdict)
    lines = [verdict["ended"]] if verdict.get("ended") else []
    says = f": {verdict['says']}" if verdict["says"] else "."
    lines.append(f"Diagnosis: {verdict['label']}{f', {told}' if told else ''}{says}")
    if first is not None:
        lines += [each["says"] for each in first["evidence"]]
        lines += [f"Next: {first['next']['says']}", f"What it would buy: {buys(first, verdict['step_seconds'])}"]
    if (verified := diagnosis.get("verification")) is not None:
        amount, *rest = bought(verified, verdict["label"])
        lines += [f"What it bought: {verified['verdict']}{amount}", *rest]
    blocks: list[Block] = [Paragraph(line) for line in lines]
    if others := [row for row in diagnosis["findings"] if row is not first]:
        columns = [Column(title, name, numeric=False) for title, name in _ALSO]
        blocks.append(Table("also", "Other causes, the largest first", columns, [beside(row) for row in others]))
    blocks += [Paragraph(each, "note") for each in overlapping(diagnosis)]
    if lacks := diagnosis["cannot_tell"]:
        blocks += [Paragraph(f"Cannot tell, {subject(row)}: {lacking(row)}", "note") for row in lacks]
    return blocks
