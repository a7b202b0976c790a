"""From a matrix to a sweep's folder that this process holds: a new one, or the one of an earlier call."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ...profiles.runfolder import SchemaError
from ...profiles.storage import point, writing
from ...profiles.sweepfolder import SweepFolder, SweepPlan
from ..devices import Devices
from ..lock import locked
from .matrix import Planned, sweep_id
from .options import Request
from .order import interleaved


def plan_of(
    cells: Sequence[Planned], references: Sequence[Planned], request: Request, devices: Devices, command: Sequence[str]
) -> SweepPlan:
    """The sweep as it is to be written down."""
    seed = request.common.get("seed", 0)
    runnable = [each.cell.name for each in cells if each.cell.refused is None]
    return SweepPlan(
        sweep_id=sweep_id(cells, request, devices),
        created_utc=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=list(command),
        scaling=request.scaling,
        repeats=request.repeats,
        seed=seed,
        best_batch=request.best_batch,
        cells=[each.cell for each in cells],
        order=interleaved(runnable, request.repeats, seed),
        references=[each.cell for each in references],
    )


def refilled(folder: SweepFolder, plan: SweepPlan, cells: Sequence[Planned]) -> SweepPlan:
    """`plan` with `cells` in place of its own, written down; those with an error have no runs to make. Raises
    OutputError."""
    runnable = [each.cell.name for each in cells if each.cell.refused is None and each.error is None]
    order = interleaved(runnable, plan.repeats, plan.seed)
    plan = plan.model_copy(update={"cells": [each.cell for each in cells], "order": order})
    folder.write_plan(plan)
    return plan


@contextlib.contextmanager
def opened(
    out: Path, plan: SweepPlan, say: Callable[[str], None], *, latest: bool = True
) -> Iterator[tuple[SweepFolder, SweepPlan]]:
    """Within, this process holds `out/sweep-<id>`, and `out/latest` points to it where it is `latest`. Yields
    it with the plan as written: it has as many repeats as any call has asked for and begun.

    Raises OutputError when the place cannot be written, FolderInUse while another sweep runs there, and SchemaError for
    a newer one's folder.
    """
    folder = SweepFolder(out.resolve() / f"sweep-{plan.sweep_id}")
    with writing(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    with locked(folder.path) as before:
        if before is not None:
            say(f"note: {folder.path}: taken over from {before}, which ended without giving it back")
        if latest and not SweepFolder.is_one(folder.path) and (like := _like(folder, plan)) is not None:
            say(
                f"note: {like} has the same cells and is another sweep, as threads (OMP_NUM_THREADS), cores, the "
                "device, library versions, the model's file or the data were others: nothing of it counts here"
            )
        plan = _continued(folder, plan, say)
        folder.write_plan(plan)
        with writing(folder.path / "logs"):
            (folder.path / "logs").mkdir(exist_ok=True)
        if latest:
            point(folder.path.parent / "latest", folder.path.name)
        yield folder, plan


def _like(folder: SweepFolder, plan: SweepPlan) -> str | None:
    """The name of the newest sweep beside `folder` of the same cells, by what sweep.json has of them."""
    found = []
    for path in folder.path.parent.glob("sweep-*/sweep.json"):
        with contextlib.suppress(ValueError):
            other = SweepFolder(path.parent).plan()
            if (other.cells, other.scaling, other.best_batch) == (plan.cells, plan.scaling, plan.best_batch):
                found.append((other.created_utc, path.parent.name))
    return max(found)[1] if found else None


def _continued(folder: SweepFolder, plan: SweepPlan, say: Callable[[str], None]) -> SweepPlan:
    if not SweepFolder.is_one(folder.path):
        return plan
    attempts, unreadable = folder.attempts()
    if unreadable:
        say(f"note: {unreadable} line(s) of attempts.jsonl cannot be read and do not count")
    created, cells = plan.created_utc, plan.cells
    try:
        earlier = folder.plan()
    except SchemaError:
        raise
    except ValueError as error:
        say(f"note: {error}; it is written anew")
    else:
        created = earlier.created_utc
        if plan.best_batch:
            # The batches that were found stay written until they are found again: runs of them are there.
            found = {cell.name: cell for cell in earlier.cells if cell.refused is None}
            cells = [cell if cell.refused is not None else found.get(cell.name, cell) for cell in plan.cells]
    repeats = max([plan.repeats, *(repeat for _, repeat in attempts)])
    runnable = [cell.name for cell in plan.cells if cell.refused is None]
    order = interleaved(runnable, repeats, plan.seed)
    return plan.model_copy(update={"created_utc": created, "cells": cells, "repeats": repeats, "order": order})
