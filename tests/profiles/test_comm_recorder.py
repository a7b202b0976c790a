"""What a rank keeps of its collectives, under a clock that the test owns; and the group that they go through."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest
import torch
from scalelab.launch.ranks import Rank
from scalelab.launch.setting import Setting
from scalelab.launch.strategies import ddp
from scalelab.launch.strategies._native import NativeSharded
from scalelab.profiles.capture.comm import CommRecorder, Mode
from scalelab.profiles.records import PHASES
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from tests.support import ranks


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def opened(at: int = 0) -> tuple[CommRecorder, Clock]:
    clock = Clock()
    clock.now = at
    recorder = CommRecorder(clock)
    recorder.open()
    recorder.phase = "forward"
    return recorder, clock


def test_times_count_from_the_begin_of_the_step() -> None:
    recorder, clock = opened(1000)
    clock.now = 1010
    one = recorder.begin("all_reduce", 8, "0")
    one.waits += ((1020, 1050, "forward"),)
    one.ended = 1045
    _, record = recorder.record(recorder.close(), 1000, 1000)
    assert (record.handed_in_ns, record.ended_ns, record.waits) == ([10], [45], [0, 20, 50])
    assert not record.waited_in


def test_a_wait_in_another_phase_names_it() -> None:
    """A collective of forward that the optimizer waits for, and one that is waited for between the phases."""
    recorder, clock = opened()
    first, second = recorder.begin("all_reduce", 8, "0"), recorder.begin("all_reduce", 8, "0")
    recorder.phase = "optimizer"
    clock.now = 30
    recorder.waited(first, 10)
    recorder.phase = None
    clock.now = 50
    recorder.waited(second, 40)
    _, record = recorder.record(recorder.close(), 0, 0)
    assert record.waits == [0, 10, 30, 1, 40, 50]
    assert record.waited_in == [0, PHASES.index("optimizer"), 1, -1]


def test_who_waited_saw_the_end() -> None:
    """The callback of an end may come late or, where the backend offers none, never."""
    recorder, _ = opened()
    ends: tuple[int | None, ...] = (None, 70)
    for ended in ends:
        one = recorder.begin("all_reduce", 8, "0")
        one.waits += ((20, 50, "forward"), (80, 81, "forward"))
        one.ended = ended
    _, record = recorder.record(recorder.close(), 0, 0)
    assert record.ended_ns == [50, 50]


def test_a_plan_is_told_once() -> None:
    """Steps with the same collectives refer to one list; another order, size or phase is another one."""
    recorder, _ = opened()
    numbers, told = [], []
    for kinds in (("a", "b"), ("a", "b"), ("b", "a"), ("a", "b"), ()):
        recorder.open()
        for kind in kinds:
            recorder.begin(kind, 8, "0")
        plan, record = recorder.record(recorder.close(), 0, 0)
        numbers.append(record.plan)
        told += [[each.kind for each in plan.collectives]] if plan else []
    assert numbers == [0, 0, 1, 0, 2]
    assert told == [["a", "b"], ["b", "a"], []]


class Work:
    """A backend's work, done when told so."""

    def __init__(self, done: bool = False) -> None:
        self.done = done

    def is_completed(self) -> bool:
        return self.done

    def wait(self) -> None:
        self.done = True


def test_an_end_is_seen_where_the_thread_next_comes_by() -> None:
    """At the next collective, at the edge of a phase, or after the step."""
    recorder, clock = opened()
    works = []
    for _ in range(3):
        works.append(Work())
        recorder.handed_in(recorder.begin("all_reduce", 8, "0"), works[-1])
    works[0].done, clock.now = True, 10
    recorder.begin("barrier", 0, "0")
    works[1].done, clock.now = True, 20
    recorder.look(clock.now)
    step = recorder.close()
    assert not step.complete(25)
    works[2].done = True
    assert step.complete(30)
    _, record = recorder.record(step, 0, 0)
    assert record.ended_ns == [10, 20, 30, None]


# What ranks do with the real group.


def through_both(rank: Rank) -> dict[str, list[Any]]:
    """The results of collectives on the recording group, open and not, and on gloo's own."""
    plain = distributed.new_group(backend="gloo")
    found: dict[str, list[Any]] = {}
    for name in ("plain", "closed", "open"):
        if name == "open":
            ranks.recorder.open()
        found[name] = [result.tolist() for result in collectives(rank, plain if name == "plain" else None)]
    ranks.recorder.close()
    return found


def collectives(rank: Rank, group: Any) -> list[torch.Tensor]:
    world = rank.world_size
    whole = torch.randn(world * 5, 3, generator=torch.Generator().manual_seed(rank.rank))
    results = [whole.clone(), whole.clone(), torch.zeros(5, 3), torch.zeros(5, 3), torch.zeros(world * world * 5, 3)]
    distributed.all_reduce(results[0], group=group)
    distributed.broadcast(results[1], 1, group=group)
    distributed.reduce_scatter_tensor(results[2], whole, group=group)
    work = distributed.reduce_scatter_tensor(results[3], whole, op=distributed.ReduceOp.MAX, group=group, async_op=True)
    assert work is not None
    work.wait()
    work.wait()
    distributed.all_gather_into_tensor(results[4], whole, group=group)
    results += [torch.zeros_like(whole) for _ in range(world)]
    distributed.all_gather(results[5:], whole, group=group)
    results.append(torch.zeros_like(whole))
    distributed.all_to_all_single(results[-1], whole, group=group)
    objects: list[Any] = [None] * world
    distributed.all_gather_object(objects, rank.rank, group=group)
    assert objects == list(range(world))
    distributed.barrier(group=group)
    return results


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_the_recording_group_changes_no_bit(world_size: int) -> None:
    """Every collective gives what gloo's own group gives, whether a step is open or not."""
    for found in ranks.run_ranks(through_both, world_size):
        for name in ("closed", "open"):
            assert found[name] == found["plain"]


def without_a_peer(rank: Rank) -> list[bool]:
    """Rank 0 alone runs collectives on a free wire."""
    if rank.rank != 0:
        return []
    ranks.recorder.free = True
    try:
        return [bool(result.isfinite().all()) for result in collectives_alone(rank)]
    finally:
        ranks.recorder.free = False


def collectives_alone(rank: Rank) -> list[torch.Tensor]:
    whole = torch.randn(rank.world_size * 5, 3)
    nan = torch.full((5, 3), torch.nan)
    results = [whole.clone(), nan.clone(), torch.full((rank.world_size**2 * 5, 3), torch.nan)]
    distributed.all_reduce(results[0])
    distributed.reduce_scatter_tensor(results[1], whole)
    distributed.all_gather_into_tensor(results[2], whole)
    results += [torch.full_like(whole, torch.nan) for _ in range(rank.world_size)]
    distributed.all_gather(results[3:], whole)
    results.append(torch.full_like(whole, torch.nan))
    distributed.all_to_all_single(results[-1], whole)
    distributed.barrier()
    return results


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
def test_a_free_wire_needs_no_peer_and_leaves_numbers() -> None:
    """Collectives end at once, with finite contents in every place that they would write."""
    finite, _ = ranks.run_ranks(without_a_peer, 2)
    assert finite == [True] * 6


def groups_of_libraries(rank: Rank) -> list[str]:
    """Which groups a collective was seen in."""
    mesh = init_device_mesh("cpu", (rank.world_size,))
    own = distributed.new_group(list(range(rank.world_size)))
    model = DistributedDataParallel(torch.nn.Linear(3, 3), process_group=own)
    ranks.recorder.open()
    for group in (None, mesh.get_group(), own):
        distributed.all_reduce(torch.ones(1), group=group)
    model(torch.ones(1, 3)).sum().backward()
    _, record = ranks.recorder.record(ranks.recorder.close(), 0, 0)
    return [each.group for each in ranks.recorder.plan(record.plan).collectives]


def test_groups_that_libraries_make_are_seen() -> None:
    """A mesh's, `new_group`'s, and what DDP's reducer in C++ sends through one; that one's end of backward too."""
    for seen in ranks.run_ranks(groups_of_libraries, 2):
        default, mesh, own, *of_ddp = seen
        assert default == mesh != own
        assert of_ddp
        assert set(of_ddp) == {own}


def past_the_seam(rank: Rank) -> list[tuple[str, int, bool]]:
    """Class of the default group, collectives seen and whether the sum is right: on, off, on again."""
    group: Any = distributed.distributed_c10d._get_default_group()
    model = DistributedDataParallel(torch.nn.Linear(3, 3))
    model(torch.ones(1, 3)).sum().backward()
    model(torch.ones(1, 3)).sum().backward()
    found = []
    for off in (False, True, False):
        with ranks.recorder.off() if off else contextlib.nullcontext():
            ranks.recorder.open()
            total = torch.ones(1)
            distributed.all_reduce(total)
            model(torch.ones(1, 3)).sum().backward()
            seen = len(ranks.recorder.close().collectives)
            found.append((type(group).__name__, seen, total.item() == rank.world_size))
    return found


def test_nothing_is_seen_while_the_recorder_is_off() -> None:
    """And what is asked for is done all the same."""
    for found in ranks.run_ranks(past_the_seam, 2):
        assert found == [("RecordingGroup", 2, True), ("PassingGroup", 0, True), ("RecordingGroup", 2, True)]


def many_steps_past_the_seam(rank: Rank, mode: Mode) -> bool:
    model = DistributedDataParallel(torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(8))), bucket_cap_mb=1e-4)
    batch = torch.ones(4, 8)
    with ranks.recorder.off(mode):
        for _ in range(400):
            model(batch).sum().backward()
    return True


@pytest.mark.parametrize("mode", ["record", "pass", "pass_twice"])
def test_threads_of_the_backend_find_the_interpreter_free(mode: Mode) -> None:
    """A work that gloo drops may hold the last reference to an object of Python, the context of its backward: a group
    that kept the interpreter's lock while it asked gloo for more stood still within some hundred of these steps."""
    assert ranks.run_ranks(many_steps_past_the_seam, 2, mode) == [True, True]


def waits_of_ddp(rank: Rank, overlap: bool) -> int:
    """Nanoseconds waited in a backward in which rank 1 comes 50 ms late."""
    setting = Setting(world_size=2, device="cpu", bucket_mb=25.0, overlap=overlap)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    run = NativeSharded(model, setting, call=ddp_of(model, setting), replicas=2)
    waited = 0
    for _ in range(4):
        ranks.recorder.open()
        output = run.forward(torch.ones(1, 3), True)
        output.register_hook(lambda gradient: time.sleep(0.05 * rank.rank))
        run.backward(output.sum(), True)
        run.step(True)
        _, record = ranks.recorder.record(ranks.recorder.close(), 0, 0)
        waited = sum(end - begin for begin, end in zip(record.waits[1::3], record.waits[2::3], strict=True))
    return waited


def ddp_of(model: torch.nn.Module, setting: Setting) -> DistributedDataParallel:
    wrapped = DistributedDataParallel(model, **ddp.ddp_options(setting))
    if not setting.overlap:
        wrapped.register_comm_hook(None, ddp.reduce_and_wait)
    return wrapped


@pytest.mark.parametrize("overlap", [True, False])
def test_the_wait_for_a_late_rank_is_seen_under_ddp(overlap: bool) -> None:
    """In the engine's callback with overlap, in the hook's own wait without."""
    early, late = ranks.run_ranks(waits_of_ddp, 2, overlap)
    assert early > 40e6 > 2 * late
