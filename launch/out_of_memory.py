"""What a rank that ran out of memory says: who held what, which limit was hit, the largest micro-batch that fits.

The micro-batch is an estimate. What a batch needs is followed on fake tensors (`footprint.py`); what does not depend
on the batch is read from the live process once the failed step has been dropped.
"""

from __future__ import annotations

import bisect
import ctypes
import gc
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..models.contract import ModelSource
from ..profiles.capture.memory import storage_bytes
from . import strategies
from .footprint import Footprint, UntoldError, measure, tensors
from .precision import PRECISIONS
from .setting import Setting
from .strategies._contract import Sharded
from .strategies._law import Bytes, ModelShape
from .supervision.oom_killer import amount, asked_bytes, chain, memory_cgroups

# glibc serves blocks of up to this size from its heap (mallopt(3), M_MMAP_THRESHOLD: the threshold grows to 32 MiB as
# blocks are freed), larger ones from the system. Only the heap has gaps.
HEAP_BLOCK_BYTES = 32 << 20
# The heap's size over what is alive in it: up to 1.3, and up to 2.0 where activations are computed again, measured with
# glibc 2.36 over three steps of presets nano and tiny (1.0 with M_MMAP_THRESHOLD at 64 KiB); here with some to spare.
HEAP_FACTOR = {"none": 1.4, "selective": 1.9, "full": 2.15}
# Larger blocks have no gaps; kernels' scratch memory, which is not followed, grows with them.
LARGE_FACTOR = 1.15
# What the first step loads for good (code of kernels, scratch memory): 26 to 30 MiB with torch 2.13 on CPU.
FIRST_STEP_BYTES = 32 << 20
# Address space that gloo's six threads take sooner or later once ranks reduce, a heap of glibc's (64 MiB) each: with
# three of them an estimate was a quarter above what five steps of an MLP had room for.
FIRST_REDUCTION_BYTES = 6 * 64 << 20
# Allowance for gaps and rounding of the CUDA caching allocator, and for workspaces of its libraries. Not measured.
CUDA_FACTOR = 1.15

T = TypeVar("T")


@dataclass(frozen=True)
class Limit:
    """A bound on memory, and what counts against it now. `gaps_bytes` is what the allocator holds of that unused."""

    name: str
    limit_bytes: int
    used_bytes: int
    gaps_bytes: int = 0

    @property
    def kind(self) -> str:
        return self.name.partition(",")[0]  # without figures, which change

    @property
    def room_bytes(self) -> int:
        return self.limit_bytes - self.used_bytes


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a rank trains. `batches_alive` is how many batches of the micro-batch's size it keeps at once."""

    source: ModelSource
    setting: Setting
    strategy: str
    seed: int
    rank: int = 0
    batches_alive: int = 1


def explain(error: BaseException, training: Training, run: Sharded | None = None, batch: Any = None) -> dict[str, Any]:
    """What `error`, an allocation that failed in this rank, means in bytes. Never raises: what cannot be told is None.

    Drops the failed step: the local variables of the frames that `error` went through are cleared, so format its
    traceback first. `run` and `batch` are the live ones, as far as they came. Keys: `asked_bytes`, `limit`,
    `held_bytes` by kind, `largest_micro_batch` (an estimate; 0 if none fits) with `largest_micro_batch_reason`, `hint`,
    and `table`, all of it as text.
    """
    device = torch.device(training.setting.device)
    before = _try(lambda: min(_limits(device), key=lambda limit: limit.room_bytes))
    asked = _try(lambda: asked_bytes(error))
    state = _state_bytes(run, batch)
    _try(lambda: _drop(error, run, device))
    after = _try(lambda: next(limit for limit in _limits(device) if before and limit.kind == before.kind))
    largest, reason = _estimate(after, state, training, batch)
    facts = {
        "asked_bytes": asked,
        "limit": before and {"name": before.name, "bytes": before.limit_bytes, "used_bytes": before.used_bytes},
        "held_bytes": _held(before, after, state),
        "largest_micro_batch": largest,
        "largest_micro_batch_reason": reason,
        "hint": _hint(largest, training),
    }
    return {**facts, "table": _try(lambda: _table(facts, training)) or ""}


def _try(act: Callable[[], T]) -> T | None:
    """What `act` returns, None if it fails: with little memory left, anything can."""
    try:
        return act()
    except Exception:
        return None


def _state_bytes(run: Sharded | None, batch: Any) -> dict[str, int | None]:
    """Bytes of model state and of the batch, a storage counted for the first that has it. None for what cannot be
    told: a strategy may have no gradients to show before its first backward."""
    seen: set[tuple[str, int]] = set()

    def bytes_of(read: Callable[[], Iterable[torch.Tensor]]) -> int | None:
        return _try(lambda: storage_bytes(read(), seen))

    found = {"batch": None if batch is None else bytes_of(lambda: tensors(batch))}
    if run is None:
        return {"parameters": None, "gradients": None, "optimizer": None, **found}
    return {
        "parameters": bytes_of(lambda: [*run.parameters(), *run.module.buffers()]),
        "gradients": bytes_of(lambda: run.gradients().parts),
        "optimizer": bytes_of(lambda: run.optimizer_state()),
        **found,
    }


def _drop(error: BaseException, run: Sharded | None, device: torch.device) -> None:
    """Let go of what the failed step holds, and give it back to the system."""
    for link in chain(error):
        traceback.clear_frames(link.__traceback__)
        # Clearing leaves a frame its function, and that its closure: torch's call of a module with hooks keeps the
        # module's inputs in one, and so all activations before it.
        link.__traceback__ = None
    if run is not None:
        _try(run.reshard)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        ctypes.CDLL(None).malloc_trim(0)


def _limits(device: torch.device) -> Iterator[Limit]:
    """Every limit that an allocation on `device` can hit."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        gaps = reserved - torch.cuda.memory_allocated(device)
        fraction = torch.cuda.get_per_process_memory_fraction(device)
        others = total - free - reserved
        held = f"contexts and other processes hold {amount(others)}"
        yield Limit(f"the card's memory, of which {held}", total, total - free, gaps)
        if fraction < 1:
            yield Limit(
                f"{fraction:.4g} of the card's memory, set for this process", int(fraction * total), reserved, gaps
            )
        return
    status, machine = _kib_fields("/proc/self/status"), _kib_fields("/proc/meminfo")
    for name, number, used in (
        ("RLIMIT_AS (ulimit -v), address space of libraries included", resource.RLIMIT_AS, "VmSize"),
        ("RLIMIT_DATA (ulimit -d)", resource.RLIMIT_DATA, "VmData"),
    ):
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY:
            yield Limit(name, soft, status[used], _free_in_heap())
    for group in memory_cgroups():
        limit, used = group.limit_bytes, group.used_bytes
        if limit is not None and used is not None:
            yield Limit(f"cgroup {group.path}, all its processes together", limit, used)
    total = machine["MemTotal"]
    yield Limit("this machine's memory, all processes together", total, total - machine["MemAvailable"])


def _kib_fields(path: str) -> dict[str, int]:
    """The lines `name: number kB` of a file in /proc, in bytes."""
    parts = [line.split() for line in Path(path).read_text().splitlines()]
    return {part[0].rstrip(":"): int(part[1]) * 1024 for part in parts if len(part) == 3 and part[2] == "kB"}


class _Mallinfo(ctypes.Structure):
    """glibc's struct mallinfo2."""

    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                "fsmblks", "uordblks", "fordblks", "keepcost")]  # fmt: skip


def _free_in_heap() -> int:
    """Bytes that malloc has taken from the system and holds free; 0 where the C library does not say."""
    read = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if read is None:
        return 0
    read.restype = _Mallinfo
    return read().fordblks


def _held(before: Limit | None, after: Limit | None, state: Mapping[str, int | None]) -> dict[str, int | None]:
    """Bytes by kind, which add up to what was used of the limit. What of the state could not be told is in the rest."""
    if before is None or after is None:
        return dict(state)
    gone = (before.used_bytes - before.gaps_bytes) - (after.used_bytes - after.gaps_bytes)
    held = {**state, "activations and temporaries": max(0, gone), "allocator's gaps": before.gaps_bytes}
    rest = before.used_bytes - sum(count or 0 for count in held.values())
    return {**held, "all else (code, libraries, loader, other processes)": rest}


def _estimate(
    after: Limit | None, state: Mapping[str, int | None], training: Training, batch: Any
) -> tuple[int | None, str]:
    """The largest micro-batch that fits with how it was found, or None with the reason."""
    setting = training.setting
    if setting.micro_batch == 1:
        return 0, "a micro-batch of 1 is what did not fit"
    if after is None:
        return None, "no limit could be read"
    # What stays whatever the batch, as far as it is there yet; the law says what comes.
    fixed = after.used_bytes - after.gaps_bytes - training.batches_alive * (state["batch"] or 0)
    fixed -= (state["gradients"] or 0) + (state["optimizer"] or 0)
    room = after.limit_bytes - fixed
    if "RLIMIT_AS" in after.name and setting.world_size > 1 and not state["gradients"]:
        # Where less is left they share what there is.
        room -= min(FIRST_REDUCTION_BYTES, room // 2)
    try:
        footprint = measure(training.source, setting, training.seed, strategies.load(training.strategy), batch)
        needs = _needs(footprint, training)
        largest = bisect.bisect_right(range(1, setting.micro_batch), room, key=needs)
        each = amount(needs(max(1, largest) + 1) - needs(max(1, largest)))
    except Exception as failure:
        first = (str(failure).splitlines() or [""])[0]
        kind = "" if isinstance(failure, UntoldError) else f"{type(failure).__name__}: "
        return None, f"the model could not be followed on tensors without data: {kind}{first}"
    return largest, f"an estimate: {amount(room)} are left beside what is held anyway, and a sample more takes {each}"


def _needs(footprint: Footprint, training: Training) -> Callable[[int], float]:
    """Bytes that a step takes at most, as a function of the micro-batch, beside the parameters that a rank keeps."""
    setting, law, shape = training.setting, footprint.law, footprint.shape
    state = law.ranks[training.rank]
    on_cpu, sharded = setting.device == "cpu", law.gradients == "sharded"
    # Whole gradients come and go in the footprint; shards are there all the time.
    fixed = state.optimizer + (state.gradients + law.accumulating_gradient_bytes if sharded else 0)
    fixed += FIRST_STEP_BYTES if on_cpu else 0
    if law.parameters == "sharded":
        fixed += Bytes.of(setting).param * _gathered_elements(shape)
    # An update takes a few tensors of the largest parameter's size on CPU; on CUDA torch works on all at once.
    largest = 4 * max((parameter.elements for parameter in shape.trainable), default=0)
    update = state.gradients * (not sharded) + (3 * largest if on_cpu else state.optimizer // 2)
    factor = HEAP_FACTOR[setting.checkpointing]

    def charged(count: int) -> float:
        if not on_cpu:
            return count * CUDA_FACTOR
        return count * (factor if count < HEAP_BLOCK_BYTES else LARGE_FACTOR)

    def needs(size: int) -> float:
        step = footprint.peak_bytes(size, charged)
        return fixed + max(step, update) + training.batches_alive * footprint.batch_bytes(size)

    return needs


def _gathered_elements(shape: ModelShape) -> int:
    """Elements that are whole at once where parameters are sharded: what lies outside blocks, and two blocks."""
    blocks: Counter[int | None] = Counter()
    for parameter in shape.parameters:
        blocks[parameter.block] += parameter.elements
    outside = blocks.pop(None, 0)
    return outside + sum(sorted(blocks.values())[-2:])


def _hint(largest: int | None, training: Training) -> str:
    """The way out, one line."""
    strategy, setting = training.strategy, training.setting
    if largest:
        return f"--micro-batch {largest} should fit (an estimate); --grad-accumulation keeps the global batch"
    ways = [] if strategy in ("zero3", "fsdp2") or setting.world_size == 1 else ["--strategy zero3 or fsdp2"]
    ways += ["--checkpointing full"] if setting.checkpointing != "full" else []
    ways += ["--precision bf16"] if PRECISIONS[setting.precision].compute not in ("bf16", "fp16") else []
    if largest == 0:
        return f"no micro-batch fits: use {', '.join([*ways, 'a smaller model'])}, or give it more memory"
    return f"lower --micro-batch (it is {setting.micro_batch}), or use {', '.join([*ways, 'a smaller model'])}"


def _table(facts: Mapping[str, Any], training: Training) -> str:
    asked, limit, largest = facts["asked_bytes"], facts["limit"], facts["largest_micro_batch"]
    lines = [f"rank {training.rank} ran out of memory" + (f" when it asked for {amount(asked)} more" if asked else "")]
    if limit:
        lines.append(f"limit {amount(limit['bytes'])}, {amount(limit['used_bytes'])} used: {limit['name']}")
    width = max(map(len, facts["held_bytes"]))
    for kind, count in facts["held_bytes"].items():
        lines.append(f"  {kind:<{width}}  {'unknown' if count is None else amount(count):>10}")
    found = "unknown" if largest is None else str(largest or "none")
    lines.append(f"largest micro-batch that fits (it was {training.setting.micro_batch}): {found}")
    return "\n".join([*lines, f"  {facts['largest_micro_batch_reason']}", facts["hint"]])
