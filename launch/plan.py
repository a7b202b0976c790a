"""From what was asked to what will run: every open choice made, every impossibility refused, nothing started."""

from __future__ import annotations

from dataclasses import dataclass

from ..models.presets import load_preset, presets
from . import strategies
from .config import RunConfig, is_user_model
from .devices import Devices
from .environment import available_cores
from .errors import ConfigError, PreflightError
from .schedule import base_lr
from .strategies._contract import Setting
from .validation import unknown

DEFAULT_CPU_RANKS = 2
DEFAULT_MICRO_BATCH = 4
DEFAULT_PREFETCH = 2
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
    def oversubscribed(self) -> bool:
        """More CPU ranks than cores: times say little about any other machine."""
        return self.devices.kind == "cpu" and self.world_size > available_cores()

    @property
    def threads_per_rank(self) -> int:
        """Threads each rank computes with: the cores shared out, one at least."""
        return max(1, available_cores() // self.world_size) if self.devices.kind == "cpu" else 1


def resolve(config: RunConfig, devices: Devices) -> Plan:
    """The plan for `config` on a machine with `devices`.

    Raises PreflightError when the machine lacks what was asked for, ConfigError for combinations that cannot work.
    """
    if config.device == "cuda" and devices.kind != "cuda":
        raise PreflightError(f"--device cuda: this machine has none: {devices.why_no_cuda}", hint="use --device cpu")
    if config.device == "cpu" and devices.kind == "cuda":
        devices = Devices("cpu", 0, "cpu", why_no_cuda="--device cpu was asked for")
    gpus = config.gpus or devices.count or DEFAULT_CPU_RANKS
    if config.gpus is None and config.strategy == "single":
        gpus = 1
    if devices.kind == "cuda" and gpus > devices.count:
        raise PreflightError(
            f"--gpus {gpus}: this machine shows {devices.count} CUDA device(s) ({devices.name})",
            hint=f"use --gpus {devices.count}, or --device cpu for {gpus} CPU ranks",
        )
    on_cuda = devices.kind == "cuda"
    if config.pin and not on_cuda:
        raise ConfigError("--pin: pinned memory is for copies to a CUDA device, and this run has none; leave it out")
    ours = not is_user_model(config.model)
    chosen = {
        "device": devices.kind,
        "gpus": gpus,
        "model": config.model or pick_preset(devices),
        "micro_batch": _micro_batch(config, gpus),
        "steps": config.steps or (100 if on_cuda else 30),
        "launcher": _launcher(config, on_cuda),
    }
    workers = (
        config.workers if config.workers is not None else (min(8, max(1, available_cores() // gpus)) if on_cuda else 1)
    )
    if ours:
        chosen |= {"workers": workers, "pin": on_cuda if config.pin is None else config.pin}
        chosen["prefetch"] = config.prefetch if config.prefetch is not None else (DEFAULT_PREFETCH if workers else 0)
    else:
        chosen |= {"workers": 0, "pin": False, "prefetch": config.prefetch or 0}
    final = config.model_copy(update=chosen)
    if ours and final.model not in presets():
        raise ConfigError(unknown("--model", str(final.model), presets()) + ", or a path ending in .py")
    setting = Setting(
        world_size=gpus,
        device=devices.kind,
        precision=final.precision,
        optimizer=final.optimizer,
        micro_batch=chosen["micro_batch"],
        accumulation=final.grad_accumulation,
        lr=base_lr(final, chosen["micro_batch"] * final.grad_accumulation * gpus),
        clip_norm=final.clip_norm,
    )
    final = final.model_copy(update={"global_batch": setting.micro_batch * setting.accumulation * gpus})
    reason = strategies.load(final.strategy).unsupported(setting)
    if reason is not None:
        raise ConfigError(f"--strategy {final.strategy}: {reason}")
    plan = Plan(final, devices, setting, ())
    return Plan(final, devices, setting, tuple(_notes(plan)))


def pick_preset(devices: Devices) -> str:
    """The preset for a machine when none is named: `tiny` on CPU, on CUDA the largest that fits easily."""
    if devices.kind == "cpu" or devices.memory_bytes is None:
        return "tiny"
    room = STATE_SHARE_OF_CARD * devices.memory_bytes
    fitting = [name for name in CUDA_PRESETS if load_preset(name).parameters * STATE_BYTES_PER_PARAMETER <= room]
    return fitting[-1] if fitting else CUDA_PRESETS[0]


def _micro_batch(config: RunConfig, gpus: int) -> int:
    if config.global_batch is None:
        return config.micro_batch or DEFAULT_MICRO_BATCH
    per_step = gpus * config.grad_accumulation
    if config.micro_batch is not None and config.micro_batch * per_step != config.global_batch:
        raise ConfigError(
            f"--global-batch {config.global_batch} is not --micro-batch {config.micro_batch} x --grad-accumulation "
            f"{config.grad_accumulation} x {gpus} ranks = {config.micro_batch * per_step}: leave one of them out"
        )
    if config.global_batch % per_step:
        below = config.global_batch // per_step * per_step
        nearest = " or ".join(str(value) for value in (below, below + per_step) if value)
        raise ConfigError(
            f"--global-batch {config.global_batch} cannot be divided by {gpus} ranks x --grad-accumulation "
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
        if plan.world_size > 1 and plan.config.strategy not in ("single", "ddp"):
            notes.append("rankings of sharded strategies on CPU do not carry over to GPUs")
    if plan.oversubscribed:
        notes.append(f"oversubscribed: {plan.world_size} ranks share {available_cores()} cores, times mean little")
    return notes
