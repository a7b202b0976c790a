"""What a run is: every option of `scalelab run`, its range, its default and its meaning, in one place.

The command line, `make run`, the recorded `run.json` and the documentation are all read off `RunConfig`.
A value of None means "decided from the machine and the model" (see `plan.py`); the resolved config in a
run folder holds no such None.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict

from . import strategies
from .errors import ConfigError
from .options import PlainText, option
from .text import redacted_value
from .validation import unknown, validated

# Holds options of the user's model for the ranks, secrets among them, which are in no file.
OPTIONS_VARIABLE = "SCALELAB_MODEL_OPTION"
_TARGET = re.compile(r"(?P<metric>[a-z_][a-z0-9_]*)>=(?P<value>[-+0-9.eE]+)")
_SKIP = re.compile(r"skip:(?P<budget>[0-9]{1,9})", re.ASCII)


def _policy(text: Any) -> Any:
    if isinstance(text, str) and text != "fail" and not skip_budget(text):
        raise ValueError("fail, or skip:N with a whole number N of at least 1, such as skip:10")
    return text


class RunConfig(BaseModel):
    """One run. Field `micro_batch` is option `--micro-batch` and make's `MICRO_BATCH=`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: PlainText | None = option(
        "what", "preset (see docs/model.md), path of a .py file, or module to import", None
    )
    model_option: dict[str, Any] = option(
        "what", "K=V handed to the model's functions; repeatable; V is JSON or text", {}
    )
    data: PlainText | None = option("what", "folder of shards; by default a generated set in the cache folder", None)
    strategy: str = option("what", f"how the ranks share the work: {', '.join(strategies.names())}", "ddp")
    engine: Literal["native", "accelerate"] = option(
        "what", "accelerate runs ddp and fsdp2 through Hugging Face Accelerate, to measure what it costs", "native"
    )
    precision: Literal["fp32", "tf32", "bf16", "bf16-params", "fp16"] = option(
        "what",
        "bf16, fp16: fp32 parameters, computed under autocast (fp16 with loss scaling); tf32: fp32 multiplied in TF32 "
        "on CUDA; bf16-params: bf16 weights and traffic, fp32 master",
        "fp32",
    )
    checkpointing: Literal["none", "full", "selective"] = option(
        "what", "compute activations of each block again in backward: all, or all but matrix products", "none"
    )
    compile: bool = option("what", "torch.compile each block", False)

    gpus: int | None = option(
        "how much", "ranks on this host; by default all CUDA devices, else 2 CPU ranks", None, ge=1, le=1024
    )
    micro_batch: int | None = option("how much", "samples per rank and micro-batch (4)", None, ge=1)
    global_batch: int | None = option("how much", "samples per optimizer step, in place of --micro-batch", None, ge=1)
    grad_accumulation: int = option("how much", "micro-batches per optimizer step", 1, ge=1, le=65536)
    steps: int | None = option(
        "how much", "measured optimizer steps (30 on CPU, 5 in fp16 there, 100 on CUDA)", None, ge=1
    )
    warmup: int = option("how much", "optimizer steps before measuring starts", 5, ge=0)
    eval_every: int = option(
        "how much", "evaluate on held-out scenes every N steps and at the end; 0 is never", 0, ge=0
    )
    target: PlainText | None = option("how much", "METRIC>=X: record when it is reached, e.g. ap_mean>=0.2", None)
    save_every: int = option("how much", "write a sharded checkpoint every N steps; 0 is never", 0, ge=0)

    optimizer: Literal["adamw", "sgd"] = option(
        "knobs", "adamw: betas 0.9, 0.999, decay 0.01; sgd: momentum 0.9", "adamw"
    )
    lr: float = option("knobs", "learning rate", 1e-3, gt=0, le=100, allow_inf_nan=False)
    lr_warmup_steps: int = option("knobs", "steps over which the rate rises linearly from 0", 0, ge=0)
    lr_scaling: Literal["none", "linear", "sqrt"] = option(
        "knobs", "scale the rate by global batch / --base-batch", "none"
    )
    base_batch: int | None = option("knobs", "the batch that --lr is meant for", None, ge=1)
    clip_norm: float | None = option(
        "knobs", "clip the global gradient norm; off unless given", None, gt=0, allow_inf_nan=False
    )
    bucket_mb: float | None = option(
        "knobs", "MiB of gradients per reduction under ddp and zero (25)", None, gt=0, le=65536, allow_inf_nan=False
    )
    overlap: bool | None = option(
        "knobs", "reduce gradients while backward computes, under ddp and zero (on; zero on CPU: off)", None
    )
    accumulation_sync: Literal["each", "last"] | None = option(
        "knobs", "reduce gradients after each micro-batch or the last (last; zero2, zero3: each)", None
    )
    workers: int | None = option("knobs", "loader processes per rank (1 on CPU, up to 8 on CUDA)", None, ge=0, le=256)
    prefetch: int | None = option("knobs", "batches each loader process keeps ready (2)", None, ge=0, le=1024)
    pin: bool | None = option("knobs", "pinned host memory for batches (on with CUDA)", None)
    reader: Literal["indexed", "stream"] = option(
        "knobs", "indexed: a fixed global order; stream: webdataset's pipeline", "indexed"
    )
    bad_data: Annotated[str, BeforeValidator(_policy)] = option(
        "knobs", "fail: stop at a damaged sample; skip:N: leave out and count up to N of them per rank", "fail"
    )

    probe: Literal["on", "off"] = option("measuring", "off leaves the bare loop: total time and nothing else", "on")
    counterfactual: bool = option(
        "measuring",
        "after the measured steps, run some without each cause of their time, and without measuring: what each would "
        "save, with an interval",
        False,
    )
    memory_step: Literal["on", "off"] = option(
        "measuring",
        "after the measured steps, follow every storage through four more: memory by kind and its peak",
        "on",
    )
    profile_steps: int = option(
        "measuring",
        "after the measured steps, run this many under torch's profiler (with source lines up to 5): a trace per rank, "
        "and what it says",
        0,
        ge=0,
        le=20,
    )
    record_grad_norm: bool = option("measuring", "record the global gradient norm of every step", False)
    grad_norm_steps: int | None = option("measuring", "with --record-grad-norm: of the first N steps alone", None, ge=1)
    usd_per_gpu_hour: float | None = option(
        "measuring",
        "price of an hour of a GPU (on CPU: of a rank); by default the catalogue's, docs/cost.md",
        None,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
    )
    usd_per_kwh: float | None = option(
        "measuring", "price of a kilowatt-hour, for the energy of the cards", None, gt=0, le=1e6, allow_inf_nan=False
    )
    seed: int = option("measuring", "seeds weights and data order", 0, ge=0, lt=2**32)
    deterministic: bool = option("measuring", "deterministic kernels: the same losses bit for bit on CPU", False)

    device: Literal["auto", "cpu", "cuda"] = option("where", "auto takes CUDA where there is any", "auto")
    launcher: Literal["auto", "fork", "torchrun"] = option(
        "where", "auto: fork on CPU (fast start), torchrun on CUDA", "auto"
    )
    nodes: int = option("where", "hosts that share the run; the same command is given on each", 1, ge=1, le=1024)
    node_rank: int = option("where", "which of the hosts this is; 0 is where the report is written", 0, ge=0)
    rendezvous: PlainText | None = option(
        "where", "HOST:PORT at which host 0 waits for the others: an address of host 0 that they reach", None
    )
    rendezvous_timeout: float = option("where", "seconds to wait for the other hosts", 300.0, gt=0, le=86400)
    hang_seconds: float | None = option(
        "where",
        "seconds without progress after which ranks count as hung (3 x the 99th percentile of a step, at least 30); "
        "0 is never",
        None,
        ge=0,
        allow_inf_nan=False,
    )
    grace: float = option(
        "where",
        "seconds that ranks get to end their step after Ctrl-C, SIGTERM or SIGUSR1",
        10.0,
        ge=0,
        le=86400,
        allow_inf_nan=False,
    )
    out: PlainText = option("where", "folder in which the run folder is made", "runs")
    name: PlainText | None = option("where", "a word for the run folder's name", None)


def build(values: Mapping[str, Any], problems: Iterable[str] = ()) -> RunConfig:
    """The config that `values` (texts or typed) describe.

    Raises ConfigError with every problem at once: those handed in, values out of range, and conflicts
    between options.
    """
    config, found = validated(RunConfig, values)
    found = [*problems, *found, *conflicts(config, given=set(values))]
    if found:
        raise ConfigError(found, hint="scalelab run --help lists every option with its range")
    return config


def conflicts(config: RunConfig, given: set[str]) -> list[str]:
    """What in `config` contradicts itself, one line each with the way out; needs no hardware."""
    problems = []
    if config.strategy not in strategies.names():
        problems.append(unknown("--strategy", config.strategy, strategies.names()))
    if config.lr_scaling != "none" and config.base_batch is None:
        problems.append(f"--lr-scaling {config.lr_scaling} needs --base-batch: the global batch that --lr is meant for")
    if config.base_batch is not None and config.lr_scaling == "none":
        problems.append("--base-batch does nothing without --lr-scaling linear or sqrt: give both or neither")
    if config.target is not None:
        if parse_target(config.target) is None:
            problems.append(f"--target: given {config.target!r}, allowed METRIC>=NUMBER such as 'ap_mean>=0.2'")
        if not config.eval_every:
            problems.append("--target is looked at in evaluations: give --eval-every N with it")
    problems += _host_conflicts(config)
    for name in ("record_grad_norm", "counterfactual", "profile_steps", "memory_step"):
        if name in given and getattr(config, name) not in (False, 0, "off") and config.probe == "off":
            problems.append(f"--{name.replace('_', '-')} needs --probe on")
    if config.grad_norm_steps is not None and not config.record_grad_norm:
        problems.append("--grad-norm-steps does nothing without --record-grad-norm: give both or neither")
    if config.probe == "off" and (config.eval_every or config.save_every):
        problems.append("--probe off times the bare loop: leave out --eval-every and --save-every, which interrupt it")
    if is_user_model(config.model):
        for name in sorted({"bad_data", "reader", "workers", "pin"} & given):
            problems.append(
                f"--{name.replace('_', '-')} belongs to our own loader; --model {config.model} brings its own or none: "
                "leave it out"
            )
        if config.eval_every:
            problems.append("--eval-every needs one of our presets: held-out metrics are defined for them alone")
    if config.workers == 0 and config.prefetch and not is_user_model(config.model):
        problems.append("--prefetch needs loader processes: give --workers 1 or more, or leave --prefetch out")
    return problems


def _host_conflicts(config: RunConfig) -> list[str]:
    problems = []
    if config.nodes > 1 and config.rendezvous is None:
        problems.append(
            f"--nodes {config.nodes} needs --rendezvous HOST:PORT, an address of host 0 that all hosts reach"
        )
    if config.nodes == 1 and config.rendezvous is not None:
        problems.append("--rendezvous is for several hosts: give --nodes N with it, or leave it out")
    if config.node_rank >= config.nodes:
        allowed = "0" if config.nodes == 1 else f"0 to {config.nodes - 1}"
        problems.append(f"--node-rank: given {config.node_rank}, allowed {allowed} with --nodes {config.nodes}")
    if config.rendezvous is not None and parse_rendezvous(config.rendezvous) is None:
        problems.append(f"--rendezvous: given {config.rendezvous!r}, allowed HOST:PORT such as 10.0.0.1:29400")
    return problems


def parse_rendezvous(text: str) -> tuple[str, int] | None:
    """`"10.0.0.1:29400"` as host and port, `"[fe80::1]:29400"` too; None when it has another form."""
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9a-fA-F:.%\w]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})", text)
    if match is None or not 0 < int(match["port"]) < 65536:
        return None
    return match["v6"] or match["host"], int(match["port"])


def shown(config: RunConfig) -> dict[str, Any]:
    """`config` as files have it: options of the user's model without secrets."""
    return {**config.model_dump(), "model_option": redacted_value("model_option", config.model_option)}


def as_given(recorded: Mapping[str, Any]) -> RunConfig:
    """The config that `shown` recorded, with what it hid: ranks have that from their launcher's environment alone."""
    given = os.environ.get(OPTIONS_VARIABLE)
    return RunConfig(**{**recorded, **({} if given is None else {"model_option": orjson.loads(given)})})


def is_user_model(model: str | None) -> bool:
    """Whether `--model` names a file or a module and not one of our presets."""
    return model is not None and (model.endswith(".py") or "/" in model or "." in model or "\\" in model)


def parse_target(text: str) -> tuple[str, float] | None:
    """`"ap_mean>=0.2"` as `("ap_mean", 0.2)`; None when it has another form."""
    match = _TARGET.fullmatch(text.replace(" ", ""))
    if match is None:
        return None
    try:
        return match["metric"], float(match["value"])
    except ValueError:
        return None


def skip_budget(bad_data: str) -> int:
    """How many damaged samples a rank may leave out under `--bad-data`: 0 for `fail` and for what is neither."""
    match = _SKIP.fullmatch(bad_data)
    return int(match["budget"]) if match else 0


def name_of(config: RunConfig) -> str:
    """A short word for the run: the given name, else model and strategy."""
    model = Path(config.model or "model").stem
    return config.name or f"{model}-{config.strategy}"
