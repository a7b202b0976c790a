"""What DDP's reducer sends: its buckets, between large operations that leave the caches cold.

All is in one place and at hand, as each attribute and call more costs some microseconds there. The reducer, in C++,
calls from autograd's engine itself, where a hook would have a frame of its own. It takes the work's future, of which
our callback at the end of backward knows without a wrapper around it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch.autograd import graph as autograd_graph

from .comm import Collective

_ENGINE = autograd_graph._engine_run_backward.__code__


def of_engine(group: Any, general: Callable[..., Any]) -> Callable[..., Any]:
    """`allreduce` of a recording group; what DDP's reducer did not send goes to `general`, with the group in front."""
    recorder, send, clock = group.recorder, group.backend.allreduce, group.recorder.clock
    known: dict[tuple[int, str | None], tuple[int, bool]] = {}

    def allreduce(*arguments: Any, **options: Any) -> Any:
        step = recorder.step
        if step is None or recorder.free or options or type(arguments[0]) is not list or len(arguments[0]) != 1:
            return general(group, *arguments, **options)
        key = (arguments[0][0].nbytes, recorder.phase)
        shape, from_engine = known.get(key, (None, False))
        if shape is None or step.exact:
            # To ask costs 15 us: of messages of one size in one phase, those of some steps answer for all.
            from_engine = _from_the_engine()
            shape = recorder.shape("all_reduce", key[0], group.label)
            known[key] = shape, from_engine and known.get(key, (shape, True))[1]
        if not from_engine:
            return general(group, *arguments)
        one = Collective()
        one.shape = shape
        one.handed_in = clock()
        one.work = work = send(*arguments)
        step.collectives.append(one)
        if step.exact:
            recorder.stamp_end(one, work)
        if not recorder.of_engine:
            recorder.engine_sends()
        recorder.of_engine.append(one)
        return work

    return allreduce


def _from_the_engine() -> bool:
    """Whether the caller's caller is autograd's engine itself."""
    try:
        return sys._getframe(2).f_code is _ENGINE
    except ValueError:  # on a thread of the engine, which has no frames
        return True
