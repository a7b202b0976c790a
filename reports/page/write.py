"""Reports on disk: the page, its Markdown twin and its tables as CSV, each replaced as a whole."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...profiles.analysis.load import Run
from ...profiles.analysis.pictures import pictures
from ...profiles.runfolder import RunFolder
from ...profiles.storage import replace_file, writing
from .. import units
from .html import page
from .markdown import markdown
from .section import Report, Section, tables_of
from .tables import as_csv
from .tidy import tidy

PAGE, TWIN, TABLES = "report.html", "report.md", "report-tables"
# What an imported run has none of, as sections read it: rows that are not there, and names that are not known.
_NONE: Mapping[str, Any] = {
    "events": [],
    "per_rank": [],
    "outcome": {"state": "imported", "exit_code": None},
    "precision": dict.fromkeys(("name", "param", "compute", "grad", "reduce", "master")),
}

# Sections that traces alone fill; of others they tell nothing.
OF_TRACES = frozenset(("verdict", "key_figures", "traces", "configuration", "how", "unknown"))


def write_run_report(folder: RunFolder, run: Run, summary: Mapping[str, Any]) -> None:
    """Write the report of `folder`, whose run and summary these are. Raises OutputError where the disk does not take
    it: what was there before is then still the old file or already the new one, each whole."""
    summary = {**summary, **{name: none for name, none in _NONE.items() if summary[name] is None}}
    write(folder.path, run_report(summary, pictures(run, summary, folder)))


def run_report(summary: Mapping[str, Any], drawn: Mapping[str, Any]) -> Report:
    """The report of one run, from its summary and the data of its pictures."""
    summary, drawn = tidy(summary), tidy(drawn)
    imported = summary["source"] == "imported"
    about = _of_traces(summary) if imported else _of_a_run(summary)
    return Report(
        title=summary["name"],
        subtitle=" · ".join(filter(None, (*about, summary["run_id"]))),
        sections=sections("run", summary, drawn, only=OF_TRACES if imported else None),
        footer=f"Made by scalelab from the folder of run {summary['run_id']} alone. {TWIN} beside {PAGE} says the same "
        f"in plain text, {TABLES}/ holds every table as CSV, summary.json every number.",
    )


def _of_a_run(summary: Mapping[str, Any]) -> tuple[str | None, ...]:
    own = summary["strategy"] == "own"
    how = "its own loop" if own else f"{summary['strategy']}, {summary['precision']['name']}"
    return units.model(summary["model"]["name"]), how, f"{summary['world_size']} x {summary['device_name']}"


def _of_traces(summary: Mapping[str, Any]) -> tuple[str | None, ...]:
    ranks = [row["rank"] for row in summary["trace"]["per_rank"]] if summary["trace"] else []
    of = "" if summary["world_size"] is None else f" of {summary['world_size']:,}"
    told = f"rank {ranks[0]}{of}" if len(ranks) == 1 else f"{len(ranks):,} ranks{of}"
    device = summary["device_name"] or {"cuda": "GPU"}.get(summary["device"])
    return f"imported traces: {told}", device


def write_sweep_report(place: Path, summary: Mapping[str, Any]) -> None:
    """Write the report of the sweep in the folder `place`, whose summary that is. Raises OutputError."""
    write(place, sweep_report(summary))


def sweep_report(summary: Mapping[str, Any]) -> Report:
    """The report of a sweep, from its summary."""
    summary = tidy(summary)
    cells = summary["cells"]
    strategies = ", ".join(dict.fromkeys(str(each["strategy"]) for each in cells))
    counts = f"{len(cells)} cells, {summary['runs']['planned']} runs, {summary['scaling']} scaling"
    return Report(
        title=strategies if summary["model"] is None else f"{summary['model']}: {strategies}",
        subtitle=f"sweep {summary['sweep_id']} · {counts}",
        sections=sections("sweep", summary),
        footer=f"Made by scalelab from the folder of {summary['sweep_id']} alone. {TWIN} beside {PAGE} says the "
        f"same in plain text, {TABLES}/ holds every table as CSV, sweep-summary.json every number.",
    )


def sections(kind: str, *subject: Mapping[str, Any], only: frozenset[str] | None = None) -> list[Section]:
    """What each file of the folder `kind`, or those of them in `only`, has to say, in the order of their PLACE."""
    package = importlib.import_module(f".{kind}", __package__)
    names = [each.name for each in pkgutil.iter_modules(package.__path__) if only is None or each.name in only]
    found = [importlib.import_module(f".{kind}.{name}", __package__) for name in names]
    told = [module.section(*subject) for module in sorted(found, key=lambda module: module.PLACE)]
    return [section for section in told if section is not None]


def write(place: Path, report: Report) -> None:
    """Write `report` into the folder `place`. Raises OutputError."""
    replace_file(place / TWIN, markdown(report).encode())
    replace_file(place / PAGE, page(report).encode())
    tables, names = place / TABLES, set()
    with writing(tables):
        if tables.is_symlink() or tables.is_file():
            tables.unlink()
        tables.mkdir(exist_ok=True)
    for table in tables_of(report):
        names.add(f"{table.name}.csv")
        replace_file(tables / f"{table.name}.csv", as_csv(table).encode())
    with writing(tables):
        for old in tables.glob("*.csv"):
            if old.name not in names:
                old.unlink()
