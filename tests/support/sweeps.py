"""Sweep folders whose runs were never made: summaries with chosen figures, where a sweep's own would be."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from scalelab.profiles.analysis.cost import device_hours, reprice
from scalelab.profiles.analysis.prices import Given
from scalelab.profiles.analysis.summary import write_summary
from scalelab.profiles.records import StepRecord
from scalelab.profiles.runfolder import RunFolder, appending
from scalelab.profiles.sweepfolder import Attempt, Cell, SweepFolder, SweepPlan

# A step's ledger where a test does not care.
SHARES = {"data": 0.05, "forward": 0.3, "backward.gradient": 0.45, "optimizer": 0.05, "unattributed": 0.15}
COMM = ("comm.transfer", "comm.waiting", "comm.queued")


def run_json(name: str, world_size: int, **config: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": name,
        "device_name": "a processor",
        "world_size": world_size,
        "oversubscribed": False,
        "precision": {"name": "fp32"},
        "target": None,
        "config": {
            "strategy": "ddp",
            "launcher": "fork",
            "device": "cpu",
            "micro_batch": 4,
            "grad_accumulation": 1,
            "global_batch": 4 * world_size,
            "model": "tiny",
            "probe": "on",
            "record_grad_norm": False,
            "engine": "native",
            "checkpointing": "none",
            "compile": False,
            **config,
        },
        "model": {"name": "tiny", "parameters": 1234},
    }


def step(index: int, seconds: float, samples: int = 4) -> StepRecord:
    return StepRecord(
        step=index,
        role="measured",
        start_seconds=index * seconds,
        seconds=seconds,
        phases={"data": 0.1 * seconds, "forward": 0.3 * seconds, "backward": 0.5 * seconds},
        host_data_seconds=0.1 * seconds,
        losses=[1.0],
        samples=samples,
        lr=1e-3,
    )


def write_run(folder: RunFolder, facts: Mapping[str, Any], seconds: float = 1.0, steps: int = 4) -> None:
    """A run's records, of one rank each for its world, all alike."""
    folder.write("run.json", {**facts, "run_id": folder.run_id})
    folder.write("status.json", {"state": "finished", "exit_code": 0})
    for rank in range(facts["world_size"]):
        with appending(folder.rank_file(rank)) as write:
            write(*(step(index, seconds) for index in range(steps)))


@functools.cache
def _template() -> bytes:
    with TemporaryDirectory() as place:
        folder = RunFolder.create(Path(place), "template")
        write_run(folder, run_json("template", 1))
        return orjson.dumps(write_summary(folder))


def summary_with(
    folder: RunFolder,
    facts: Mapping[str, Any],
    *,
    step_seconds: float,
    shares: Mapping[str, float] | None = None,
    usd_per_gpu_hour: float | None = None,
    events: float = 0.0,
) -> dict[str, Any]:
    """A summary with a step of `step_seconds` that goes to causes by `shares`, and `events` seconds between steps."""
    summary = copy.deepcopy(orjson.loads(_template()))
    world, batch = facts["world_size"], facts["config"]["global_batch"]
    hours = device_hours(world, step_seconds, batch)
    seconds = {cause: share * step_seconds for cause, share in {**(shares or SHARES)}.items()} | {"events": events}
    total = sum(seconds.values())
    exposed = sum(seconds.get(name, 0.0) for name in (*COMM, "comm"))
    summary |= {name: facts[name] for name in ("name", "device_name", "world_size", "oversubscribed")}
    summary |= {"run_id": folder.run_id, "strategy": facts["config"]["strategy"], "global_batch": batch}
    summary["step_seconds"]["mean"] = step_seconds
    summary["throughput"]["samples_per_second"] = batch / step_seconds
    summary["phases"]["comm_exposed"] = {"mean": exposed, "median": exposed, "share": exposed / step_seconds}
    summary["cost"] |= {
        "device_hours_per_million_samples": hours,
        "by_cause": _tree(seconds, total),
        "by_cause_total": {
            "seconds_per_step": total,
            "device_hours_per_million_samples": device_hours(world, total, batch),
        },
    }
    return reprice(summary, Given(usd_per_gpu_hour=usd_per_gpu_hour))


def _tree(seconds: Mapping[str, float], total: float) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for cause, value in seconds.items():
        name, _, part = cause.partition(".")
        node = {"seconds": value, "share": value / total}
        if not part:
            tree[name] = {**node, **({"transfer": None, "waiting": None, "queued": None} if name == "comm" else {})}
            continue
        above = tree.setdefault(name, {"seconds": 0.0, "share": 0.0})
        above[part] = node
        above["seconds"] += value
        above["share"] += value / total
    for name, parts in (("backward", ("gradient", "recompute")), ("comm", ("transfer", "waiting", "queued"))):
        if name in tree:
            tree[name] = {**dict.fromkeys(parts), **tree[name]}
    return tree


class MadeSweep:
    """A sweep's folder in the making. Times and names are made up; `write` leaves what a sweep would."""

    def __init__(self, path: Path, *, scaling: str = "strong", repeats: int = 1, best_batch: bool = False) -> None:
        self.folder = SweepFolder(path)
        path.mkdir(parents=True, exist_ok=True)
        self._plan = {"scaling": scaling, "repeats": repeats, "best_batch": best_batch}
        self._repeats = repeats
        self.cells: list[Cell] = []
        self._attempts: list[Attempt] = []

    def cell(
        self,
        strategy: str,
        world_size: int,
        times: Sequence[float] = (),
        *,
        precision: str = "fp32",
        batch: int = 32,
        refused: str | None = None,
        name: str | None = None,
        facts: Mapping[str, Any] | None = None,
        gated: bool = True,
        **figures: Any,
    ) -> Cell:
        """A cell with a measured run of each of `times`, seconds a step."""
        name = name or f"{strategy}-{precision}-x{world_size}"
        cell = Cell(
            name=name,
            strategy=strategy,
            precision=precision,
            world_size=world_size,
            micro_batch=None if refused else batch // world_size,
            grad_accumulation=1,
            global_batch=None if refused else batch,
            config={"strategy": strategy},
            refused=refused,
            gated=gated,
        )
        self.cells.append(cell)
        for repeat, seconds in enumerate(times):
            folder = self.run_folder(cell, repeat)
            told = {**run_json(name, world_size, strategy=strategy, global_batch=batch), **(facts or {})}
            folder.write("run.json", {**told, "run_id": folder.run_id})
            folder.write("status.json", {"state": "finished", "exit_code": 0})
            folder.write("summary.json", summary_with(folder, told, step_seconds=seconds, **figures))
            self.attempt(cell, repeat, folder.run_id)
        return cell

    def run_folder(self, cell: Cell, repeat: int) -> RunFolder:
        safe = "".join(each if each.isalnum() or each in "-._" else "-" for each in cell.name)[:60]
        path = self.folder.path / f"20260101T0000{repeat:02d}Z-{safe}-{len(self._attempts):06x}"
        path.mkdir()
        return RunFolder(path)

    def attempt(self, cell: Cell, repeat: int, run: str | None, exit_code: int = 0, cause: str | None = None) -> None:
        self._attempts.append(
            Attempt(
                cell=cell.name,
                repeat=repeat,
                run=run,
                exit_code=exit_code,
                cause=cause,
                started_utc="2026-01-01T00:00:00Z",
                seconds=9.0,
            )
        )

    def write(self) -> SweepFolder:
        order = [(cell.name, repeat) for repeat in range(self._repeats) for cell in self.cells if cell.refused is None]
        plan = SweepPlan.model_validate(
            {
                "sweep_id": "sweep-0123abcd",
                "created_utc": "2026-01-01T00:00:00Z",
                "command": ["scalelab", "sweep"],
                "seed": 0,
                "cells": [cell.model_dump() for cell in self.cells],
                "order": order,
                **self._plan,
            }
        )
        (self.folder.path / "sweep.json").write_text(plan.model_dump_json())
        lines = [attempt.model_dump_json() + "\n" for attempt in self._attempts]
        (self.folder.path / "attempts.jsonl").write_text("".join(lines))
        return self.folder
