"""The indexed reader against webdataset as people use it, and what writing shards costs; one core, in ABBA blocks.

All sides run in this process, on one thread, on the same shards in the page cache, and deliver the same tensors. A
block reads every sample once; the figure is the median over rounds of the ratio of times, with a bootstrap interval.
Times are processor time of this process: nothing here waits, and what else runs on the machine does not enter.

- `pillow`: `wds.WebDataset(...).decode("pilrgb")`, the whole JPEG decoded and then resized by Pillow.
- `same decoder`: webdataset reads and groups, our decoders decode: what is left is reading by offset, with its
  checksums, against streaming.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scalelab.data.batch import collate
from scalelab.data.decode import Sample, decode_sample
from scalelab.data.generate import make_dataset, render_sample
from scalelab.data.manifest import load_manifest
from scalelab.data.readers.indexed import indexed_loader
from scalelab.data.spec import DatasetSpec
from scalelab.data.writer import write_shard
from webdataset.compat import WebDataset

MICRO_BATCH = 2
LARGE = DatasetSpec(train_samples=12, val_samples=0, width=1600, height=900, samples_per_shard=4)
SMALL = DatasetSpec(train_samples=192, val_samples=0, width=160, height=96, samples_per_shard=64)
READ_AT = (704, 396)

Pipeline = Callable[[], Any]


def ours(folder: Path, size: tuple[int, int] | None) -> Pipeline:
    """One epoch of the indexed reader, shuffled."""
    steps = len(load_manifest(folder).split("train")) // MICRO_BATCH
    loader = indexed_loader(
        folder, split="train", rank=0, world_size=1, micro_batch=MICRO_BATCH, steps=steps, image_size=size
    )
    return lambda: iter(loader)


def webdataset_with(folder: Path, stage: Callable[[Any], Any]) -> Pipeline:
    """One epoch of webdataset over the shards of `folder`, from undecoded samples to batches through `stage`."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def start() -> Any:
        dataset = WebDataset(urls, shardshuffle=False)
        return iter(stage(dataset).batched(MICRO_BATCH, collation_fn=collate, partial=False))

    return start


def pillow_pipeline(folder: Path, size: tuple[int, int] | None) -> Pipeline:
    """webdataset's own decoders, a full decode of each JPEG and Pillow's resize."""

    def arrange(sample: dict[str, Any]) -> Sample:
        cameras = sample["calib.json"]["cameras"]
        pictures = [sample[f"cam{number}.jpg"] for number in range(len(cameras))]
        intrinsics = np.array([camera["intrinsics"] for camera in cameras], np.float32)
        if size is not None:
            intrinsics[:, 0] *= size[0] / pictures[0].width
            intrinsics[:, 1] *= size[1] / pictures[0].height
            pictures = [picture.resize(size, Image.Resampling.BILINEAR) for picture in pictures]
        images = [np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1)) for picture in pictures]
        table = sample["boxes.npy"]
        return {
            "key": sample["__key__"],
            "shard": sample["__url__"],
            "images": images,
            "intrinsics": intrinsics,
            "distortion": np.array([camera["distortion"] for camera in cameras], np.float32),
            "extrinsics": np.array([camera["extrinsics"] for camera in cameras], np.float32),
            "points": sample["lidar.npy"],
            "command": sample["command.txt"].encode(),
            "ego": sample["ego.npy"],
            "boxes": table[:, 1:],
            "classes": table[:, 0].astype(np.int64),
        }

    return webdataset_with(folder, lambda dataset: dataset.decode("pilrgb").map(arrange))


def same_decoder_pipeline(folder: Path, size: tuple[int, int] | None) -> Pipeline:
    """webdataset reads, our decoders decode."""

    def decode(sample: dict[str, Any]) -> Sample:
        members = {name: content for name, content in sample.items() if not name.startswith("__")}
        return decode_sample(members, key=sample["__key__"], shard=sample["__url__"], image_size=size)

    return webdataset_with(folder, lambda dataset: dataset.map(decode))


def assert_same_tensors(left: Pipeline, right: Pipeline, tolerance: float) -> None:
    """Both deliver the same scenes, in whatever order, with images alike to a mean of `tolerance` grey levels."""

    def by_scene(start: Pipeline) -> dict[bytes, dict[str, torch.Tensor]]:
        return {
            batch["ego"][row].numpy().tobytes(): {name: tensor[row] for name, tensor in batch.items()}
            for batch in start()
            for row in range(MICRO_BATCH)
        }

    a, b = by_scene(left), by_scene(right)
    assert a.keys() == b.keys()
    for scene, sample in a.items():
        other = b[scene]
        assert (sample["images"].float() - other["images"].float()).abs().mean() <= tolerance
        assert torch.allclose(sample["intrinsics"], other["intrinsics"], atol=1e-3)
        for name in ("distortion", "extrinsics", "tokens"):
            assert torch.equal(sample[name], other[name])
        for name, mask in (("points", "points_mask"), ("boxes", "boxes_mask"), ("classes", "boxes_mask")):
            assert torch.equal(sample[name][sample[mask]], other[name][other[mask]])
        assert {n: (t.dtype, t.is_contiguous()) for n, t in sample.items()} == {
            n: (t.dtype, t.is_contiguous()) for n, t in other.items()
        }


def seconds(start: Pipeline) -> float:
    """Processor time of one epoch."""
    begin = time.process_time()
    for _ in start():
        pass
    return time.process_time() - begin


def compare(label: str, first: Pipeline, second: Pipeline, samples: int, rounds: int, bound: float | None) -> None:
    """Prints how many times as fast `first` is as `second`, over rounds of first, second, second, first."""
    for side in (first, second):  # fills the caches
        seconds(side)
    times = np.array([[seconds(side) for side in (first, second, second, first)] for _ in range(rounds)])

    # A round's ratio compares blocks that ran next to each other, so that slow drift cancels.
    ratios = (times[:, 1] + times[:, 2]) / (times[:, 0] + times[:, 3])
    drawn = np.random.Generator(np.random.Philox(0)).integers(0, rounds, (4000, rounds))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), (0.025, 0.975))
    found = float(np.median(ratios))
    verdict = "" if bound is None else f", bound {bound}: {'reached' if found >= bound else 'MISSED'}"
    rates = [samples / statistics.median(times[:, part].ravel()) for part in ([0, 3], [1, 2])]
    print(
        f"  {label:24} {rates[0]:8.1f} against {rates[1]:8.1f} samples/s per core: "
        f"{found:.2f}x [{low:.3f}, {high:.3f}] over {rounds} ABBA rounds{verdict}",
        flush=True,
    )


def write(spec: DatasetSpec, folder: Path) -> None:
    """Makes the dataset on one core and prints the rates of making and of writing alone."""
    render_sample(spec, "train", 0)  # the rays of the cameras are computed once per process
    begin = time.process_time()
    make_dataset(folder, spec, workers=1)
    made = spec.train_samples / (time.process_time() - begin)
    samples = [render_sample(spec, "train", index) for index in range(4)]
    spent = []
    for attempt in range(9):
        begin = time.process_time()
        write_shard(folder.parent / f"again-{attempt}.tar", "train", itertools.islice(itertools.cycle(samples), 4))
        spent.append((time.process_time() - begin) / 4)
    print(
        f"  {spec.width}x{spec.height} x {spec.cameras}: rendering, encoding and writing {made:.1f} samples/s per "
        f"core; writing, reading back and hashing alone {1 / statistics.median(spent):.0f}",
        flush=True,
    )


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        large, small = Path(root, "large"), Path(root, "small")
        print("shard writing")
        write(LARGE, large)
        write(SMALL, small)
        for folder, spec, size, rounds, bounds in (
            (large, LARGE, READ_AT, (4, 14), (2.0, 1.0)),
            (small, SMALL, None, (6, 10), (None, None)),
        ):
            print(f"reading {spec.width}x{spec.height} x {spec.cameras} at {size or 'full size'}")
            reader, pillow, same = (make(folder, size) for make in (ours, pillow_pipeline, same_decoder_pipeline))
            assert_same_tensors(reader, pillow, tolerance=2.0)
            assert_same_tensors(reader, same, tolerance=0.0)
            compare("ours : pillow", reader, pillow, spec.train_samples, rounds[0], bounds[0])
            compare("ours : same decoder", reader, same, spec.train_samples, rounds[1], bounds[1])


if __name__ == "__main__":
    main()
