"""What a rank writes of its own end: `errors/r000.json`, from whichever exception ended it."""

from __future__ import annotations

import socket
import sys
import time
import traceback
from dataclasses import dataclass
from typing import Any

from ..data.readers.delivery import loader_death
from ..profiles.runfolder import RunFolder
from ..profiles.storage import OutputError
from .errors import Exit, exit_code_of
from .out_of_memory import Training, explain
from .ranks import Rank, is_communication_error
from .strategies._contract import Sharded
from .supervision import collectives
from .supervision.pulse import Pulse
from .text import redacted


@dataclass
class AtHand:
    """What a rank has got so far, for the case that its memory ends and has to be accounted for."""

    training: Training | None = None
    run: Sharded | None = None
    batch: Any = None


def write_failure(folder: RunFolder, rank: Rank, pulse: Pulse, error: BaseException, at_hand: AtHand) -> Exit:
    """Write down what ended this rank, in which phase of which step, and when; returns its exit code."""
    at, trace = time.monotonic(), traceback.format_exc()
    if (death := loader_death(error)) is not None:
        error = death
    code = _exit_code(error)
    memory = None
    if code is Exit.OUT_OF_MEMORY and at_hand.training is not None:
        pulse.patient()
        memory = explain(error, at_hand.training, at_hand.run, at_hand.batch)
    communication, message = is_communication_error(error), _text(error)
    if communication:
        # Should every rank only have met an error of its peers: which of them was somewhere else?
        own = collectives.dump_file(folder.path, rank.rank)
        collectives.dump(own)
        message += collectives.last_of(collectives.read(folder.path, [rank.rank]).get(rank.rank, ()))
    failure = {
        "rank": rank.rank,
        "host": socket.gethostname(),
        "at": at,
        "exit_code": int(code),
        "type": type(error).__name__,
        "message": redacted(message),
        "hint": memory["hint"] if memory else getattr(error, "hint", ""),
        "phase": pulse.phase,
        "step": pulse.step,
        "consequence": communication or getattr(error, "elsewhere", False),
        "traceback": redacted(trace),
        "memory": memory,
    }
    try:
        folder.write(f"errors/{folder.error_file(rank.rank).name}", failure)
    except OutputError:
        # The disk that ended this rank has no room for its last words either.
        pulse.last_words({**failure, "traceback": "", "memory": None})
    print(failure["traceback"], *([memory["table"]] if memory else []), sep="\n", file=sys.stderr)
    return code


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failure:  # the user's class can do anything
        return f"{type(error).__name__}, whose text could not be had ({type(failure).__name__})"


def _exit_code(error: BaseException) -> Exit:
    """In a rank, what is nobody's known error means that a worker died: the model's code runs here too."""
    code = exit_code_of(error)
    return Exit.WORKER_DIED if code is Exit.INTERNAL else code
