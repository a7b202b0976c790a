"""`scalelab data make` and `scalelab data check`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict

from ...data.generate import ensure_dataset, make_dataset
from ...data.manifest import check_dataset, open_folder
from ...data.spec import DatasetSpec, cache_folder
from ...models.presets import load_preset, presets
from ..dataset import progress_bar, renderer_init
from ..errors import ConfigError, Exit, PreflightError
from ..options import PlainText, option, read_options
from ..text import plain

VERBS = {
    "make": "Render driving scenes into WebDataset shards with a manifest. Prints the folder.",
    "check": "Read every byte of a set of shards and hold it against its manifest.",
}
FLAGS = {"json": "print the result as JSON on stdout"}


def _preset(name: str) -> str:
    if name not in presets():
        near = difflib.get_close_matches(name, presets(), n=1, cutoff=0.5)
        raise ValueError(", ".join(sorted(presets())) + (f"; did you mean {near[0]}?" if near else ""))
    return name


class _Common(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, BeforeValidator(_preset)] = option("which", "the preset whose set is meant", "tiny")


class MakeOptions(_Common):
    out: PlainText | None = option(
        "which", "folder to make it in; by default in the cache folder, shared by runs", None
    )
    workers: int = option("which", "processes that render; 0 is one per core", 0, ge=0, le=256)
    train_samples: int | None = option("scenes", "training scenes", None, ge=0)
    val_samples: int | None = option("scenes", "held-out scenes", None, ge=0)
    cameras: int | None = option("scenes", "cameras around the vehicle", None, ge=1, le=16)
    width: int | None = option("scenes", "image width in pixels", None, ge=16, le=8192)
    height: int | None = option("scenes", "image height in pixels", None, ge=16, le=8192)
    samples_per_shard: int | None = option("scenes", "scenes per tar file", None, ge=1)
    seed: int | None = option("scenes", "draws the scenes", None, ge=0)
    distortion: bool | None = option("scenes", "Brown-Conrady lens distortion", None)


class CheckOptions(_Common):
    folder: PlainText | None = option("which", "folder of shards; by default the preset's generated set", None)


def main(argv: Sequence[str]) -> int:
    """The exit code of `scalelab data ARGV`."""
    verb = argv[0] if argv else "--help"
    if verb in ("-h", "--help"):
        print("usage: scalelab data make|check [OPTION ...]\n")
        print("\n".join(f"  {name:6} {text}" for name, text in VERBS.items()))
        return Exit.OK
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        offer = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"scalelab data: given {verb!r}, allowed make, check{offer}")
    return {"make": _make, "check": _check}[verb](argv[1:])


def _make(argv: Sequence[str]) -> int:
    options, flags = read_options("data make", VERBS["make"], MakeOptions, FLAGS, argv)
    if options is None:
        return Exit.OK
    table = load_preset(options.model).dataset
    given = {field.name: getattr(options, field.name, None) for field in fields(DatasetSpec)}
    spec = DatasetSpec(**{**table, **{name: value for name, value in given.items() if value is not None}})
    with progress_bar(f"making {spec.train_samples + spec.val_samples} driving scenes") as progress:
        try:
            if options.out is None:
                folder = ensure_dataset(spec, workers=options.workers, progress=progress, worker_init=renderer_init())
            else:
                folder = Path(options.out).resolve()
                make_dataset(folder, spec, workers=options.workers, progress=progress, worker_init=renderer_init())
        except FileExistsError:
            raise PreflightError(
                f"--out {options.out}: is there already",
                hint="give another folder, or remove that one; scalelab data check says whether it is whole",
            ) from None
        except OSError as error:
            raise PreflightError(
                f"cannot write the shards: {error}", hint="give a folder that can be written: --out"
            ) from error
    _print(flags, {"folder": str(folder), **_facts(folder)}, str(folder))
    return Exit.OK


def _check(argv: Sequence[str]) -> int:
    options, flags = read_options("data check", VERBS["check"], CheckOptions, FLAGS, argv, positional="folder")
    if options is None:
        return Exit.OK
    folder = Path(options.folder) if options.folder else _generated(options.model)
    problems = check_dataset(folder)
    facts = {} if problems else _facts(folder)
    said = "\n".join(str(problem) for problem in problems)
    if not problems:
        said = f"{folder}: {facts['shards']} shards, {facts['samples']} samples, {facts['bytes']} bytes: all as written"
    result = {"folder": str(folder), **facts, "problems": [vars(problem) for problem in problems]}
    _print(flags, result, said)
    return Exit.DATA if problems else Exit.OK


def _generated(model: str) -> Path:
    """Where the preset's set is, or an error that says how to make it."""
    folder = cache_folder() / DatasetSpec(**load_preset(model).dataset).name
    if not folder.is_dir():
        raise ConfigError(
            f"the set of preset {model} has not been made (it would be {folder})",
            hint=f"scalelab data make --model {model}, or name a folder: scalelab data check FOLDER",
        )
    return folder


def _facts(folder: Path) -> dict[str, Any]:
    manifest = open_folder(folder)
    return {
        "shards": len(manifest.shards),
        "samples": sum(len(shard.samples) for shard in manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "manifest_sha256": manifest.digest,
    }


def _print(flags: set[str], result: dict[str, Any], said: str) -> None:
    print(orjson.dumps(result).decode() if "json" in flags else plain(said))
