"""The data of a run, made or found before any rank starts. No torch."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..data.errors import DataError
from ..data.generate import ensure_dataset
from ..data.manifest import Manifest, check_sizes, load_manifest, open_folder
from ..data.spec import DatasetSpec
from ..models.presets import load_preset
from ..reports.console import Console
from .config import skip_budget
from .errors import PreflightError
from .plan import Plan
from .supervision.parent import die_with_parent

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class Dataset:
    """A set of shards on disk, with the manifest that describes them."""

    folder: Path
    manifest: Manifest


def prepare(plan: Plan) -> Dataset:
    """The shards that `plan` trains one of our presets on: the folder given by `--data`, else the preset's generated
    set, made now if the cache has none.

    Raises DataError when they are not as their manifest says or cannot fill one global batch, PreflightError when they
    are too few for the loader processes that stream them."""
    if plan.config.data is None:
        spec = DatasetSpec(**load_preset(str(plan.config.model)).dataset)
        with progress_bar(f"making {spec.train_samples + spec.val_samples} driving scenes") as progress:
            folder = ensure_dataset(spec, progress=progress, worker_init=renderer_init())
        dataset = Dataset(folder, load_manifest(folder))
    else:
        folder = Path(plan.config.data).resolve()
        if not folder.is_dir():
            raise DataError(f"--data {plan.config.data}: no such folder (looked from {Path.cwd()})")
        dataset = Dataset(folder, open_folder(folder))
    config = plan.config
    # Single damaged samples can be left out by the reader of single samples: it finds them, counts and names them.
    if not (skip_budget(config.bad_data) and config.reader == "indexed"):
        check_sizes(dataset.folder, dataset.manifest)
    samples = len(dataset.manifest.split("train"))
    if samples < plan.global_batch:
        raise DataError(
            f"{dataset.folder} holds {samples} training samples, fewer than one global batch of {plan.global_batch}: "
            f"give more data, or a --global-batch of at most {samples}"
        )
    if config.reader == "stream":
        _refuse_few_shards(dataset, plan.world_size, max(1, config.workers or 0))
    return dataset


def _refuse_few_shards(dataset: Dataset, ranks: int, loaders: int) -> None:
    shards = sum(shard.split == "train" for shard in dataset.manifest.shards)
    if shards < ranks * loaders:
        ways = [f"--workers {shards // ranks}"] if shards >= ranks else [f"--gpus {shards}"]
        raise PreflightError(
            f"--reader stream: {dataset.folder} has {shards} training shards, but {ranks} ranks x {loaders} loader "
            f"processes need one each, {ranks * loaders}",
            hint=f"use {ways[0]}, more and smaller shards, or --reader indexed, which any number can share",
        )


def renderer_init() -> Callable[[], None]:
    """What a rendering process does first: it ends with this process, however that ends, and leaves Ctrl-C to it."""
    return functools.partial(_begin_renderer, os.getpid())


def _begin_renderer(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(parent)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """A callback (done, total) that moves a bar on stderr, or prints each tenth where nothing can be redrawn.
    Nothing shows until it is called."""
    console = Console(sys.stderr)
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=None)
    printed = -1

    def advance(done: int, total: int) -> None:
        nonlocal printed
        if console.is_terminal:
            bar.start()
            bar.update(task, completed=done, total=total)
        elif done * 10 // total > printed:
            printed = done * 10 // total
            print(f"{title}: {done}/{total}", file=sys.stderr, flush=True)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()
