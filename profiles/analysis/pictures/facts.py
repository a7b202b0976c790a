"""What a run was, where, and how it ended, as its folder says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...runfolder import RunFolder
from ..load import Run


def facts(run: Run, folder: RunFolder) -> dict[str, Any]:
    """From run.json and status.json; of a rank that failed, what it wrote of its end."""
    told, status = run.run_json, run.status
    failure = _failure(folder, status)
    diagnosis, unreadable = _diagnosis(folder)
    return {
        "config": told.get("config") or {},
        "given": told.get("given"),
        "command": told.get("command"),
        "environment": told.get("environment") or {},
        "notes": [*(told.get("notes") or []), *_batches(run)],
        "data": told.get("data"),
        "law": told.get("law"),
        "threads_per_rank": told.get("threads_per_rank"),
        "state": status.get("state", "unknown"),
        "exit_code": status.get("exit_code"),
        "culprit": status.get("culprit"),
        "cause": status.get("cause"),
        "hint": status.get("hint"),
        "consequences": status.get("consequences") or [],
        "out_of_memory": (failure.get("memory") or None) if failure else None,
        "traceback": failure.get("traceback") if failure else None,
        "diagnosis": diagnosis,
        "diagnosis_unreadable": unreadable,
    }


def _batches(run: Run) -> list[str]:
    """A loader of the user's own may give other batches than it is asked for: samples count by what was asked."""
    asked = (run.run_json.get("config") or {}).get("micro_batch")
    found = next((rank.batches.first_dimensions for rank in run.ranks if rank.batches is not None), [])
    if not asked or not found or asked in found:
        return []
    there = ", ".join(map(str, found))
    where = f"no tensor of a batch has {asked} in its first dimension ({there})"
    return [f"samples count as --micro-batch {asked}, but {where}: is the loader's batch another one?"]


def _diagnosis(folder: RunFolder) -> tuple[dict[str, Any] | None, str | None]:
    """The diagnosis where there is one with all that a report says of it; else why one that is there says nothing."""
    try:
        found = folder.read("diagnosis.json")
    except (OSError, ValueError) as error:
        return None, str(error)
    if found is None or _is_diagnosis(found):
        return found, None
    return None, f"{folder.path / 'diagnosis.json'}: not what scalelab diagnose writes"


def _is_diagnosis(found: Any) -> bool:
    """Whether what is read of it is there."""
    try:
        verdict = found["verdict"]
        texts, numbers = [verdict["label"], verdict["says"]], [verdict["severity_share"]]
        numbers.append(verdict["usd_per_million_samples"])
        for finding in found["findings"]:
            texts += [finding[name] for name in ("label", "method")]
            texts += [finding["next"]["says"], *(each["says"] for each in finding["evidence"])]
            numbers += [finding[name] for name in ("headroom_seconds", "severity_share")]
            numbers += finding["ci95"] or []
        for lack in found["cannot_tell"]:
            texts += [lack[name] for name in ("label", "lacks", "rerun")]
    except (KeyError, TypeError, IndexError):
        return False
    known = (each for each in numbers if each is not None)
    return all(isinstance(each, str) for each in texts) and all(isinstance(each, int | float) for each in known)


def _failure(folder: RunFolder, status: Mapping[str, Any]) -> dict[str, Any] | None:
    culprit = status.get("culprit")
    if not culprit or culprit.get("rank") is None:
        return None
    return folder.read(f"errors/{folder.error_file(culprit['rank']).name}")
