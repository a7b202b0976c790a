"""What is refused before anything starts: combinations that cannot work, or that a library would silently replace.

`refusals` needs no hardware; `lacks` asks what this machine has. docs/strategies.md says how each was found.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

from . import strategies
from .config import RunConfig
from .devices import Devices
from .precision import unsupported_precision
from .setting import Setting
from .strategies._contract import Strategy

# TF32 and bf16 came with Ampere (NVIDIA, "CUDA C++ Programming Guide", compute capabilities); before it, torch
# emulates bf16 and ignores TF32.
AMPERE = (8, 0)
CXX_COMPILERS = ("g++", "clang++", "c++")
C_COMPILERS = ("gcc", "clang", "cc")


def refusals(config: RunConfig, setting: Setting, strategy: Strategy) -> list[str]:
    """Why `setting` cannot be trained as asked, one line each with the way out; empty if it can.

    `config` is what was asked: an option left open there is never refused.
    """
    name = config.strategy
    found = []
    if setting.engine not in strategy.engines:
        found.append(
            f"--engine {setting.engine}: {name} runs under {' or '.join(strategy.engines)} only; use --engine native"
        )
    if config.bucket_mb is not None and "bucket_mb" not in strategy.knobs:
        found.append(f"--bucket-mb: {name} has no buckets of gradients, it would be ignored; leave it out")
    if config.overlap is not None and "overlap" not in strategy.knobs:
        found.append(f"--overlap: {name} has no such switch, it would be ignored; leave it out")
    sync = config.accumulation_sync
    if sync is not None and sync not in strategy.accumulation_syncs and setting.accumulation > 1:
        found.append(
            f"--accumulation-sync {sync}: {name} can reduce at '{strategy.accumulation_syncs[0]}' only; leave it out, "
            f"or use {_able(sync)}"
        )
    reasons = (unsupported_precision(setting.precision, setting.device), strategy.unsupported(setting))
    options = (f"--precision {setting.precision}", f"--strategy {name}")
    found += [f"{option}: {reason}" for option, reason in zip(options, reasons, strict=True) if reason is not None]
    return found


def lacks(setting: Setting, strategy: Strategy, devices: Devices) -> list[str]:
    """What this machine lacks for `setting`, one line each with the way out."""
    found = [
        f"{package} is not installed: pip install {package}"
        for package in strategy.packages(setting)
        if importlib.util.find_spec(package) is None
    ]
    if setting.compile and (lack := lacks_compiler(setting.device)):
        found.append(f"--compile: {lack}, or leave it out")
    capability = devices.compute_capability
    if setting.precision in ("tf32", "bf16", "bf16-params") and capability is not None and capability < AMPERE:
        shown = ".".join(map(str, capability))
        found.append(
            f"--precision {setting.precision}: {devices.name} has compute capability {shown} and cannot compute in it "
            "(8.0 and later can); use fp16 or fp32"
        )
    return found


def lacks_compiler(device: str) -> str | None:
    """What torch.compile's backend needs and does not find: a C++ compiler on CPU; Triton and a C compiler on CUDA."""
    variable, known = ("CXX", CXX_COMPILERS) if device == "cpu" else ("CC", C_COMPILERS)
    given = os.environ.get(variable)
    if shutil.which(given) is None if given else not any(map(shutil.which, known)):
        language = "C++" if device == "cpu" else "C"
        return f"needs a {language} compiler, found none ({given or ', '.join(known)}); install one"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return "needs triton: pip install triton"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "needs Python's headers (Python.h); install python3-dev"
    return None


def _able(sync: str) -> str:
    """The strategies that can reduce at that moment."""
    return " or ".join(name for name in strategies.names() if sync in strategies.load(name).accumulation_syncs)
