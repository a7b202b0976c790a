"""What a sample takes to compute: operations of the micro-batches that a run had, counted after its steps.

The model is built again, on fake tensors and beside the one that trained, with its precision and checkpointing, and is
followed once for each of the shapes that came.
"""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import distributed, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..models.contract import ModelSource
from ..profiles.capture.batches import BatchTally, Seen, Shapes, shapes_of
from ..profiles.capture.flops import Flops, count_flops, mean_flops
from ..profiles.used import CountedFlops, CountedShapes, FlopsRecord, Padding
from .build import build
from .precision import PRECISIONS
from .setting import Setting

# Following preset `base` takes a second or two: a run of ragged batches must not wait for minutes at its end.
MOST_SHAPES = 16
NO_MASKS = "the model's file does not say what of a batch is padding: padded() does (docs/efficiency.md)"


def count(
    noted: BatchTally, source: ModelSource, setting: Setting, seed: int, group: Any, *, leads: bool
) -> FlopsRecord | None:
    """On all ranks of `group` together (None for a rank that is alone): the operations of what all of them noted.

    The rank that `leads` counts, the others return None at once. Never fails over what the model's code raises on
    tensors without data: that is a reason in the record. Leaves the state of every global generator as it was.
    """
    seen = Seen()
    for each in _gathered(noted.seen, group):
        seen.add(each)
    if not leads:
        return None
    if not seen.shapes:
        return _unknown(setting, "no measured micro-batch was seen")
    if len(seen.shapes) > MOST_SHAPES:
        return _unknown(setting, f"batches had {len(seen.shapes)} different shapes, more than {MOST_SHAPES} to count")
    try:
        with _generators_kept(), FakeTensorMode(allow_non_fake_inputs=True), torch.device(setting.device):
            return _count(noted, seen, source, setting, seed)
    except Exception as error:
        return _unknown(setting, f"the model cannot be followed on fake tensors: {_first_line(error)}")


def _count(noted: BatchTally, seen: Seen, source: ModelSource, setting: Setting, seed: int) -> FlopsRecord:
    # Fake parameters cannot be cast: where they train in bf16, compute alone is followed in bf16.
    short = PRECISIONS[setting.precision].param == "bf16"
    eager = replace(setting, compile=False, precision="bf16" if short else setting.precision)
    model, _ = build(source, eager, seed)
    branches = source.branches(model)
    found = {shapes: count_flops(model, noted.like(shapes, setting.device), branches) for shapes in seen.shapes}
    commonest = seen.shapes.most_common(1)[0][0]
    useful, padding, why = _without_padding(noted, seen, source, setting, model)
    return FlopsRecord(
        samples_per_micro_batch=setting.micro_batch,
        counted=[CountedShapes(**_numbers(found[key]), micro_batches=times) for key, times in seen.shapes.items()],
        without_padding=None if useful is None else CountedFlops(**_numbers(useful)),
        padding=padding,
        uncounted=dict(found[commonest].uncounted),
        reasons={} if why is None else {"without_padding": why} | ({"padding": why} if padding is None else {}),
    )


def _without_padding(
    noted: BatchTally, seen: Seen, source: ModelSource, setting: Setting, model: nn.Module
) -> tuple[Flops | None, dict[str, Padding] | None, str | None]:
    """The same model on rows that are as long as real rows are in the mean, over all shapes by how often they came; or
    why that is not known."""
    if (padded := source.padded()) is None:
        return None, None, NO_MASKS
    if seen.filled is None:
        return None, None, "a mask that padded() names is no two-dimensional tensor of the batch on the host"
    padding = {mask: Padding(real=real / rows, there=there / rows) for mask, (real, rows, there) in seen.filled.items()}
    lengths = {key: max(1, round(padding[mask].real)) for mask, keys in padded.items() for key in keys}
    try:
        branches, times, counted = source.branches(model), Counter[Shapes](), dict[Shapes, Flops]()
        for shapes, came in seen.shapes.items():
            batch = noted.like(shapes, setting.device, lengths)
            cut = shapes_of(batch)
            times[cut] += came
            if cut not in counted:
                counted[cut] = count_flops(model, batch, branches)
        return mean_flops(counted, times), padding, None
    except Exception as error:
        return None, padding, f"the model cannot be followed on rows without padding: {_first_line(error)}"


def _numbers(flops: Flops) -> dict[str, Any]:
    return {"by_branch": dict(flops.by_branch), "recomputed": flops.recomputed}


def _unknown(setting: Setting, why: str) -> FlopsRecord:
    return FlopsRecord(
        samples_per_micro_batch=setting.micro_batch,
        counted=None,
        without_padding=None,
        padding=None,
        uncounted=None,
        reasons=dict.fromkeys(("counted", "without_padding", "padding", "uncounted"), why),
    )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


def _gathered(seen: Seen, group: Any) -> list[Seen]:
    if group is None:
        return [seen]
    found: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, seen, group=group)
    return found


@contextlib.contextmanager
def _generators_kept() -> Iterator[None]:
    """Within, global generators may be drawn from and seeded: after it they are as before."""
    cuda = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    python, numbers = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)
