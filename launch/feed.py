"""Where a rank's micro-batches come from: our shards, a user's own loader, or batches made up in advance."""

from __future__ import annotations

import functools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ..data.readers.indexed import indexed_loader
from ..data.skipping import BadSamples
from ..models.contract import ModelSource
from ..models.errors import ModelError
from ..profiles.records import BadSampleRecord, Record
from .config import RunConfig, is_user_model, skip_budget
from .errors import Exit
from .ranks import Rank
from .supervision.parent import die_with_parent

MADE_UP_BATCHES = 4
# What a loader process gets when its rank has ended. Not SIGKILL: torch names a file in /dev/shm for a moment for each
# tensor that it hands over, and one that is named when the process is killed stays for ever. Python acts on a signal
# only when that call has returned.
RANK_GONE = signal.SIGUSR2


class Feed(AbstractContextManager["Feed"], Iterator[Any]):
    """An endless stream of micro-batches for one rank; closing it ends its processes and threads."""

    def __init__(self, batches: Iterator[Any], close: Callable[[], None] = lambda: None) -> None:
        self._batches = batches
        self._close = close

    def __next__(self) -> Any:
        return next(self._batches)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


def bad_samples(config: RunConfig, write: Callable[[Record], None] = lambda record: None) -> BadSamples:
    """The count of damaged samples that a rank leaves out under `config`; each is written as a record once."""
    return BadSamples(skip_budget(config.bad_data), lambda bad: write(BadSampleRecord(**vars(bad))))


def open_feed(
    config: RunConfig,
    source: ModelSource,
    rank: Rank,
    image_size: tuple[int, int] | None,
    bad: BadSamples | None = None,
) -> Feed:
    """The feed of a resolved `config`. `image_size` is (width, height) that our own model asks for; `bad` counts what
    our own loader leaves out, by default without records of it."""
    assert config.micro_batch is not None
    if not is_user_model(config.model):
        assert config.data is not None
        loader = _reader(config.reader)(
            Path(config.data),
            split="train",
            rank=rank.rank,
            world_size=rank.world_size,
            micro_batch=config.micro_batch,
            accumulation=config.grad_accumulation,
            seed=config.seed,
            workers=config.workers or 0,
            prefetch=config.prefetch or 1,
            pin=bool(config.pin),
            image_size=image_size,
            bad=bad_samples(config) if bad is None else bad,
            worker_init=functools.partial(_begin_loader_process, os.getpid()),
        )
        return Feed(iter(loader), loader.close)
    if source.has_loader:
        loader = source.loader(
            rank=rank.rank,
            world_size=rank.world_size,
            micro_batch=config.micro_batch,
            seed=config.seed,
            data=config.data,
        )
        batches = _endless(loader, source.name)
        return _prefetched(batches, config.prefetch) if config.prefetch else Feed(batches)
    if config.data is not None:
        raise ModelError(f"--data: {source.name} has no build_loader to hand it to; write one, or leave --data out")
    made = [_made_up(source, config.micro_batch, config.seed, rank.rank, index) for index in range(MADE_UP_BATCHES)]
    return Feed(_cycle(made))


def _begin_loader_process(rank_pid: int, index: int) -> None:
    """What a loader process does first: it ends with its rank at once, which torch would notice after seconds, and
    leaves to the rank the signals that ask a whole run to stop: a scheduler sends them to every process of a job."""
    signal.signal(RANK_GONE, lambda *_: os._exit(Exit.WORKER_DIED))
    die_with_parent(by=RANK_GONE)
    if multiprocessing.get_start_method() == "fork" and os.getppid() != rank_pid:
        os._exit(Exit.WORKER_DIED)  # the rank was gone before that was asked for
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _reader(name: str) -> Callable[..., Any]:
    if name == "indexed":
        return indexed_loader
    # webdataset takes half a second to import: only for those who stream.
    from ..data.readers.stream import stream_loader

    return stream_loader


def _made_up(source: ModelSource, size: int, seed: int, rank: int, index: int) -> Any:
    """One example batch under a generator seeded by (seed, rank, index)."""
    import numpy as np

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed, rank, index]).generate_state(1, np.uint64)[0] >> 1))
        return source.example_batch(size)


def _cycle(batches: list[Any]) -> Iterator[Any]:
    while True:
        yield from batches


def _endless(loader: Iterable[Any], name: str) -> Iterator[Any]:
    """The user's loader, begun again whenever it ends."""
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ModelError(
                f"{name}: build_loader returned an iterable with no batches left; return one that can be iterated again"
            )


def _prefetched(batches: Iterator[Any], depth: int) -> Feed:
    """`batches` drawn ahead by a thread, at most `depth` of them. What it raises is raised where it is drawn."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    closing = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> None:
        while not closing.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def draw() -> None:
        try:
            for batch in batches:
                put((batch, None))
                if closing.is_set():
                    return
        except BaseException as error:
            put((None, error))

    def take() -> Iterator[Any]:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch

    thread = threading.Thread(target=draw, name="prefetch", daemon=True)
    thread.start()

    def close() -> None:
        closing.set()
        thread.join(timeout=5)

    return Feed(take(), close)


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with every tensor in it on `device`, structure kept; other leaves pass through."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
