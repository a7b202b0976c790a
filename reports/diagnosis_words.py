"""What a diagnosis says, as sentences, for the terminal and for a run's page. Computes nothing but units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .units import milliseconds, size

Row = Mapping[str, Any]
_AGAINST_SAID: Mapping[str | None, str] = {
    None: "",
    "more": ", and the change bought more: it removes something else as well, or the diagnosis said too little",
    "less": ", and the change bought less: it removes a part of it, or the diagnosis said too much",
}


def first_of(diagnosis: Row) -> Row | None:
    """The cause that the verdict names."""
    return next((row for row in diagnosis["findings"] if row["counts"]), None)


def costs(verdict: Row) -> str:
    """What stands behind the label, or between it and what the verdict says."""
    share, usd = verdict["severity_share"], verdict["usd_per_million_samples"]
    words = [f"{share:.0%} of the step"] if share else []
    return ", ".join([*words, *([] if usd is None else [f"${usd:.2f} per million samples at stake"])])


def buys(row: Row, step_seconds: float) -> str:
    """With what the share is of: `step_seconds` has what lies between steps, which the run's table has not."""
    if row["headroom_seconds"] is None:
        return f"no time: {row['method']}"
    spread = "" if row["ci95"] is None else f" [{row['ci95'][0] * 1e3:.1f}, {row['ci95'][1] * 1e3:.1f}]"
    whole = (
        f"{row['severity_share']:.0%} of the {milliseconds(step_seconds)} that one takes with what lies between steps"
    )
    return f"{row['headroom_seconds'] * 1e3:.1f}{spread} ms a step, {whole} ({row['method']})"


def beside(row: Row) -> tuple[str, str, str]:
    """Of a cause that the verdict does not name: label, share, and what to do about it."""
    share = "-" if row["severity_share"] is None else f"{row['severity_share']:.0%}"
    if (bounds := row.get("ci95_share")) is not None:
        share += f" [{bounds[0]:.0%}, {bounds[1]:.0%}]"
    counted = ""
    if row.get("counted"):
        counted = f"of {row['alone_share']:.0%} measured, the rest {row['counted']}; "
    return row["label"], share, f"{counted}{row['next']['says']}"


def subject(row: Row) -> str:
    """Of which rule, or of none, it is that something cannot be told."""
    return "the run" if row["label"] == "cannot_tell" else row["label"]


def lacking(row: Row) -> str:
    return f"lacks {row['lacks']}; rerun: {row['rerun']}"


def overlapping(diagnosis: Row) -> list[str]:
    return [f"Shares overlap: {diagnosis['overlap']}"] if diagnosis.get("overlap") else []


def bought(row: Row, verdict: str) -> list[str]:
    """What a change has bought, behind the word for it; `verdict` is the diagnosis's label."""
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in row["options"].items())
    share, bounds, less = row["saved_share"], row["ci95"], "less"
    if share < 0:
        share, bounds, less = -share, None if bounds is None else [-bounds[1], -bounds[0]], "more"
    spread = "" if bounds is None else f" [{bounds[0]:.0%}, {bounds[1]:.0%}]"
    time = f"{share:.0%}{spread} {less} time a {row['per']} ({row['counts']})"
    lines = [f" with {options}: {time}, {row['rounds']} runs of each side, in turn"]
    if row["label"] != verdict:
        lines.append(f"that is the change for {row['label']}: no option of scalelab run removes {verdict}")
    if (why := row["reasons"].get("verdict")) is not None:
        lines.append(why)
    if row["cause_share"] is not None:
        ci95 = row["cause_ci95"]
        spread = "" if ci95 is None else f" [{ci95[0]:.0%}, {ci95[1]:.0%}]"
        said = f"removing {row['label']} altogether was said to buy {row['cause_share']:.0%}{spread} of a step"
        lines.append(f"{said}{_AGAINST_SAID[row.get('against_said')]}")
    if row.get("crowded") and row["verdict"] != "cannot tell":
        others = f"others kept {row['others_cores_share']:.0%} of the cores busy"
        lines.append(f"while these ran, {others}: a quiet host may show another gain")
    if row["verdict"] == "cannot tell" and why is None:
        lines += _would_tell(row)
    if row["label"] == "memory_pressure" and (memory := row.get("peak_memory")) is not None:
        whole = "the fullest rank's process" if memory["of"] == "rss_peak_bytes" else "the fullest card"
        lines.append(f"{whole} held {size(memory['before_bytes'])}, and {size(memory['after_bytes'])} with it")
    if (learns := row["learns"]) is not None:
        lines.append(_learns(learns))
    elif row["decides_learning"]:
        lines.append(f"how well it learns is not known: {row['reasons']['learns']}")
    return lines


def _would_tell(row: Row) -> Sequence[str]:
    if row["needed"] is not None and row["needed"] <= row["rounds"]:
        return []
    more = "more rounds" if row["needed"] is None else f"--rounds {row['needed']}"
    others = row.get("others_cores_share")
    if others is None:
        return [f"{more} would tell an effect of 5 %"]
    return [f"{more} would tell an effect of 5 %; while these ran, others kept {others:.0%} of the cores busy"]


def _learns(row: Row) -> str:
    spread = "" if row["ci95"] is None else f" [{row['ci95'][0]:+.1%}, {row['ci95'][1]:+.1%}]"
    how = (
        "whether it learns as well cannot be told" if row["verdict"] == "cannot tell" else f"it learns {row['verdict']}"
    )
    return (
        f"{how}: loss {row['loss_after']:.4g} against {row['loss_before']:.4g} after {row['samples']} samples, "
        f"{row['higher_share']:+.1%}{spread}"
    )
