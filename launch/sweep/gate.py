"""Whether a sweep's runs trained the same thing: each is held against DDP's of the same world, batch and precision.

Losses and gradient norms of the first steps alone: rounding differences grow from step to step, and gradient norms are
recorded in warm-up steps, where recording them costs no measured step anything (docs/sweep.md has figures).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...profiles.analysis.parity import PARITY, TOLERANCES, deviations, largest
from ...profiles.runfolder import RunFolder
from ...profiles.sweepfolder import Attempt, Cell, SweepFolder
from ..devices import Devices
from ..errors import Exit
from ..reporting import summarise_and_report
from ..supervision.verdict import status
from .fairness import gate_steps, recorded
from .matrix import Planned, planned
from .options import AXES

REFERENCE = "ddp"
# What a run is not asked for that is only a reference; it measures nothing.
IDLE = (
    "memory_step",
    "counterfactual",
    "profile_steps",
    "eval_every",
    "save_every",
    "target",
    "engine",
    "deterministic",
)


def peers(cell: Cell) -> tuple[Any, ...]:
    """What cells have in common that must train the same thing."""
    return tuple(cell.config[axis.field] for axis in AXES if not axis.same_training)


def references(cells: Sequence[Planned], devices: Devices) -> list[Planned]:
    """Short runs of DDP for cells that the matrix holds none for, refused ones too."""
    groups: dict[tuple[Any, ...], list[Planned]] = {}
    for each in cells:
        if each.cell.gated and each.cell.refused is None:
            groups.setdefault(peers(each.cell), []).append(each)
    found = []
    for group in groups.values():
        if not any(each.cell.strategy == REFERENCE for each in group):
            first = group[0]
            kept = {name: value for name, value in first.given.items() if name not in (*IDLE, "checkpointing")}
            steps = gate_steps(int(first.cell.config["warmup"]))
            given = recorded({**kept, "strategy": REFERENCE, "warmup": steps - 1, "steps": 1, "memory_step": "off"})
            name = f"reference-{first.cell.precision}-{first.cell.world_size}ranks"
            found.append(planned(name, given, devices, gated=True))
    return found


class Gate:
    """Holds finished runs of `folder` against DDP's, and writes down what it finds."""

    def __init__(self, folder: SweepFolder, cells: Sequence[Cell], references: Sequence[Cell]) -> None:
        self._folder = folder
        self._cells = {cell.name: cell for cell in (*cells, *references)}

    def judge(self, attempts: dict[tuple[str, int], Attempt]) -> list[Attempt]:
        """Judge every finished run that is open and can be by now; those judged, anew. One that no run of DDP is there
        for stays open: a later call may bring it.

        `attempts` is kept up to date. Raises OutputError.
        """
        judged = []
        for (name, repeat), attempt in sorted(attempts.items()):
            if attempt.exit_code != Exit.OK or attempt.parity is not None or name not in self._cells:
                continue
            found = self._judged(attempt, attempts)
            if found is not None:
                self._folder.append(found)
                attempts[name, repeat] = found
                judged.append(found)
        return judged

    def _judged(self, attempt: Attempt, attempts: dict[tuple[str, int], Attempt]) -> Attempt | None:
        cell, run = self._cells[attempt.cell], self._folder.run(attempt)
        if not cell.gated:
            why = "--probe off records no losses" if cell.config["probe"] == "off" else "batches differ (--best-batch)"
            return attempt.model_copy(update={"parity": f"not checked: {why}"})
        if run is None:
            return attempt.model_copy(update={"parity": "not checked: its run folder is gone"})
        reference = self._reference(cell, attempts)
        if reference is None:
            return None
        if reference.path == run.path:
            return attempt.model_copy(update={"parity": "the reference"})
        return self._compared(attempt, cell, run, reference)

    def _reference(self, cell: Cell, attempts: dict[tuple[str, int], Attempt]) -> RunFolder | None:
        """The run that `cell` is held against: the first repeat of DDP that finished."""
        candidates = [
            attempt
            for attempt in attempts.values()
            if (other := self._cells.get(attempt.cell)) is not None
            and other.strategy == REFERENCE
            and other.refused is None
            and peers(other) == peers(cell)
            and attempt.exit_code == Exit.OK
        ]
        order = list(self._cells)
        candidates.sort(key=lambda attempt: (attempt.repeat, order.index(attempt.cell)))
        return next((run for attempt in candidates if (run := self._folder.run(attempt)) is not None), None)

    def _compared(self, attempt: Attempt, cell: Cell, run: RunFolder, reference: RunFolder) -> Attempt:
        steps = gate_steps(int(cell.config["warmup"]))
        found, expected = _series(run, steps), _series(reference, steps)
        if not found or found.keys() != expected.keys():
            return attempt.model_copy(update={"parity": "not checked: its losses were not recorded"})
        tolerance = TOLERANCES[cell.precision]
        rows = deviations(found, expected, tolerance=tolerance)
        if not rows and "grad_norm" not in found:
            # Losses alone do not see a gradient that was doubled, nor for a while one that was never reduced.
            return attempt.model_copy(update={"parity": "not checked: gradient norms were not recorded"})
        if not rows:
            apart = f"within {largest(found, expected):.1e} of {REFERENCE} over {steps} steps"
            return attempt.model_copy(update={"parity": apart})
        what = "; ".join(
            f"{row.series} of step {row.step} is {row.found}, {REFERENCE}'s {row.expected}" for row in rows
        )
        cause = f"{PARITY}: {what} (more than {tolerance:g} apart, relatively; held against {reference.run_id})"
        hint = (
            "it trained something else than ddp does, so its speed says nothing; docs/sweep.md says how to find out why"
        )
        run.write("status.json", status("failed", Exit.NUMERIC, cause=cause, hint=hint))
        summarise_and_report(run)
        return attempt.model_copy(update={"exit_code": int(Exit.NUMERIC), "cause": cause, "parity": cause})


def _series(run: RunFolder, steps: int) -> dict[str, list[float | None]]:
    """Losses and gradient norms of a run's first steps, those that it has."""
    try:
        summary = run.read("summary.json") or {}
    except ValueError:
        return {}
    return {name: summary[name][:steps] for name in ("loss", "grad_norm") if summary.get(name)}
