"""What two sides must share for a difference between them to mean something, and what else differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compared import ComparedRun

Facts = Mapping[str, Any]
# Options that say where a run goes and what it is called, not what it does.
PLACES = ("out", "name", "data", "rendezvous", "rendezvous_timeout", "node_rank", "hang_seconds", "grace")
PLACING = ("SLURM_", "CUDA_VISIBLE_DEVICES")
DTYPES = ("param", "compute", "grad", "reduce", "master")


def _data(run: ComparedRun) -> Facts:
    manifest = (run.facts.get("data") or {}).get("manifest_sha256")
    # A user's loader is handed a path; nothing else is known of what it reads.
    return {"data": run.facts["config"].get("data")} if manifest is None else {"data.manifest_sha256": manifest}


def _model(run: ComparedRun) -> Facts:
    config, known = run.facts["config"], run.facts.get("model") or {}
    digest = run.facts.get("model_sha256")
    by = {"model": config.get("model")} if digest is None else {"model_sha256": digest}
    options = config.get("model_option") or {}
    return {**by, "model.parameters": known.get("parameters"), **{f"model_option.{k}": v for k, v in options.items()}}


def _precision(run: ComparedRun) -> Facts:
    return {f"precision.{name}": (run.facts.get("precision") or {}).get(name) for name in DTYPES}


def _batch(run: ComparedRun) -> Facts:
    return {"global_batch": run.facts["config"].get("global_batch")}


def _device(run: ComparedRun) -> Facts:
    where = {"device": run.facts["config"]["device"], "device_name": run.facts["device_name"]}
    on_cpu = where["device"] == "cpu"
    return {**where, "cores": run.environment.get("cores")} if on_cpu else where


# What may be told to differ, by the word for it.
CHECKS: Mapping[str, Callable[[ComparedRun], Facts]] = {
    "different-data": _data,
    "different-model": _model,
    "different-precision": _precision,
    "different-batch": _batch,
    "different-device": _device,
}


def unlike(a: ComparedRun, b: ComparedRun) -> dict[str, dict[str, tuple[Any, Any]]]:
    """The checks that fail, by their word: each field that differs, with both values. A model's hash that one of the
    two does not know decides nothing; then its name does."""
    found = {}
    for word, of in CHECKS.items():
        left, right = dict(of(a)), dict(of(b))
        if word == "different-model" and ("model" in left) != ("model" in right):
            for side, run in ((left, a), (right, b)):
                side.pop("model_sha256", None)
                side["model"] = run.facts["config"].get("model")
        if fields := _apart(left, right):
            found[word] = fields
    return found


def differences(a: ComparedRun, b: ComparedRun) -> dict[str, tuple[Any, Any]]:
    """Everything else known of two runs that differs and may matter: options, ranks, machine, versions, code."""
    return _apart(_about(a), _about(b))


def _about(run: ComparedRun) -> dict[str, Any]:
    skipped = (*PLACES, "gpus", "data")
    config = {name: value for name, value in run.facts["config"].items() if name not in skipped}
    return {
        **config,
        "world_size": run.facts["world_size"],
        "threads_per_rank": run.facts.get("threads_per_rank"),
        "oversubscribed": run.facts["oversubscribed"],
        "device_name": run.facts["device_name"],
        "host": run.environment.get("host"),
        "cores": run.environment.get("cores"),
        "source": run.summary["source"],
        **{f"git.{name}": value for name, value in (run.environment.get("git") or {}).items()},
        **libraries(run.environment),
    }


def libraries(environment: Facts) -> dict[str, Any]:
    """Versions, and the variables that libraries read; not those that say where a run was put."""
    variables = environment.get("variables") or {}
    return {
        **{f"versions.{name}": value for name, value in (environment.get("versions") or {}).items()},
        **{f"variables.{name}": value for name, value in variables.items() if not name.startswith(PLACING)},
    }


def _apart(left: Facts, right: Facts) -> dict[str, tuple[Any, Any]]:
    names = [*left, *(name for name in right if name not in left)]
    return {name: (left.get(name), right.get(name)) for name in names if left.get(name) != right.get(name)}
