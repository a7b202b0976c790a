"""Makes a dataset of driving scenes: WebDataset shards and their manifest, the same bytes for any worker count."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import shutil
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path

import numpy as np
import simplejpeg
from filelock import FileLock

from .camera import ring
from .errors import DataError
from .faces import faces_of
from .lidar import cast_lidar
from .manifest import MANIFEST_NAME, SPLITS, Manifest, load_manifest
from .render import Renderer
from .scene import make_scene
from .shards import Shard
from .spec import GENERATOR_VERSION, DatasetSpec, cache_folder

Progress = Callable[[int, int], None]


def ensure_dataset(
    spec: DatasetSpec,
    root: Path | str | None = None,
    *,
    workers: int = 0,
    progress: Progress | None = None,
    worker_init: Callable[[], None] | None = None,
) -> Path:
    """The folder of the dataset of `spec` below `root` (default: `cache_folder()`), made first if it is missing.

    Processes that ask at the same time wait for the one that makes it. Raises `DataError` if the folder is there but
    shards are missing or have another size, and what `make_dataset` raises.
    """
    root = cache_folder() if root is None else Path(root)
    folder = root / spec.name
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{spec.name}.lock"):
            if not folder.is_dir():
                make_dataset(folder, spec, workers=workers, progress=progress, worker_init=worker_init)
    for shard in load_manifest(folder).shards:
        path = folder / shard.name
        found = path.stat().st_size if path.is_file() else None
        if found != shard.bytes:
            raise DataError(
                f"{path}: {'missing' if found is None else f'{found} bytes'}, the manifest says {shard.bytes} bytes; "
                f"delete {folder} to have it made again"
            )
    return folder


def make_dataset(
    folder: Path | str,
    spec: DatasetSpec,
    *,
    workers: int = 0,
    progress: Progress | None = None,
    worker_init: Callable[[], None] | None = None,
) -> Manifest:
    """Makes the new folder `folder` with the shards of `spec` and their manifest; it has its name once it is complete.

    `workers` processes render (0: as many as this process may use cores), each begun by `worker_init`; this one writes.
    `progress(done, total)` is called after each sample. What a killed process left half made is removed. Raises
    `FileExistsError` if the folder exists, `OSError` if it cannot be written.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        manifest = _write(partial, spec, workers, progress, worker_init)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _write(
    folder: Path,
    spec: DatasetSpec,
    workers: int,
    progress: Progress | None,
    worker_init: Callable[[], None] | None,
) -> Manifest:
    from .writer import write_shard  # brings torch along with webdataset, which the rendering processes do without

    folder.mkdir(parents=True)
    total = spec.train_samples + spec.val_samples
    samples = _rendered(spec, min(workers or len(os.sched_getaffinity(0)), total), worker_init)
    shards: list[Shard] = []
    done = 0

    def counted(count: int) -> Iterator[dict[str, bytes | str]]:
        nonlocal done
        for _ in range(count):
            yield next(samples)
            done += 1
            if progress is not None:
                progress(done, total)

    try:
        for split, number, count in _shards(spec):
            shards.append(write_shard(folder / f"{split}-{number:06d}.tar", split, counted(count)))
    finally:
        samples.close()
    manifest = Manifest(tuple(shards), GENERATOR_VERSION, spec.seed, spec)
    raw = manifest.to_json()
    (folder / MANIFEST_NAME).write_bytes(raw)
    return Manifest.from_json(raw, str(folder / MANIFEST_NAME))


def render_sample(spec: DatasetSpec, split: str, index: int) -> dict[str, bytes | str]:
    """Scene `index` of `split` as the members of its sample, with its `__key__`, ready for a TarWriter."""
    seeds = np.random.SeedSequence((spec.seed, SPLITS.index(split), index)).spawn(3)
    layout, lidar, looks = (np.random.Generator(np.random.Philox(seed)) for seed in seeds)
    scene = make_scene(layout)
    faces = faces_of(scene.boxes)
    points, seen = cast_lidar(scene, faces, spec.lidar_beams, spec.lidar_columns, lidar)
    sample: dict[str, bytes | str] = {"__key__": f"{split}{index:08d}"}
    renderers = _renderers(spec.cameras, spec.width, spec.height, spec.distortion)
    for number, renderer in enumerate(renderers):
        image, visible = renderer.render(scene, faces, looks)
        seen = seen + visible
        sample[f"cam{number}.jpg"] = simplejpeg.encode_jpeg(image, quality=spec.jpeg_quality, colorsubsampling="420")
    labelled = (scene.classes >= 0) & (seen > 0)
    boxes = np.concatenate([scene.classes[labelled, None], scene.boxes[labelled]], axis=1)
    cameras = [renderer.camera.calibration() for renderer in renderers]
    sample["calib.json"] = json.dumps({"cameras": cameras}).encode()
    sample["lidar.npy"], sample["ego.npy"], sample["boxes.npy"] = map(_npy, (points, scene.ego, boxes))
    sample["command.txt"] = scene.command.encode()
    return sample


@lru_cache(maxsize=1)
def _renderers(cameras: int, width: int, height: int, distortion: bool) -> list[Renderer]:
    around = ring(cameras, width, height, distortion)
    plane = around[0].image_plane()  # they have one lens
    return [Renderer(camera, plane) for camera in around]


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array.astype(np.float32), allow_pickle=False)
    return stream.getvalue()


def _shards(spec: DatasetSpec) -> Iterator[tuple[str, int, int]]:
    """(split, number, samples) of each shard in the order of writing."""
    for split, total in zip(SPLITS, (spec.train_samples, spec.val_samples), strict=True):
        for number, start in enumerate(range(0, total, spec.samples_per_shard)):
            yield split, number, min(spec.samples_per_shard, total - start)


def _rendered(
    spec: DatasetSpec, workers: int, worker_init: Callable[[], None] | None
) -> Generator[dict[str, bytes | str], None, None]:
    """All samples in the order of writing; a few per process are rendered ahead."""
    tasks = [
        (split, index)
        for split, total in zip(SPLITS, (spec.train_samples, spec.val_samples), strict=True)
        for index in range(total)
    ]
    if workers <= 1:
        yield from (render_sample(spec, *task) for task in tasks)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=worker_init)
    waiting: deque[Future[dict[str, bytes | str]]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(render_sample, spec, *task))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a rendering process ended early. If memory ran out, fewer workers need less of it; a script that "
            "makes data has to keep its own work under `if __name__ == '__main__'`; workers=1 needs neither"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
