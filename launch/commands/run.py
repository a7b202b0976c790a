"""`scalelab run`: one run, from the command line to its table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import orjson

from ...models.contract import source_sha256
from ...profiles.records import SCHEMA
from ...profiles.runfolder import RunFolder
from ...reports.steady import Steady
from .. import calibrations, devices, environment, strategies
from ..config import RunConfig, build, is_user_model, name_of, parse_target, shown
from ..errors import Exit
from ..explain import explanation
from ..options import Options
from ..plan import Plan, resolve
from ..precision import PRECISIONS
from ..text import plain, redacted_argument

if TYPE_CHECKING:
    from ..dataset import Dataset
    from ..strategies._law import ModelShape
    from ..supervision.launchers import Start

SUMMARY = "Train one model under one strategy. Prints a table and leaves a run folder."
FLAGS = {
    "dry-run": "print the resolved config and the model state per rank, start nothing",
    "json": "print the result as JSON on stdout; everything else goes to stderr",
}


def main(argv: Sequence[str]) -> int:
    """The exit code of `scalelab run ARGV`."""
    options = Options("run", SUMMARY, RunConfig, FLAGS)
    values, flags, problems = options.read(argv)
    if "help" in flags:
        print(options.help())
        return Exit.OK
    plan = resolve(build(values, problems), devices.detect(), dry_run="dry-run" in flags)
    if "dry-run" in flags:
        return _dry_run(plan, as_json="json" in flags)
    return _run(plan, argv, sorted(values), as_json="json" in flags)


def _run(plan: Plan, argv: Sequence[str], given: Sequence[str], *, as_json: bool) -> int:
    from ..supervision.launchers import launching

    for note in plan.notes:
        _say(f"note: {note}")
    with launching(plan) as start:
        folder, status, summary, reported = _trained(plan, argv, given, start)
    measured = plan.config.node_rank == 0 and summary["steps"]["measured"]
    if as_json:
        _tell(orjson.dumps({**summary, "run_folder": str(folder.path)}).decode())
    elif measured:
        from ...reports.console import Console
        from ...reports.table import run_table

        Console(sys.stdout).print(run_table(summary))
    if status["exit_code"] != Exit.OK:
        for line in explanation(folder, status):
            _say(line)
        if not as_json and plan.config.node_rank == 0 and reported:
            _tell(f"report: {folder.path / 'report.html'}")
        return status["exit_code"]
    if not as_json:
        if plan.config.node_rank == 0 and reported:
            _tell(plain(_verdict(folder)))
        _tell(f"run folder: {folder.path}")
        if plan.config.node_rank == 0 and reported:
            _tell(f"report: {folder.path / 'report.html'}")
    return Exit.OK if reported else Exit.SOME_FAILED


def _verdict(folder: RunFolder) -> str:
    from ...profiles.analysis.diagnosis.diagnose import FILE
    from ...reports.diagnosis_card import verdict_line

    found = folder.read(FILE)
    assert found is not None, "a report that was written has a diagnosis"
    return verdict_line(found)


def _trained(
    plan: Plan, argv: Sequence[str], given: Sequence[str], start: Start
) -> tuple[RunFolder, dict[str, Any], dict[str, Any], bool]:
    """The run's folder, status and summary, and whether its report was written. On other hosts than the first the
    status stands for the summary."""
    # Here and not above: `--help` and errors of usage answer without them, and a launcher imports meanwhile.
    from ...reports.live import LiveLine
    from ..dataset import prepare
    from ..opening import opened
    from ..reporting import report_after
    from ..supervision.oom_killer import shm_warning
    from ..supervision.supervisor import supervise

    if is_user_model(plan.config.model):
        _refuse_model(plan)
    dataset = None if is_user_model(plan.config.model) else prepare(plan)
    if dataset is not None:
        _say(f"data: {dataset.folder}")
        plan = replace(plan, config=plan.config.model_copy(update={"data": str(dataset.folder)}))
    # Held-out scenes are read by the ranks themselves; batches of training travel through shared memory.
    loaders = (plan.config.workers or 0) * len(plan.local_ranks)
    if (warning := shm_warning(loaders, plan.config.prefetch or 0, None)) is not None:
        _say(f"note: {warning}")
    digest = None if dataset is None else dataset.manifest.digest
    with opened(plan, lambda folder: run_json_of(plan, dataset, folder, argv, given), digest, _say) as place:
        folder, config = place.folder, plan.config
        with LiveLine(
            sys.stderr,
            world_size=len(plan.local_ranks),
            global_batch=plan.global_batch,
            total_steps=config.warmup + (config.steps or 0),
            warmup=config.warmup,
            probe=config.probe == "on",
            first_host=config.node_rank == 0,
        ) as display:
            status = supervise(folder, plan, display, start, hosts=place.hosts, owned=place.owned)
        summary, reported = report_after(folder, _say) if config.node_rank == 0 else (status, True)
    return folder, status, summary, reported


def run_json_of(
    plan: Plan, dataset: Dataset | None, folder: RunFolder, argv: Sequence[str], given: Sequence[str] = ()
) -> dict[str, Any]:
    """What is known of a run before it starts. `given` are the options that were asked for."""
    target = parse_target(plan.config.target) if plan.config.target else None
    data = None
    if dataset is not None:
        counts = {split: len(dataset.manifest.split(split)) for split in ("train", "val")}
        data = {"folder": str(dataset.folder), "manifest_sha256": dataset.manifest.digest, "samples": counts}
    return {
        "schema": SCHEMA,
        "run_id": folder.run_id,
        "name": name_of(plan.config),
        "command": ["scalelab", "run", *map(redacted_argument, argv)],
        "given": list(given),
        "config": shown(plan.config),
        "setting": asdict(plan.setting),
        "precision": asdict(PRECISIONS[plan.config.precision]),
        "target": None if target is None else {"metric": target[0], "value": target[1]},
        "world_size": plan.world_size,
        "threads_per_rank": plan.threads_per_rank,
        "oversubscribed": plan.oversubscribed,
        "device_name": plan.devices.name,
        "notes": list(plan.notes),
        "data": data,
        "began": environment.now(),
        "model_sha256": source_sha256(str(plan.config.model)),
        "environment": environment.capture(),
        "calibration": calibrations.for_run(str(plan.config.device), plan.devices.name, plan.world_size),
    }


def _dry_run(plan: Plan, *, as_json: bool) -> int:
    """Print what would run, and what its strategy's law says of it. Builds the model without memory."""
    from ...reports.console import Console
    from ...reports.law import law_table

    shape, blocks = _examine(plan)
    law = asdict(strategies.load(plan.config.strategy).law(shape, plan.setting))
    precision = asdict(PRECISIONS[plan.config.precision])
    parameters = shape.elements
    for note in plan.notes:
        _say(f"note: {note}")
    if as_json:
        config = plan.config.model_dump()
        print(orjson.dumps({"config": config, "precision": precision, "parameters": parameters, "law": law}).decode())
        return Exit.OK
    for name, value in plan.config.model_dump().items():
        print(f"{name:20} {plain(str(value))}")
    dtypes = ", ".join(f"{name} {value}" for name, value in precision.items() if name != "name")
    print(f"\n{dtypes}")
    parts = f"{len(shape.parameters)} tensors and {blocks} blocks"
    print(f"{parameters:,} parameters in {parts}, {plan.world_size} ranks")
    Console(sys.stdout).print(law_table(law))
    return Exit.OK


def _examine(plan: Plan) -> tuple[ModelShape, int]:
    """The shape of the plan's model and its number of blocks, built without memory.

    Raises ModelError for what cannot be trained so: no blocks to checkpoint, parameters that the strategy cannot cut.
    """
    import torch

    from ...models.contract import load_model
    from ...models.errors import ModelError
    from ..build import build, shape_of, unfilled

    source = load_model(str(plan.config.model), plan.config.model_option)
    with torch.device("meta"), unfilled():
        model, blocks = build(source, plan.setting, plan.config.seed)
    shape = shape_of(model, blocks)
    if reason := strategies.load(plan.config.strategy).unsupported_model(shape):
        raise ModelError(f"--strategy {plan.config.strategy}, model {source.name}: {reason}")
    return shape, len(blocks)


def _refuse_model(plan: Plan) -> None:
    """Raise ModelError for a user's model that cannot be trained so. What else is wrong with it, its ranks will tell,
    with their traceback."""
    from ...models.errors import ModelError

    try:
        _examine(plan)
    except ModelError:
        raise
    except Exception as error:
        _say(f"note: {plan.config.model} was not examined before the start ({type(error).__name__})")


def _say(text: str) -> None:
    """Print to stderr, where it does not mix with results. Nobody there to read it is no reason to stop."""
    print(plain(text), file=Steady(sys.stderr), flush=True)


def _tell(text: str) -> None:
    """Print a result to stdout, on the same terms."""
    print(text, file=Steady(sys.stdout), flush=True)
