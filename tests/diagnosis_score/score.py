"""How often diagnoses are right, and how far their severities are off, as tables."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scalelab.launch.scenarios._contract import Scenario
from scipy import stats

from tests.diagnosis_score.runs import Key

LEAST_LABEL, LEAST_ALL, MOST_ALARMS, SEVERITY = 0.80, 0.95, 1 / 40, 0.20


@dataclass(frozen=True)
class Case:
    """A run with its fault: what was expected and said; `stated` is the share of the step that removing the cause is
    said to buy, `recovered` what removing it has bought. None where there is no run without."""

    key: Key
    expected: str
    said: str
    stated: float | None
    recovered: float | None
    second: str | None


def cases(scenarios: Mapping[str, Scenario], diagnoses: Mapping[Key, Mapping[str, Any]]) -> list[Case]:
    found = []
    for key, diagnosis in diagnoses.items():
        if key.removed:
            continue
        verdict, label = diagnosis["verdict"], scenarios[key.scenario].label
        without = diagnoses.get(Key(key.scenario, key.seed, key.world_size, True))
        recovered = None
        times = [None if each is None else each["verdict"]["step_seconds"] for each in (without, diagnosis)]
        if times[0] is not None and times[1]:
            recovered = 1 - times[0] / times[1]
        others = [row["label"] for row in diagnosis["findings"] if row["label"] != verdict["label"]]
        stated = next((row["severity_share"] for row in diagnosis["findings"] if row["label"] == label), None)
        found.append(Case(key, label, verdict["label"], stated, recovered, others[0] if others else None))
    return found


def share(count: int, of: int) -> str:
    """`count` of `of`, with the 95 % interval of Clopper and Pearson."""
    if not of:
        return "-"
    interval = stats.binomtest(count, of).proportion_ci(0.95, "exact")
    return f"{count} of {of} ({interval.low:.0%} to {interval.high:.0%})"


def by_label(found: Sequence[Case]) -> list[str]:
    """A row for each label that was planted, and one for all."""
    rows = ["| planted | right | said instead | severity: median error, within 20 % |", "|---|---|---|---|"]
    for label in sorted({case.expected for case in found}):
        mine = [case for case in found if case.expected == label]
        wrong = Counter(case.said for case in mine if case.said != label)
        instead = ", ".join(f"`{said}` {count}" for said, count in wrong.most_common()) or "-"
        rows.append(f"| `{label}` | {share(len(mine) - wrong.total(), len(mine))} | {instead} | {severity(mine)} |")
    right = sum(case.said == case.expected for case in found)
    rows.append(f"| all | {share(right, len(found))} | | {severity(found)} |")
    return rows


def by_scenario(found: Sequence[Case]) -> list[str]:
    rows = ["| scenario | ranks | right | severity stated / recovered, each run |", "|---|---|---|---|"]
    for name, world in sorted({(case.key.scenario, case.key.world_size) for case in found}):
        mine = [case for case in found if (case.key.scenario, case.key.world_size) == (name, world)]
        right = sum(case.said == case.expected for case in mine)
        pairs = ", ".join(
            f"{case.stated:.0%} / {case.recovered:.0%}"
            for case in mine
            if case.stated is not None and case.recovered is not None
        )
        rows.append(f"| {name} | {world} | {right} of {len(mine)} | {pairs or '-'} |")
    return rows


def errors(found: Sequence[Case]) -> list[float]:
    """Of right verdicts: how far the stated share is off the recovered one, relative to that; infinitely where removing
    the cause has bought nothing."""
    known = [
        (case.stated, case.recovered)
        for case in found
        if case.said == case.expected and case.stated is not None and case.recovered is not None
    ]
    return [math.inf if bought <= 0 else abs(stated - bought) / bought for stated, bought in known]


def errors_of_means(found: Sequence[Case]) -> list[float]:
    """The same of each scenario at each world size, its runs taken together: one run's step time differs from the
    next one's by up to a half on a machine whose cores are shared, whatever is removed."""
    far = []
    for place in sorted({(case.key.scenario, case.key.world_size) for case in found}):
        known = [
            (case.stated, case.recovered)
            for case in found
            if (case.key.scenario, case.key.world_size) == place
            and case.said == case.expected
            and case.stated is not None
            and case.recovered is not None
        ]
        if known:
            stated, bought = np.mean(known, axis=0)
            far.append(math.inf if bought <= 0 else float(abs(stated - bought) / bought))
    return far


def severity(found: Sequence[Case]) -> str:
    far = errors(found)
    if not far:
        return "-"
    return f"{np.median(far):.0%}, {sum(error <= SEVERITY for error in far)} of {len(far)}"


def confusion(found: Sequence[Case]) -> list[str]:
    """Planted by said."""
    columns = sorted({case.said for case in found} | {case.expected for case in found})
    counts = Counter((case.expected, case.said) for case in found)
    rows = [f"| planted \\ said | {' | '.join(f'`{each}`' for each in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label in sorted({case.expected for case in found}):
        rows.append(f"| `{label}` | {' | '.join(str(counts[label, each] or '') for each in columns)} |")
    return rows


def without_cause(diagnoses: Mapping[Key, Mapping[str, Any]]) -> list[str]:
    """What was said of the same runs with the cause removed: whatever else they have may be said."""
    rows = ["| scenario, its cause removed | said |", "|---|---|"]
    for name in sorted({key.scenario for key in diagnoses if key.removed}):
        said = Counter(
            each["verdict"]["label"] for key, each in diagnoses.items() if key.removed and key.scenario == name
        )
        rows.append(f"| {name} | {', '.join(f'`{label}` {count}' for label, count in said.most_common())} |")
    return rows


def held(found: Sequence[Case]) -> list[tuple[str, bool]]:
    """Each limit in words, and whether it holds."""
    faults = [case for case in found if case.expected != "healthy"]
    healthy = [case for case in found if case.expected == "healthy"]
    low = []
    for label in sorted({case.expected for case in faults}):
        mine = [case for case in faults if case.expected == label]
        if (right := sum(case.said == label for case in mine)) < LEAST_LABEL * len(mine):
            low.append(f"{label} {right}/{len(mine)}")
    right = sum(case.said == case.expected for case in found)
    alarms = sum(case.said not in ("healthy", "cannot_tell") for case in healthy)
    far, means = errors(faults), errors_of_means(faults)
    near, near_means = (sum(error <= SEVERITY for error in each) for each in (far, means))
    abstained = sum(case.said == "cannot_tell" for case in found)
    return [
        (f"each label right in {LEAST_LABEL:.0%} of its runs: {', '.join(low) or 'every one'}", not low),
        (f"all together right in {LEAST_ALL:.0%}: {share(right, len(found))}", right >= LEAST_ALL * len(found)),
        (f"false alarms on healthy runs, 1 in 40 at most: {share(alarms, len(healthy))}",
         alarms <= MOST_ALARMS * len(healthy)),
        (f"severity within {SEVERITY:.0%} of what removing the cause recovers: {share(near, len(far))}",
         near == len(far)),
        (f"the same of each scenario's mean over its seeds: {share(near_means, len(means))}",
         near_means == len(means)),
        (f"`cannot_tell`: {share(abstained, len(found))}", True),
    ]  # fmt: skip
