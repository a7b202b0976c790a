"""`make diagnosis-score`: every scenario run for real with seeds that no threshold was set on, and what was said of it.

`python -m tests.diagnosis_score [FOLDER] [tune]` makes the runs that FOLDER lacks (by default in the cache folder), an
hour's worth at most a call, and writes its tables into docs/diagnosis.md; with `tune`, the seeds on which thresholds
are set, printed alone. Ends with exit code 1 when a limit is not held.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
from pathlib import Path

from scalelab.data.spec import cache_folder
from scalelab.launch import devices, environment

from tests.diagnosis_score import runs, score

DOCUMENT = Path(__file__).parents[2] / "docs" / "diagnosis.md"
BEGIN, END = "<!-- begin: make diagnosis-score -->", "<!-- end: make diagnosis-score -->"


def main() -> int:
    tune = "tune" in sys.argv[1:]
    places = [word for word in sys.argv[1:] if word != "tune"]
    folder = Path(places[0]) if places else cache_folder().parent / "diagnosis-score"
    folder /= runs.kind()
    found, lacks = runs.here()
    keys = runs.wanted(found, runs.TUNED_ON if tune else runs.SCORED)
    there = runs.make(folder, keys, found)
    missing = [key for key in keys if key not in there]
    failed = {key: row.failed for key, row in there.items() if row.failed is not None}
    done = {key: row for key, row in there.items() if row.folder is not None and key in set(keys)}
    diagnoses = {key: runs.diagnosed(folder, row) for key, row in done.items()}
    cases = score.cases(found, diagnoses)
    # A run that did not come to its end was not diagnosed rightly.
    cases += [
        score.Case(key, found[key.scenario].label, "failed", None, None, None)
        for key in keys
        if key in failed and not key.removed
    ]
    for case in cases:
        if case.said != case.expected:
            print(f"wrong: {case.key}: {case.said}, not {case.expected}")
    limits = score.held(cases)
    seeds = ", ".join(map(str, sorted({case.key.seed for case in cases})))
    machine = f"{devices.detect().name}, {environment.available_cores()} cores, {platform.system()}"
    today = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    lines = [
        f"{len(done)} runs of {len(found)} scenarios on {machine}, {today}; seeds {seeds}.",
        "",
        *(f"- {'ok' if holds else '**MISSED**'}: {words}" for words, holds in limits),
        *([f"- not made yet: {len(missing)} runs"] if missing else []),
        *([f"- failed: {len(failed)} runs"] if failed else []),
        *(f"- not scored here: {name}: {why}" for name, why in lacks.items()),
        "",
        *score.by_label(cases),
        "",
        *score.confusion(cases),
        "",
        *score.by_scenario(cases),
        "",
        *score.without_cause(diagnoses),
    ]
    print("\n".join(lines))
    if not tune:
        _write(lines)
    if missing:
        print(f"\n{len(missing)} runs are missing: call it again, it goes on where it stopped")
    return int(bool(missing or failed) or not cases or not all(holds for _, holds in limits))


def _write(lines: list[str]) -> None:
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    DOCUMENT.write_text("\n".join([before.rstrip("\n"), "", BEGIN, *lines, END]).lstrip("\n") + after)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
