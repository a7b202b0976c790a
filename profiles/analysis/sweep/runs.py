"""The runs of a sweep: for each (cell, repeat) its attempt, its folder and what became of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...runfolder import RunFolder, SchemaError
from ...sweepfolder import Attempt, Cell, SweepFolder, SweepPlan
from ..alike import libraries
from ..cost import reprice
from ..current import current_summary, refresh_summaries
from ..prices import Given

PARITY = "loss parity"
PARITY_EXIT = 8
State = Literal["measured", "parity_failed", "failed", "running", "missing", "unreadable"]


@dataclass(frozen=True, kw_only=True)
class SweepRun:
    """One planned run. `why` says what is wrong with one that was not measured; `summary` is there where one was."""

    repeat: int
    state: State
    why: str | None
    folder: str | None = None
    attempt: Attempt | None = None
    summary: Mapping[str, Any] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    diagnosis: str | None = None

    @property
    def machine(self) -> tuple[Any, ...]:
        """What it ran on: device, cores, threads of a rank."""
        cores = (self.facts.get("environment") or {}).get("cores")
        return (self.facts.get("device_name"), cores, self.facts.get("threads_per_rank"))

    @property
    def code(self) -> dict[str, Any]:
        """What ran, as far as it is known: the state of the code, versions, variables that libraries read."""
        environment = self.facts.get("environment") or {}
        git = {f"git.{name}": value for name, value in (environment.get("git") or {}).items()}
        return {**git, **libraries(environment), "model_sha256": self.facts.get("model_sha256")}

    def row(self) -> dict[str, Any]:
        found = self.summary or {}
        return {
            "repeat": self.repeat,
            "run": self.folder,
            "state": self.state,
            "why": self.why,
            "exit_code": self.attempt.exit_code if self.attempt else None,
            "seconds": self.attempt.seconds if self.attempt else None,
            "step_seconds": found["step_seconds"]["mean"] if found else None,
            "samples_per_second": found["throughput"]["samples_per_second"] if found else None,
            "diagnosis": self.diagnosis,
        }


class Runs:
    """Finds the runs of `folder`. A folder counts once, however many attempts name it."""

    def __init__(self, folder: SweepFolder, plan: SweepPlan, given: Given) -> None:
        self._folder, self._order, self._given = folder, plan.order, given
        self._attempts, self.unreadable_attempts = folder.attempts()
        self._counted: dict[str, str] = {}
        # But for `latest`, a link to one of them.
        paths = [path for path in sorted(folder.path.glob("*/run.json")) if not path.parent.is_symlink()]
        self._others = {path.parent.name: _told(path) for path in paths}
        finished = [folder.run(attempt) for attempt in self._attempts.values() if attempt.exit_code == 0]
        refresh_summaries([run for run in finished if run is not None])

    def of(self, cell: Cell) -> list[SweepRun]:
        """One for each repeat that was planned, and for each more that was made; none for a cell that was refused."""
        if cell.refused is not None:
            return []
        repeats = {repeat for name, repeat in (*self._order, *self._attempts) if name == cell.name}
        return [self._run(cell, repeat) for repeat in sorted(repeats)]

    def others(self) -> list[dict[str, Any]]:
        """Run folders that no cell counts."""
        used = {attempt.run for attempt in self._attempts.values()} | set(self._counted)
        return [{"run": name, **told} for name, (_, told) in self._others.items() if name not in used]

    def _run(self, cell: Cell, repeat: int) -> SweepRun:
        attempt = self._attempts.get((cell.name, repeat))
        if attempt is None:
            return self._unattempted(cell, repeat)
        state, why, summary = self._outcome(attempt)
        folder = self._folder.run(attempt)
        facts = (folder.read("run.json") if summary is not None and folder is not None else None) or {}
        return SweepRun(
            repeat=repeat,
            state=state,
            why=why,
            folder=attempt.run,
            attempt=attempt,
            summary=summary,
            facts=facts,
            diagnosis=_diagnosis(folder) if summary is not None and folder is not None else None,
        )

    def _unattempted(self, cell: Cell, repeat: int) -> SweepRun:
        for name, (of, told) in self._others.items():
            if of == f"{cell.name}-r{repeat}" and told["state"] == "running" and name not in self._counted:
                self._counted[name] = cell.name
                return SweepRun(repeat=repeat, state="running", why=told["why"], folder=name)
        return SweepRun(repeat=repeat, state="missing", why="not run yet")

    def _outcome(self, attempt: Attempt) -> tuple[State, str | None, Mapping[str, Any] | None]:
        if attempt.exit_code == PARITY_EXIT and (attempt.cause or "").startswith(PARITY):
            return "parity_failed", attempt.cause, None
        if attempt.interrupted:
            return "missing", f"interrupted: {attempt.cause or f'exit code {attempt.exit_code}'}", None
        if attempt.exit_code:
            return "failed", attempt.cause or f"exit code {attempt.exit_code}", None
        folder = self._folder.run(attempt)
        if folder is None:
            return "missing", f"its folder {attempt.run} is gone", None
        try:
            original = (folder.read("run.json") or {}).get("run_id", folder.run_id)
            before = self._counted.setdefault(original, f"{attempt.cell}, repeat {attempt.repeat}")
            self._counted.setdefault(folder.run_id, before)
            if before != f"{attempt.cell}, repeat {attempt.repeat}":
                return "unreadable", f"{attempt.run} is the same run as that of {before}, and counts there", None
            summary = current_summary(folder, own_prices=True)
        except SchemaError as error:
            return "unreadable", str(error), None
        except (ValueError, AssertionError, KeyError, TypeError) as error:
            return "unreadable", f"{attempt.run}: {_words(error)}", None
        if summary["throughput"]["samples_per_second"] is None or summary["step_seconds"]["mean"] is None:
            why = summary["reasons"].get("throughput.samples_per_second", "no measured step was finished")
            return "unreadable", f"{attempt.run}: {why}", None
        return "measured", None, reprice(summary, self._given) if self._given else summary


def _diagnosis(folder: RunFolder) -> str | None:
    """The label that the run's own report shows."""
    try:
        label = (folder.read("diagnosis.json") or {})["verdict"]["label"]
    except (ValueError, KeyError, TypeError):
        return None
    return label if isinstance(label, str) else None


def _words(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"cannot be read ({type(error).__name__}: {error})"


def _told(path: Path) -> tuple[str | None, dict[str, Any]]:
    """The name of the run whose run.json is `path`, and what its status says."""
    folder = RunFolder(path.parent)
    try:
        facts, status = folder.read("run.json"), folder.read("status.json") or {}
        state = status.get("state", "unknown")
        if state == "running":
            return facts.get("name"), {"state": state, "why": "it has not ended, or its supervisor was lost"}
        why = status.get("cause") or "an attempt that no longer counts, or one that is not in attempts.jsonl"
        return facts.get("name"), {"state": state, "why": why}
    except (ValueError, AttributeError) as error:
        return None, {"state": "unreadable", "why": str(error)}


def measured(runs: list[SweepRun]) -> Iterator[Mapping[str, Any]]:
    """The summaries of those that were."""
    return (run.summary for run in runs if run.summary is not None)
