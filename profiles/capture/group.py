"""The one seam for communication: a process group that hands every collective on and tells the recorder.

It is a Python subclass of torch's `ProcessGroup`, registered as a backend, so that DDP's reducer in C++, FSDP2 and
DeepSpeed all go through it, and groups that a library makes for itself as well. The real group does the work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed
from torch._C import _distributed_c10d as c10d
from torch.distributed import ProcessGroup

from ..records import RECORDED
from . import free_wire
from .comm import Collective, CommRecorder, Mode
from .reducer import of_engine

c10d_world: Any = distributed.distributed_c10d._world


def recorded_backend(backend: str, recorder: CommRecorder) -> str:
    """The name of a backend, for `init_process_group`, that is `backend` (gloo or nccl) and tells `recorder`."""

    def create(options: Any, backend_options: Any = None) -> ProcessGroup:
        return _group(backend, recorder, options)

    name = RECORDED + backend
    if name not in distributed.Backend.backend_list:
        devices = ["cuda"] if backend == "nccl" else ["cpu"]
        distributed.Backend.register_backend(name, _Creator(), extended_api=True, devices=devices)
    creator = distributed.Backend._plugins[name.upper()].creator_fn
    creator.create = create  # pyright: ignore[reportFunctionMemberAccess]
    return name


class _Creator:
    """What torch calls to make a group; a process that joins anew registers no second time."""

    create: Callable[..., ProcessGroup]

    def __call__(self, options: Any, backend_options: Any = None) -> ProcessGroup:
        return self.create(options, backend_options)


def _group(backend: str, recorder: CommRecorder, options: Any) -> RecordingGroup:
    """A recording group around a new one of `backend`, as torch makes it in `_new_process_group_helper`."""
    rank, size = options.group_rank, options.group_size
    if backend == "nccl":
        settings = c10d.ProcessGroupNCCL.Options()
        settings.global_ranks_in_group = options.global_ranks_in_group
        settings.group_name = options.group_id
        settings._timeout = options.timeout
        made: Any = c10d.ProcessGroupNCCL(options.store, rank, size, settings)
        kind, device = ProcessGroup.BackendType.NCCL, torch.device("cuda")
    else:
        made = c10d.ProcessGroupGloo(options.store, rank, size, options.timeout)
        kind, device = ProcessGroup.BackendType.GLOO, torch.device("cpu")
    made._set_sequence_number_for_group()
    inner = ProcessGroup(options.store, rank, size)
    group = RecordingGroup(inner, made, recorder, rank, size)
    group.on_gloo = backend == "gloo"
    for each in (inner, group):
        each._set_default_backend(kind)
        each._register_backend(device, kind, made)
    inner._set_group_name(options.group_id)
    return group


def record_default_group(recorder: CommRecorder, device: str) -> None:
    """Put a recording group in the place of the default group, which a program has made. What is wrapped from now on
    sends through it, and groups made like the default one record as well."""
    world, inner = c10d_world, distributed.distributed_c10d._get_default_group()
    name, store = world.pg_map[inner]
    backend = inner._get_backend(torch.device(device))
    group = RecordingGroup(inner, backend, recorder, inner.rank(), inner.size())
    group.on_gloo = isinstance(backend, c10d.ProcessGroupGloo)
    kind = ProcessGroup.BackendType.GLOO if group.on_gloo else ProcessGroup.BackendType.NCCL
    group._set_default_backend(kind)
    group._register_backend(torch.device(device), kind, backend)
    group._set_group_name(inner.group_name)
    group._set_group_desc(inner.group_desc)
    if name in ("gloo", "nccl"):
        name = recorded_backend(name, recorder)
    world.pg_map[group] = (name, store)
    for table in (world.pg_names, world.pg_group_ranks, world.pg_backend_config, world.pg_to_tag):
        if inner in table:
            table[group] = table[inner]
    for groups in world.tags_to_pg.values():
        groups[:] = [group if each is inner else each for each in groups]
    c10d._unregister_process_group(inner.group_name)
    c10d._register_process_group(inner.group_name, group)
    distributed.distributed_c10d._update_default_pg(group)


class RecordingGroup(ProcessGroup):
    """`inner`, a group with the one `backend`, with every collective recorded; all else is its own."""

    def __init__(self, inner: ProcessGroup, backend: Any, recorder: CommRecorder, rank: int, size: int) -> None:
        super().__init__(rank, size)  # pyright: ignore[reportCallIssue] (the stub knows one constructor of two)
        self.inner = inner
        self.backend = backend
        self.recorder = recorder
        self.on_gloo = False
        self.label = ""
        self.allreduce = of_engine(self, _ALL_REDUCE)
        recorder.seam(self, _switch)

    def _set_group_name(self, name: Any) -> None:
        super()._set_group_name(name)
        self.label = name


class PassingGroup(ProcessGroup):
    """What a recording group is while its recorder is off: each method is a function of C that hands on to `inner`.

    It must have every one of them. Of one that a class in Python lacks, torch runs the backend's own while it holds the
    interpreter's lock (PyProcessGroup.hpp), for which gloo's threads may wait while they hold gloo's: a deadlock.
    """


def _switch(group: Any, mode: Mode) -> None:
    """Make `group` record, pass, or pass twice what autograd's engine sends: through a second group like it."""
    for method in _METHODS:
        group.__dict__.pop(method, None)
    if mode == "record":
        group.__class__ = RecordingGroup
        group.allreduce = of_engine(group, _ALL_REDUCE)
        return
    group.__class__ = PassingGroup
    for method in _METHODS:
        setattr(group, method, functools.partial(getattr(group.inner, method)))
    if mode == "pass_twice":
        second: Any = PassingGroup(group.rank(), group.size())  # pyright: ignore[reportCallIssue]
        second.allreduce = group.allreduce
        # Not the attribute just set, which would go past torch's way into a class in Python.
        group.allreduce = functools.partial(ProcessGroup.allreduce, second)
        group.second = second


class RecordedWork(c10d.Work):
    """A collective under way: `work`, with each wait for it noted."""

    def __init__(self, work: Any, collective: Collective, recorder: CommRecorder, after: Callable[[], None] | None):
        super().__init__()
        self._work = work
        self._collective = collective
        self._recorder = recorder
        self._after = after

    def wait(self, timeout: Any = None) -> bool:
        begin = self._recorder.timeline.mark()
        done = self._work.wait() if timeout is None else self._work.wait(timeout)
        if self._after is not None:
            self._after, after = None, self._after
            after()
        self._recorder.waited(self._collective, begin)
        return done

    def get_future(self) -> Any:
        self._recorder.future_taken(self._collective)
        return self._work.get_future()

    def is_completed(self) -> bool:
        return self._work.is_completed()

    def is_success(self) -> bool:
        return self._work.is_success()

    def exception(self) -> Any:
        return self._work.exception()

    def result(self) -> Any:
        return self._work.result()

    def source_rank(self) -> int:
        return self._work.source_rank()

    def synchronize(self) -> None:
        self._work.synchronize()

    def block_current_stream(self) -> None:
        self._work.block_current_stream()


def _bytes(value: Any) -> int:
    """Bytes of a tensor, or of all in a list."""
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(_bytes(each) for each in value)


# Method of ProcessGroup -> kind, which argument holds the whole unsharded payload, what a free wire leaves behind.
# Names differ by version of torch: those that a version does not have are left out.
_COLLECTIVES: dict[str, tuple[str, int | None, Callable[[ProcessGroup, Sequence[Any]], None]]] = {
    "allreduce": ("all_reduce", 0, free_wire.keep),
    "allreduce_coalesced": ("all_reduce", 0, free_wire.keep),
    "allgather": ("all_gather", 0, free_wire.gather),
    "allgather_coalesced": ("all_gather", 0, free_wire.gather),
    "_allgather_base": ("all_gather", 0, free_wire.gather),
    "all_gather_single": ("all_gather", 0, free_wire.gather),
    "allgather_into_tensor_coalesced": ("all_gather", 0, free_wire.gather),
    "all_gather_single_coalesced": ("all_gather", 0, free_wire.gather),
    "reduce_scatter": ("reduce_scatter", 1, free_wire.scatter),
    "_reduce_scatter_base": ("reduce_scatter", 1, free_wire.scatter),
    "reduce_scatter_single": ("reduce_scatter", 1, free_wire.scatter),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 1, free_wire.scatter),
    "reduce_scatter_single_coalesced": ("reduce_scatter", 1, free_wire.scatter),
    "alltoall": ("all_to_all", 1, free_wire.exchange),
    "alltoall_base": ("all_to_all", 1, free_wire.exchange),
    "all_to_all_single": ("all_to_all", 1, free_wire.exchange),
    "broadcast": ("broadcast", 0, free_wire.keep),
    "reduce": ("reduce", 0, free_wire.keep),
    "gather": ("gather", 1, free_wire.exchange),
    "scatter": ("scatter", 0, free_wire.exchange),
    "send": ("send", 0, free_wire.keep),
    "recv": ("recv", 0, free_wire.receive),
    "recv_anysource": ("recv", 0, free_wire.receive),
    "barrier": ("barrier", None, free_wire.keep),
}
# On gloo these are an all-reduce of a copy, cut afterwards (ProcessGroupGloo.cpp), as which their end can be seen.
_AS_ALL_REDUCE = frozenset({"_reduce_scatter_base", "reduce_scatter_single"})


def _done(result: list[torch.Tensor]) -> Any:
    future: Any = torch.futures.Future()
    future.set_result(result)
    return c10d._create_work_from_future(future)  # pyright: ignore[reportAttributeAccessIssue]


def _recorded(method: str) -> Callable[..., Any]:
    kind, payload_at, free = _COLLECTIVES[method]

    def call(self: RecordingGroup, *arguments: Any, **options: Any) -> Any:
        recorder = self.recorder
        if recorder.free:
            free(self, arguments)
            return _done(free_wire.tensors(arguments[0]) if payload_at is not None else [])
        if recorder.step is None:
            return getattr(self.inner, method)(*arguments, **options)
        payload = 0 if payload_at is None else _bytes(arguments[payload_at])
        collective = recorder.begin(kind, payload, self.label)
        after = None
        if self.on_gloo and method in _AS_ALL_REDUCE:
            work, after = _reduce_scatter_on_gloo(self, *arguments, **options)
        else:
            work = getattr(self.inner, method)(*arguments, **options)
        recorder.handed_in(collective, work)
        return RecordedWork(work, collective, recorder, after)

    call.__name__ = method
    return call


def _reduce_scatter_on_gloo(
    group: RecordingGroup, output: torch.Tensor, whole: torch.Tensor, opts: Any = None
) -> tuple[Any, Callable[[], None]]:
    """A reduce-scatter as gloo does it, and what is left to do when it has been waited for."""
    options = c10d.AllreduceOptions()
    if opts is not None:
        options.reduceOp, options.timeout = opts.reduceOp, opts.timeout
    reduced = whole.clone()
    work = group.inner.allreduce([reduced], options)

    def cut() -> None:
        output.view(-1).copy_(reduced.view(group.size(), -1)[group.rank()])

    return work, cut


_METHODS = [method for method in _COLLECTIVES if hasattr(ProcessGroup, method)]
for _method in _METHODS:
    setattr(RecordingGroup, _method, _recorded(_method))
_ALL_REDUCE = RecordingGroup.allreduce
