"""From what was asked to what will run: every open choice made, every impossibility refused, nothing started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from ..models.presets import load_preset, presets
from . import strategies
from .config import RunConfig, is_user_model
from .devices import Devices
from .environment import available_cores, cpu_flags
from .errors import ConfigError, PreflightError
from .refusals import lacks, refusals
from .schedule import base_lr
from .setting import Setting
from .strategies._contract import Strategy
from .validation import unknown

DEFAULT_CPU_RANKS = 2
DEFAULT_CPU_STEPS = 30
# Convolutions have no fast fp16 backward on CPU: a step of `tiny` takes half a minute.
DEFAULT_CPU_FP16_STEPS = 5
DEFAULT_MICRO_BATCH = 4
DEFAULT_PREFETCH = 2
# As DDP has it.
DEFAULT_BUCKET_MB = 25.0
# Processor features, as Linux names them, that multiply bf16 numbers.
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
# Presets that are picked by themselves on CUDA, largest last; larger ones are asked for by name.
CUDA_PRESETS = ("tiny", "small", "base")
# fp32 weights, gradients and two AdamW moments; a quarter of the card leaves the rest to activations.
STATE_BYTES_PER_PARAMETER = 16
STATE_SHARE_OF_CARD = 0.25


@dataclass(frozen=True)
class Plan:
    """A run with nothing left open. `notes` are things the user should know, one line each."""

    config: RunConfig
    devices: Devices
    setting: Setting
    notes: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return self.setting.world_size

    @property
    def global_batch(self) -> int:
        return self.setting.micro_batch * self.setting.accumulation * self.setting.world_size

    @property
    def local_ranks(self) -> range:
        """The ranks that this host starts."""
        count = self.config.gpus or 1
        return range(self.config.node_rank * count, (self.config.node_rank + 1) * count)

    @property
    def oversubscribed(self) -> bool:
        """More threads of CPU ranks than cores: times say little about any other machine."""
        return self.devices.kind == "cpu" and len(self.local_ranks) * self.threads_per_rank > available_cores()

    @property
    def threads_per_rank(self) -> int:
        """Threads each rank computes with on a CPU: OMP_NUM_THREADS where it is set, as under torchrun; else the cores
        shared out, one at least."""
        if self.devices.kind != "cpu":
            return 1
        given = os.environ.get("OMP_NUM_THREADS", "")
        return int(given) if given.isdecimal() and int(given) else max(1, available_cores() // len(self.local_ranks))


def resolve(config: RunConfig, devices: Devices, *, dry_run: bool = False) -> Plan:
    """The plan for `config` on a machine with `devices`.

    Raises PreflightError when the machine lacks what was asked for, ConfigError for combinations that cannot work. A
    `dry_run` plans for hardware that this machine need not have; what is lacking is then a note.
    """
    devices, missing = _devices(config, devices)
    gpus = config.gpus or devices.count or DEFAULT_CPU_RANKS
    if config.gpus is None and config.strategy == "single":
        gpus = 1
    on_cuda = devices.kind == "cuda"
    if on_cuda and gpus > devices.count and not missing:
        problem = f"--gpus {gpus}: this machine shows {devices.count} CUDA device(s) ({devices.name})"
        missing.append((problem, f"use --gpus {devices.count}, or --device cpu for {gpus} CPU ranks"))
    if missing and not dry_run:
        raise PreflightError(missing[0][0], hint=missing[0][1])
    if config.pin and not on_cuda:
        raise ConfigError("--pin: pinned memory is for copies to a CUDA device, and this run has none; leave it out")
    strategy = strategies.load(config.strategy)
    final = config.model_copy(update=_chosen(config, devices, strategy, gpus))
    if not is_user_model(config.model) and final.model not in presets():
        raise ConfigError(unknown("--model", str(final.model), presets()) + ", or a path ending in .py")
    world_size = gpus * config.nodes
    final = final.model_copy(update={"global_batch": (final.micro_batch or 1) * final.grad_accumulation * world_size})
    setting = _setting(final, world_size, devices.kind)
    if problems := refusals(config, setting, strategy):
        raise ConfigError(problems)
    lacking = lacks(setting, strategy, devices)
    if lacking and not dry_run:
        raise PreflightError("\n".join(lacking))
    plan = Plan(final, devices, setting, ())
    dry = tuple(f"not on this machine: {problem}" for problem in (*(text for text, _ in missing), *lacking))
    return Plan(final, devices, setting, (*dry, *_notes(plan)))


def _setting(config: RunConfig, world_size: int, device: Literal["cpu", "cuda"]) -> Setting:
    """What of a config without open choices decides how the model is trained."""
    assert config.micro_batch is not None
    assert config.accumulation_sync is not None
    return Setting(
        world_size=world_size,
        device=device,
        engine=config.engine,
        precision=config.precision,
        checkpointing=config.checkpointing,
        compile=config.compile,
        optimizer=config.optimizer,
        micro_batch=config.micro_batch,
        accumulation=config.grad_accumulation,
        accumulation_sync=config.accumulation_sync,
        lr=base_lr(config, config.global_batch or 0),
        clip_norm=config.clip_norm,
        bucket_mb=config.bucket_mb,
        overlap=config.overlap,
    )


def _devices(config: RunConfig, devices: Devices) -> tuple[Devices, list[tuple[str, str]]]:
    """The devices that `config` asks for, and what this machine lacks of them, each with its hint."""
    if config.device == "cuda" and devices.kind != "cuda":
        problem = f"--device cuda: this machine has none: {devices.why_no_cuda}"
        return Devices("cuda", config.gpus or 1, "CUDA device"), [(problem, "use --device cpu")]
    if config.device == "cpu" and devices.kind == "cuda":
        return Devices("cpu", 0, "cpu", why_no_cuda="--device cpu was asked for"), []
    return devices, []


def _chosen(config: RunConfig, devices: Devices, strategy: Strategy, gpus: int) -> dict[str, Any]:
    """Every choice that `config` leaves open. An option that the strategy does not have stays None."""
    on_cuda = devices.kind == "cuda"
    has = strategy.knobs
    chosen = {
        "device": devices.kind,
        "gpus": gpus,
        "model": config.model or pick_preset(devices),
        "micro_batch": _micro_batch(config, gpus * config.nodes),
        "steps": config.steps or (100 if on_cuda else _cpu_steps(config)),
        "launcher": _launcher(config, on_cuda),
        "accumulation_sync": config.accumulation_sync or strategy.accumulation_syncs[0],
    }
    if "bucket_mb" in has:
        chosen["bucket_mb"] = config.bucket_mb or DEFAULT_BUCKET_MB
    if "overlap" in has:
        chosen["overlap"] = strategy.default_overlap(devices.kind) if config.overlap is None else config.overlap
    if is_user_model(config.model):
        return chosen | {"workers": 0, "pin": False, "prefetch": config.prefetch or 0}
    workers = min(8, max(1, available_cores() // gpus)) if on_cuda else 1
    workers = workers if config.workers is None else config.workers
    prefetch = config.prefetch if config.prefetch is not None else (DEFAULT_PREFETCH if workers else 0)
    return chosen | {"workers": workers, "pin": on_cuda if config.pin is None else config.pin, "prefetch": prefetch}


def _cpu_steps(config: RunConfig) -> int:
    return DEFAULT_CPU_FP16_STEPS if config.precision == "fp16" else DEFAULT_CPU_STEPS


def pick_preset(devices: Devices) -> str:
    """The preset for a machine when none is named: `tiny` on CPU, on CUDA the largest that fits easily."""
    if devices.kind == "cpu" or devices.memory_bytes is None:
        return "tiny"
    room = STATE_SHARE_OF_CARD * devices.memory_bytes
    fitting = [name for name in CUDA_PRESETS if load_preset(name).parameters * STATE_BYTES_PER_PARAMETER <= room]
    return fitting[-1] if fitting else CUDA_PRESETS[0]


def _micro_batch(config: RunConfig, world_size: int) -> int:
    if config.global_batch is None:
        return config.micro_batch or DEFAULT_MICRO_BATCH
    per_step = world_size * config.grad_accumulation
    if config.micro_batch is not None and config.micro_batch * per_step != config.global_batch:
        raise ConfigError(
            f"--global-batch {config.global_batch} is not --micro-batch {config.micro_batch} x --grad-accumulation "
            f"{config.grad_accumulation} x {world_size} ranks = {config.micro_batch * per_step}: leave one of them out"
        )
    if config.global_batch % per_step:
        below = config.global_batch // per_step * per_step
        nearest = " or ".join(str(value) for value in (below, below + per_step) if value)
        raise ConfigError(
            f"--global-batch {config.global_batch} cannot be divided by {world_size} ranks x --grad-accumulation "
            f"{config.grad_accumulation} = {per_step}: the nearest that can is {nearest}"
        )
    return config.global_batch // per_step


def _launcher(config: RunConfig, on_cuda: bool) -> str:
    if config.launcher == "fork" and on_cuda:
        raise ConfigError("--launcher fork: CUDA does not survive a fork; use --launcher torchrun, or --device cpu")
    if config.launcher != "auto":
        return config.launcher
    return "torchrun" if on_cuda else "fork"


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.devices.kind == "cpu":
        notes.append(f"{plan.world_size} CPU rank(s) over gloo: {plan.devices.why_no_cuda}")
        if plan.world_size > 1 and plan.config.strategy != "ddp":
            notes.append("rankings of sharded strategies on CPU do not carry over to GPUs")
        if plan.setting.precision in ("bf16", "bf16-params") and not cpu_flags() & BF16_FLAGS:
            notes.append(f"{plan.setting.precision} is emulated on this processor: its times say nothing about bf16")
        if plan.setting.precision == "fp16":
            notes.append("fp16 on CPU shows that the arithmetic holds; it is up to 70 times slower than fp32 there")
    if plan.oversubscribed:
        notes.append(
            f"oversubscribed: {len(plan.local_ranks)} ranks share {available_cores()} cores, times mean little"
        )
    return notes
