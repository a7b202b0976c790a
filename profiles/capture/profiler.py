"""torch's profiler around a few steps, its trace in the run folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ..storage import PARTIAL


class Profiler:
    """Records operators with their shapes and stacks, kernels and copies, between `start` and `stop`; `export` writes
    them to `path` (`.json.gz`). What fails is kept in `failed` and stops nothing: it is no reason to lose a run."""

    def __init__(self, path: Path, device: torch.device, steps: int, make: Callable[..., Any] = profile) -> None:
        self._path = path
        self._device = device
        self._stacks = steps <= STACK_STEPS
        self._make = make
        self._profile: Any = None
        self.failed: str | None = None

    def start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._attempt(
            "start", lambda: self._started(self._make(activities=activities, with_stack=self._stacks, **OPTIONS))
        )

    def _started(self, made: Any) -> None:
        made.start()
        self._profile = made

    def stop(self) -> None:
        if self._profile is not None:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self._attempt("stop", self._profile.stop)

    def export(self) -> None:
        """Write the trace: a reader sees it whole or not at all."""
        made, self._profile = self._profile, None
        if made is not None and self.failed is None:
            self._attempt("write its trace", lambda: self._written(made))

    def _written(self, made: Any) -> None:
        self._path.parent.mkdir(exist_ok=True)
        partial = self._path.with_name(f"{PARTIAL}-{self._path.name}")
        try:
            made.export_chrome_trace(str(partial))
            os.replace(partial, self._path)
        finally:
            partial.unlink(missing_ok=True)

    def _attempt(self, what: str, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:  # whatever its library says: training goes on
            first = (str(error).splitlines() or [""])[0]
            self.failed = f"torch's profiler did not {what}: {type(error).__name__}: {first}"


# Shapes and stacks cost time, not truth: the steps of the window are never counted. Memory has a step of its own.
OPTIONS = {"record_shapes": True, "profile_memory": False, "acc_events": False}
# With stacks a step of 3,500 operators takes 4 MB packed, most of it frames: for more steps they are left out.
STACK_STEPS = 5
