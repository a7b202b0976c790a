"""A run's diagnosis: every rule asked, causes ordered by what removing each would buy, one verdict."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ...runfolder import RunFolder
from ..load import Run
from ..steps import unmarked
from .facts import Facts, milliseconds
from .finding import CannotTell, Finding
from .lacking import ended, explained, failed, no_rules, unfit, unowned
from .once import once
from .rules import rules
from .thresholds import LIMITS, Thresholds

SCHEMA = 1
FILE = "diagnosis.json"


def write_diagnosis(folder: RunFolder, run: Run, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Diagnose `run`, whose summary that is, into its folder's diagnosis.json, and return the diagnosis."""
    found = diagnose(run, summary)
    # What a change was once seen to buy took many runs to find out.
    with contextlib.suppress(ValueError):
        before = folder.read(FILE)
        if isinstance(before, dict) and before.get("verification"):
            found["verification"] = before["verification"]
    folder.write(FILE, found)
    return found


def diagnose(run: Run, summary: Mapping[str, Any], limits: Thresholds = LIMITS) -> dict[str, Any]:
    """The diagnosis as plain JSON: `verdict`, `findings` (largest first), `cannot_tell`, `reasons` of nulls."""
    if (why := unfit(run, limits)) is not None:
        return _told(run, summary, [], [*failed(run), why], limits)
    facts = Facts(run, summary, limits)
    findings, lacks = [], []
    for rule in rules().values():
        if not rule.can_occur(facts):
            continue
        answer = rule.find(facts)
        if isinstance(answer, Finding):
            findings.append(answer)
        elif isinstance(answer, CannotTell):
            lacks.append(answer)
    told = once(findings, facts)
    lacks = [explained(each, told, facts) for each in lacks]
    seconds = unowned(facts, told)
    if (rest := no_rules(facts, seconds)) is not None:
        # Where the wait for batches is not marked, it lies there, and is told there.
        lacks = [rest, *(each for each in lacks if each.label != "input_bound" or "data" not in unmarked(run))]
    return _told(run, summary, [(each, facts) for each in told], [*failed(run), *lacks], limits, rest, seconds)


def _told(
    run: Run,
    summary: Mapping[str, Any],
    findings: list[tuple[Finding, Facts]],
    lacks: list[CannotTell],
    limits: Thresholds,
    rest: CannotTell | None = None,
    rest_seconds: float = 0.0,
) -> dict[str, Any]:
    """`rest`: what it is that takes `rest_seconds` a step and that no cause has, where that is much."""
    reasons: dict[str, str] = {}
    usd, why_no_usd = _usd(summary)
    step_seconds = findings[0][1].step_seconds if findings else summary["step_seconds"]["mean"]
    rows = [_row(finding, facts, usd) for finding, facts in findings]
    rows = [row for row in rows if _shown(row, step_seconds, limits)]
    _whose(rows)
    rows.sort(key=lambda row: (not row["counts"], -(row["headroom_seconds"] or 0.0)))
    for index, row in enumerate(rows):
        if row["usd_per_million_samples"] is None:
            reasons[f"findings.{index}.usd_per_million_samples"] = why_no_usd
    first = next((row for row in rows if row["counts"]), None)
    label = "cannot_tell" if any(each.matters for each in lacks) else "healthy"
    label = label if first is None else first["label"]
    verdict = {
        "label": label,
        "severity_share": first["severity_share"] if first else 0.0 if label == "healthy" else None,
        "headroom_seconds": first["headroom_seconds"] if first else None,
        "ci95": first["ci95"] if first else None,
        "usd_per_million_samples": first["usd_per_million_samples"] if first else None,
        "step_seconds": step_seconds,
        "ended": ended(run),
        "says": _says(label, lacks, first, rest if first and rest_seconds > (first["headroom_seconds"] or 0) else None),
    }
    for name in ("severity_share", "headroom_seconds", "ci95", "usd_per_million_samples"):
        if verdict[name] is None:
            reasons[f"verdict.{name}"] = _why_null(name, label, first, why_no_usd)
    if verdict["ended"] is None:
        reasons["verdict.ended"] = "the run finished"
    if (overlap := _overlap(rows, step_seconds, limits)) is None:
        reasons["overlap"] = "each second is counted once"
    return {
        "schema": SCHEMA,
        "run_id": run.run_id,
        "verdict": verdict,
        "findings": rows,
        "overlap": overlap,
        "cannot_tell": [asdict(each) for each in lacks],
        "thresholds": asdict(limits),
        "reasons": reasons,
    }


def _shown(row: Mapping[str, Any], step_seconds: float, limits: Thresholds) -> bool:
    """A cause that is worth a line; so is one that would be a verdict, had no other taken its seconds."""
    if row["headroom_seconds"] is None or (row["counted_under"] and row["alone_share"] >= limits.least_share):
        return True
    # Of what blocks of the tail say, and no breakdown, noise is the larger part.
    surely = row["ci95"][0] / step_seconds if row["by_tail"] and row["severity_share"] < limits.least_share else 1.0
    return row["severity_share"] >= limits.shown_share and surely >= limits.shown_share


def _whose(rows: list[dict[str, Any]]) -> None:
    """Under which cause the seconds that are not a row's are counted, in words: by its name where it is listed too."""
    listed = {row["label"] for row in rows}
    for row in rows:
        named = [label for label in row["counted_under"] if label in listed]
        small = "in another cause that is too small to be listed"
        parts = [
            *([f"under {' and '.join(named)}"] if named else []),
            *([small] if row["counted_under"] != named else []),
        ]
        row["counted_under"] = named
        row["counted"] = f"counted {' and '.join(parts)}" if parts else None
        if parts and row["alone_share"]:
            row["method"] += f"; {1 - row['severity_share'] / row['alone_share']:.0%} of it is {row['counted']}"


def _overlap(rows: list[dict[str, Any]], step_seconds: float, limits: Thresholds) -> str | None:
    """Which of the shares may overlap: seconds of the tail that lie where the breakdown has other causes'."""
    found = [row for row in rows if row["beyond_seconds"] >= limits.shown_share * step_seconds]
    if not found or len(rows) == 1:
        return None
    parts = ", ".join(f"{milliseconds(row['beyond_seconds'])} of {row['label']}" for row in found)
    total = sum(row["severity_share"] or 0.0 for row in rows)
    return (
        f"{parts}, measured by taking it away, lie outside of where a step spends time on it (cores are free for "
        f"the rest then), and may be in other causes' shares too: together the shares say {total:.0%}"
    )


def _row(finding: Finding, facts: Facts, usd: float | None) -> dict[str, Any]:
    headroom = finding.headroom
    share = None if headroom is None else facts.share(headroom.seconds)
    return {
        "label": finding.label,
        "counts": facts.counts(finding),
        "evidence": [{"says": each.says, "values": dict(each.values)} for each in finding.evidence],
        "next": {"says": finding.remedy.says, "options": dict(finding.remedy.options)},
        "headroom_seconds": None if headroom is None else headroom.seconds,
        "ci95": None if headroom is None or headroom.ci95 is None else list(headroom.ci95),
        "method": finding.why_no_headroom if headroom is None else headroom.method,
        "severity_share": share,
        "ci95_share": None if headroom is None or headroom.ci95 is None else [*map(facts.share, headroom.ci95)],
        "counted_under": list(finding.counted_under),
        "by_tail": headroom is not None and headroom.by_tail,
        "beyond_seconds": finding.beyond,
        "alone_share": share if finding.alone is None else facts.share(finding.alone.seconds),
        "usd_per_million_samples": None if usd is None or share is None else usd * share,
    }


def _usd(summary: Mapping[str, Any]) -> tuple[float | None, str]:
    cost = summary.get("cost") or {}
    # Shares are of steps with what lies between them, and so is this.
    usd = (cost.get("by_cause_total") or {}).get("usd_per_million_samples") or cost.get("usd_per_million_samples")
    reasons = summary.get("reasons") or {}
    return usd, reasons.get("cost.usd_per_million_samples", "no price is known")


def _says(label: str, lacks: list[CannotTell], first: Mapping[str, Any] | None, rest: CannotTell | None) -> str:
    """`rest`: what takes longer than the `first` cause, and is no rule's."""
    if first is not None and rest is not None:
        return f"more than {first['label']}, and not known: {rest.lacks}; rerun: {rest.rerun}"
    if label == "healthy":
        return f"no cause whose removal would buy {LIMITS.least_share:.0%} of the step"
    if label == "cannot_tell":
        lack = next(each for each in lacks if each.matters)
        return f"lacks {lack.lacks}; rerun: {lack.rerun}"
    return ""


def _why_null(name: str, label: str, first: Mapping[str, Any] | None, why_no_usd: str) -> str:
    if first is None:
        return "no cause was found" if label == "healthy" else "not known: see cannot_tell"
    if first["headroom_seconds"] is None:
        return str(first["method"])
    return why_no_usd if name == "usd_per_million_samples" else "too few steps"
