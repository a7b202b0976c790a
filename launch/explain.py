"""How a run ended, for a person: the user's own traceback first, then the cause, what followed, and the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..profiles.runfolder import RunFolder
from .errors import Exit

OURS = Path(__file__).resolve().parents[1]
# Of more ranks than these only the number is given; status.json has them all.
SHOWN_CONSEQUENCES = 3
SHOWN_CHARACTERS = 160


def explanation(folder: RunFolder, status: dict[str, Any]) -> list[str]:
    """The lines that say why the run of `folder` did not end well."""
    lines = []
    trace = user_traceback(folder, status)
    if trace is not None:
        lines += [trace, ""]
    lines.append(f"error: {_place(status['culprit'])}{status['cause']}")
    memory = (_failure(folder, status) or {}).get("memory") or {}
    if memory.get("table"):
        lines += ["", memory["table"], ""]
    consequences = status["consequences"]
    for other in consequences[:SHOWN_CONSEQUENCES]:
        lines.append(f"  as a consequence, {_place(other)}{_short(other['cause'])}")
    if len(consequences) > SHOWN_CONSEQUENCES:
        lines.append(f"  and {len(consequences) - SHOWN_CONSEQUENCES} more ranks (in status.json)")
    if status["hint"]:
        lines.append(f"hint: {status['hint']}")
    return [*lines, f"run folder: {folder.path} (status.json has the details)"]


def user_traceback(folder: RunFolder, status: dict[str, Any]) -> str | None:
    """The culprit's traceback from the first frame that is not ours on, when there is such a frame."""
    failure = _failure(folder, status)
    if failure is None or failure["exit_code"] != Exit.WORKER_DIED or failure["type"] == "LoaderDied":
        return None
    lines = failure["traceback"].splitlines()
    frames = [index for index, line in enumerate(lines) if line.startswith('  File "')]
    foreign = [index for index in frames if str(OURS) not in lines[index] and "site-packages" not in lines[index]]
    foreign = [index for index in foreign if "<frozen" not in lines[index] and "/contextlib.py" not in lines[index]]
    return "\n".join(lines[foreign[0] :]) if foreign else None


def _failure(folder: RunFolder, status: dict[str, Any]) -> dict[str, Any] | None:
    """What the culprit wrote of its own end, if it could."""
    culprit = status["culprit"]
    return None if culprit is None else folder.read(f"errors/{folder.error_file(culprit['rank']).name}")


def _place(at: dict[str, Any] | None) -> str:
    if at is None or at["rank"] is None:
        return ""
    step = "" if at["step"] is None else f" of step {at['step']}"
    return f"rank {at['rank']}, {at['phase'] or 'unknown phase'}{step}: "


def _short(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"
