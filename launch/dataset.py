"""The data of a run, made or found before any rank starts. No torch."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..data.errors import DataError
from ..data.generate import ensure_dataset
from ..data.manifest import Manifest, load_manifest, open_folder
from ..data.spec import DatasetSpec
from ..models.presets import load_preset
from .plan import Plan

ProgressCallback = Callable[[int, int], None]


@dataclass(frozen=True)
class Dataset:
    """A set of shards on disk, with the manifest that describes them."""

    folder: Path
    manifest: Manifest


def prepare(plan: Plan) -> Dataset:
    """The shards that `plan` trains one of our presets on: the folder given by `--data`, else the preset's generated
    set, made now if the cache has none. Raises DataError when they cannot fill one global batch."""
    if plan.config.data is None:
        spec = DatasetSpec(**load_preset(str(plan.config.model)).dataset)
        with progress_bar(f"making {spec.train_samples + spec.val_samples} driving scenes") as progress:
            folder = ensure_dataset(spec, progress=progress)
        dataset = Dataset(folder, load_manifest(folder))
    else:
        folder = Path(plan.config.data).resolve()
        if not folder.is_dir():
            raise DataError(f"--data {plan.config.data}: no such folder (looked from {Path.cwd()})")
        dataset = Dataset(folder, open_folder(folder))
    samples = len(dataset.manifest.split("train"))
    if samples < plan.global_batch:
        raise DataError(
            f"{dataset.folder} holds {samples} training samples, fewer than one global batch of {plan.global_batch}: "
            f"give more data, or a --global-batch of at most {samples}"
        )
    return dataset


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """A callback (done, total) that moves a bar on stderr, or prints each tenth where nothing can be redrawn.
    Nothing shows until it is called."""
    console = Console(file=sys.stderr, highlight=False)
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
