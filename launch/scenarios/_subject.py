"""The model that faults are planted in: rows of tokens through blocks, whose work, weights and loader are options.

A model of one's own by the contract of docs/bring-your-own-model.md; nothing of scalelab is imported. Faults cause
what they are named for: they wait, compute, read or allocate where a job at fault would.
"""

from __future__ import annotations

import ctypes
import gc
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import distributed, nn
from torch.nn import functional as F

# Of glibc's malloc.h. A step's tensors take memory that the step before gave back, as they do of a caching allocator:
# memory that the kernel maps anew in every step would cost a planted run more than the fault in it.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def _keep_what_is_freed() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, -1)
        libc.mallopt(_MMAP_MAX, 0)


class Plain(nn.Module):
    """Few operators for its weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The norm last: it needs its input in backward, so a checkpoint computes all of the block again.
        return self.norm(x + self.down(F.gelu(self.up(x))))


class _Late(torch.autograd.Function):
    """Passes its input on; its backward comes later."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, seconds: float) -> torch.Tensor:
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        time.sleep(ctx.seconds)
        return grad_outputs[0], None


class Subject(nn.Module):
    def __init__(
        self,
        width: int,
        inner: int,
        layers: int,
        slow: dict[str, float],
        slow_rank: int,
        table: int,
        tables: int,
        frozen: bool,
        item: bool,
        objects: int,
        collect: bool,
        per_token: float,
    ) -> None:
        super().__init__()
        made = [nn.Embedding(table, width) for _ in range(tables if table else 0)]
        self.tables = nn.ModuleList(made)
        self._apart: list[torch.Tensor | None] = []
        if frozen:
            for each in made:
                each.weight.register_post_accumulate_grad_hook(self._set_apart)
        self.item, self.objects, self.collect = item, objects, collect
        self.blocks = nn.ModuleList(Block(width, inner) if inner else Plain(width) for _ in range(layers))
        self.head = nn.Linear(width, 1)
        self.slow, self.slow_rank, self.per_token = slow, slow_rank, per_token

    def _set_apart(self, weight: torch.Tensor) -> None:
        """An optimizer passes over what has no gradient. It is made all the same, and lives as long as others."""
        self._apart.append(weight.grad)
        weight.grad = None

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self._apart.clear()
        slow = self.slow if _rank() == self.slow_rank else {}
        x = batch["x"]
        if seconds := slow.get("forward", self.per_token * x.shape[0] * x.shape[1]):
            time.sleep(seconds)
        for table in self.tables:
            x = x + table(batch["number"])
        for block in self.blocks:
            x = block(x)
            if self.item:
                float(x.mean().item())  # the host waits for the device here
        if seconds := slow.get("backward"):
            x = _Late.apply(x, seconds)
        if self.objects and not _cache:
            _cache.extend([] for _ in range(self.objects))  # here, as a job fills a cache
        if self.collect:
            gc.collect()
        return (self.head(x).squeeze(-1).float() - batch["x"].sum(-1).sin()).square().mean()


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def build_model(
    width: int = 128,
    inner: int = 256,
    layers: int = 3,
    slow_forward: float = 0.0,
    slow_backward: float = 0.0,
    slow_rank: int = 1,
    table: int = 0,
    tables: int = 1,
    frozen: bool = False,
    item: bool = False,
    objects: int = 0,
    collect: bool = False,
    per_token: float = 0.0,
) -> nn.Module:
    """`table` is the rows of each of `tables` embeddings, `frozen` if they get gradients and no update. `per_token`
    seconds a forward waits for each token, as for a device that computes it."""
    _keep_what_is_freed()
    slow = {"forward": slow_forward, "backward": slow_backward}
    return Subject(
        width,
        inner,
        layers,
        {name: seconds for name, seconds in slow.items() if seconds},
        slow_rank,
        table,
        tables,
        frozen,
        item,
        objects,
        collect,
        per_token,
    )


_held: list[bytes] = []
_cache: list[object] = []


def _fill(used: str, limit: str, share: str) -> None:
    """Take memory until so much of the limit is used, cached files aside, which the kernel gives up first; what the run
    itself still takes comes on top."""
    piece = 4 << 20
    most = int(Path(limit).read_text()) * float(share)
    while int(Path(used).read_text()) - _cached(Path(used)) + piece < most:
        _held.append(os.urandom(4096) * (piece // 4096))


def _cached(used: Path) -> int:
    fields = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))


def example_batch(size: int, width: int = 128, tokens: int = 256, table: int = 0) -> dict[str, torch.Tensor]:
    return _batch(size, tokens, width, table, torch.default_generator)


def _batch(size: int, tokens: int, width: int, table: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    batch = {"x": torch.randn(size, tokens, width, generator=generator)}
    if table:
        batch["number"] = torch.randint(table, (size, tokens), generator=generator)
    return batch


def build_loader(
    rank: int,
    world_size: int,
    micro_batch: int,
    seed: int,
    width: int = 128,
    tokens: int = 256,
    table: int = 0,
    slow_data: float = 0.0,
    slow_data_rank: int = -1,
    uneven: float = 0.0,
    evened: bool = False,
    images: int = 0,
    decode: str = "scaled",
    disk_bytes_per_second: float = 0.0,
    sample_bytes: int = 1 << 20,
    ballast: str = "",
) -> Iterable[dict[str, torch.Tensor]]:
    """Batches made beforehand, handed out in turn, each after what the fault has to do: wait (`slow_data` on
    `slow_data_rank`, -1 is every rank), decode so many `images` a sample, read samples from a file at a rate.

    `uneven` gives rank 1 so many times more tokens, and each batch a length of its own; `evened` gives every rank the
    mean of those. `ballast` is `PATH:PATH:SHARE`, a cgroup's files with the bytes used and their limit, and up to which
    share memory is taken.
    """
    if ballast:
        _fill(*ballast.split(":"))
    generator = torch.Generator().manual_seed(seed * 1000 + rank)
    lengths = [tokens] * 4
    if uneven:
        of_ranks = [_lengths(tokens * (uneven if each == 1 else 1.0), seed, each) for each in range(world_size)]
        lengths = [sum(row) // world_size for row in zip(*of_ranks, strict=True)] if evened else of_ranks[rank]
    made = [_batch(micro_batch, length, width, table, generator) for length in lengths]
    before: list[Callable[[], object]] = []
    if slow_data and slow_data_rank in (-1, rank):
        before.append(lambda: time.sleep(slow_data))
    if images:
        picture = _picture(seed)
        before.append(lambda: [_decoded(picture, decode) for _ in range(images * micro_batch)])
    if disk_bytes_per_second:
        before.append(lambda: _read(micro_batch * sample_bytes, disk_bytes_per_second))
    return _Batches(made, before)


def _lengths(mean: float, seed: int, rank: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1000 + rank)
    return [round(mean * (0.7 + 0.6 * float(torch.rand((), generator=generator)))) for _ in range(7)]


class _Batches:
    def __init__(self, made: list[dict[str, torch.Tensor]], before: list[Callable[[], object]]) -> None:
        self._made, self._before = made, before

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._made:
            for act in self._before:
                act()
            yield batch


def _picture(seed: int) -> bytes:
    """A JPEG of 1600x900 with something to decode in it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 90, 160, generator=generator)
    pixels = F.interpolate(coarse, size=(900, 1600), mode="bilinear")[0].permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray((pixels * 255).byte().numpy()).save(file, "JPEG", quality=90)
    return file.getvalue()


def _decoded(picture: bytes, how: str) -> Image.Image:
    """The picture at 160x90, decoded whole and then resized, or at the nearest size that JPEG gives cheaply."""
    image = Image.open(io.BytesIO(picture))
    if how == "scaled":
        image.draft("RGB", (200, 112))
    return image.convert("RGB").resize((160, 90), Image.Resampling.BILINEAR)


def _read(count: int, bytes_per_second: float) -> None:
    """Read `count` bytes of a file on a disk of that rate: each piece comes when it is due."""
    begin, done = time.perf_counter(), 0
    with _file().open("rb") as file:
        while done < count:
            file.seek(0)
            done += max(1, len(file.read(min(_PIECE, count - done))))
            time.sleep(max(0.0, begin + done / bytes_per_second - time.perf_counter()))


_PIECE = 1 << 18


def _file() -> Path:
    """A file of one piece in this rank's temporary folder."""
    path = Path(tempfile.gettempdir()) / f"subject-{os.getpid()}"
    if not path.exists():
        path.write_bytes(os.urandom(_PIECE))
    return path


def blocks(model: nn.Module) -> list[nn.Module]:
    return list(model.get_submodule("blocks").children())
