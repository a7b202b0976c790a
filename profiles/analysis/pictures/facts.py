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
    return {
        "config": told.get("config") or {},
        "given": told.get("given"),
        "command": told.get("command"),
        "environment": told.get("environment") or {},
        "notes": told.get("notes") or [],
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
        "diagnosis": folder.read("diagnosis.json"),
    }


def _failure(folder: RunFolder, status: Mapping[str, Any]) -> dict[str, Any] | None:
    culprit = status.get("culprit")
    if not culprit or culprit.get("rank") is None:
        return None
    return folder.read(f"errors/{folder.error_file(culprit['rank']).name}")
