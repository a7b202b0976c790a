"""The runs of a comparison, read from their folders; what makes a run unfit to be compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..calibration import RunSpread
from ..runfolder import RunFolder, SchemaError
from ..sweepfolder import Attempt, SweepFolder
from .alike import PLACES, libraries
from .load import load_run
from .parity import PARITY
from .summary import summarise

# Exit code of an attempt that trained something else than DDP did; its cause then begins with PARITY.
NUMERIC = 8


UNFINISHED = "a run that did not finish well has no speed"
DAMAGED = "its files cannot be read as they are: give a copy that is whole, or make the run again"


class UnfitError(ValueError):
    """A run that cannot be compared; the message names it and says why, `hint` what to do.
    `trained_else`: it left the loss parity."""

    def __init__(self, message: str, *, trained_else: bool = False, hint: str = UNFINISHED) -> None:
        super().__init__(message)
        self.trained_else, self.hint = trained_else, hint


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A finished run. `round`: the sweep's folder and the repeat that it was made in, where it is part of a sweep."""

    path: Path
    facts: Mapping[str, Any]
    summary: Mapping[str, Any]
    round: tuple[str, int] | None = None

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def run_id(self) -> str:
        """The same in every copy of its folder."""
        return self.facts.get("run_id") or self.path.name

    @property
    def spread(self) -> tuple[RunSpread, str] | None:
        """How much like runs differed when the run's machine was calibrated, and the calibration's name and date."""
        found = self.facts.get("calibration") or {}
        if not found.get("run_spread"):
            return None
        return RunSpread.model_validate(found["run_spread"]), f"calibration {found['name']} of {found['made_utc']}"

    def identity(self) -> dict[str, Any]:
        """All that two repeats of one configuration share; the seed may differ."""
        config = {name: value for name, value in self.facts["config"].items() if name not in (*PLACES, "seed")}
        if self.facts.get("model_sha256"):
            config.pop("model", None)
        return {
            **config,
            "world_size": self.facts["world_size"],
            "device_name": self.facts["device_name"],
            "cores": self.environment.get("cores"),
            "threads_per_rank": self.facts.get("threads_per_rank"),
            "data": (self.facts.get("data") or {}).get("manifest_sha256") or self.facts["config"].get("data"),
            "model_sha256": self.facts.get("model_sha256"),
            **libraries(self.environment),
        }

    @property
    def environment(self) -> Mapping[str, Any]:
        return self.facts.get("environment") or {}

    def at(self, path: str) -> Any:
        """The summary's value under a dotted path; None where there is none."""
        value: Any = self.summary
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def why_not(self, path: str) -> str:
        """Why the summary's value under `path` is null."""
        parts, reasons = path.split("."), self.summary["reasons"]
        told = (reasons.get(".".join(parts[:length])) for length in range(len(parts), 0, -1))
        return next((why for why in told if why), "its summary does not hold it")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One side of a comparison: at least one run, all of one configuration. `left_out` names the runs of the same
    place that could not take part, each with its reason."""

    spec: str
    runs: tuple[ComparedRun, ...]
    cell: str | None = None
    left_out: Mapping[str, str]

    def unlike(self) -> str | None:
        """What its runs do not share, where they are not all alike."""
        first = self.runs[0].identity()
        for run in self.runs[1:]:
            other = run.identity()
            for name in sorted({*first, *other}):
                if first.get(name) != other.get(name):
                    return f"{name} is {first.get(name)} in {self.runs[0].name} and {other.get(name)} in {run.name}"
        return None


def compared_run(folder: RunFolder) -> ComparedRun:
    """The run in `folder`, its summary made anew from its records (traces aside, which are not compared).

    Raises UnfitError for one that has not finished well, trained something else, measured nothing or is incomplete.
    """
    name = folder.path.name
    attempt, place = _attempt(folder)
    if attempt is not None and attempt.exit_code == NUMERIC and (attempt.cause or "").startswith(PARITY):
        raise UnfitError(f"{name}: it trained something else than DDP: {attempt.cause}", trained_else=True)
    try:
        facts = folder.read("run.json")
        status = folder.read("status.json")
        if facts is not None and status is not None and (why := _unfinished(status)):
            raise UnfitError(f"{name}: {why}", trained_else=str(status.get("cause") or "").startswith(PARITY))
        imported = facts is not None and facts.get("source") == "imported"
        run = load_run(folder)
        # What an imported run tells is in its traces, which `scalelab import` and `report` have read.
        summary = (folder.read("summary.json") if imported else None) or summarise(run)
    except UnfitError:
        raise
    except SchemaError as error:
        raise UnfitError(f"{name}: {error}", hint=error.hint) from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise UnfitError(
            f"{name}: its run.json or records lack what a comparison needs ({type(error).__name__}: {error}): written "
            "by an older scalelab, or only half",
            hint=DAMAGED,
        ) from error
    except ValueError as error:
        raise UnfitError(f"{name}: {error}", hint=DAMAGED) from error
    if status is None:
        raise UnfitError(f"{name}: it has no status.json, so how it ended is not known", hint=DAMAGED)
    if not summary["step_seconds"]["mean"]:
        raise UnfitError(f"{name}: {run.why_no_step}")
    made = None if attempt is None else (place, attempt.repeat)
    return ComparedRun(path=folder.path, facts=run.run_json, summary=summary, round=made)


def _unfinished(status: Mapping[str, Any]) -> str | None:
    state, code = status.get("state"), status.get("exit_code")
    if state == "running":
        return "it is still running, or was killed without a word"
    if state != "finished" or code:
        cause = f": {status['cause']}" if status.get("cause") else ""
        how = "was interrupted" if state == "interrupted" else state
        return f"it {how}{'' if code is None else f', exit code {code}'}{cause}"
    return None


def _attempt(folder: RunFolder) -> tuple[Attempt | None, str]:
    """The finished attempt of a sweep that `folder` stands for, and the sweep's folder."""
    parent = folder.path.parent
    return _attempts(parent).get(folder.path.name), str(parent)


def _attempts(parent: Path) -> dict[str, Attempt]:
    if not SweepFolder.is_one(parent):
        return {}
    found, _ = SweepFolder(parent).attempts()
    return {attempt.run: attempt for attempt in found.values() if attempt.run}
