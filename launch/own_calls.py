"""The calls of a probe within a loop that is not ours: what is refused, what is left out, and what is said of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from numbers import Real
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from .own_job import say
from .text import redacted

OwnEvent = Literal["evaluation", "checkpoint"]
ENDED_WITHIN = "the loader ended within a step: that step is left out, and what it took is in between_epochs"
CLOSED = "the probe is closed: what the loop does from here on is not recorded"
NO_STEP = "Probe.loss: no step is open, so the loss is left out; call it within `with probe.step():`"


def check_warmup(warmup: Any) -> None:
    """Raises ValueError for what is no number of steps."""
    if not isinstance(warmup, int) or warmup < 0:
        raise ValueError(f"Probe.attach: warmup: given {warmup!r}, allowed a whole number at least 0")


def check_event(kind: Any, *, in_step: bool, in_event: bool) -> None:
    """Raises ValueError where no event of `kind` can begin: steps and events tile the time."""
    if kind not in get_args(OwnEvent):
        raise ValueError(f"Probe.event: given {kind!r}, allowed {' or '.join(map(repr, get_args(OwnEvent)))}")
    if in_step:
        raise ValueError("Probe.event: a step is open; evaluate and save between steps")
    if in_event:
        raise ValueError("Probe.event: an event is open; end it before the next")


def check_step(*, in_step: bool, in_event: bool) -> None:
    """Raises ValueError where no step can begin."""
    if in_step:
        raise ValueError("Probe.step: a step is open; end it before the next begins: one is around each update")
    if in_event:
        raise ValueError("Probe.step: an event is open; steps come before it or after it")


@contextlib.contextmanager
def recorded_failing(event: AbstractContextManager[dict[str, Any]]) -> Iterator[None]:
    """Around `event`, which an error within does not keep from being recorded: as one that failed."""
    failure = None
    try:
        with event as values:
            try:
                yield
            except Exception as error:
                failure, values["failed"] = error, redacted(f"{type(error).__name__}: {error}")
    except Exception:
        if failure is None:  # else the device failed with it, and the first error is the one to see
            raise
    if failure is not None:
        raise failure


def number_in(loss: Any, device: torch.device) -> torch.Tensor | str:
    """The one number that `loss` is, as a tensor that is read with others on `device`; or what it is instead."""
    what = type(loss).__name__
    if isinstance(loss, torch.Tensor):
        if loss.numel() != 1 or loss.is_meta or loss.is_complex():
            return "tensor that is not one real number"
        if device.type != "cuda" or loss.device.type == "cuda":
            return loss
        loss = loss.item()
    elif getattr(loss, "size", None) == 1 and hasattr(loss, "item"):  # an array of one element
        loss = loss.item()
    if not isinstance(loss, Real):
        return what
    try:
        number = float(loss)
    except OverflowError:
        return f"{what} that no float holds"
    # Filled where it is: to copy it to a card would wait for the card.
    at = device if device.type == "cuda" else torch.device("cpu")
    return torch.full((), number, dtype=torch.float64, device=at)


def no_number(what: str) -> str:
    """What is said of a loss that is none."""
    return f"Probe.loss: given a {what}, which is left out; give a number or a tensor of one element, as of loss.mean()"


def one_runs(before: Path, now: Path) -> str:
    """What is said where a probe is attached while another runs."""
    latest = now.parent / "latest"
    return f"Probe.attach: the probe of {before} still runs; the new one records in {now}, where {latest} points now"


def once() -> Callable[[str], None]:
    """Says each text that it is called with the first time."""
    told: set[str] = set()

    def say_once(text: str) -> None:
        if text not in told:
            told.add(text)
            say(text)

    return say_once
