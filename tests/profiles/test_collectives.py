"""What communication was exposed, and why: the algebra against counting nanosecond by nanosecond."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scalelab.profiles.analysis.collectives import GLOO_THREADS, RankComm, Split, exposed, split, unlike_steps
from scalelab.profiles.analysis.columns import StepComms
from scalelab.profiles.records import PHASES, CollectiveShape, CommRecord

SPAN = 60
NS = 1e-9


def collective(phase: str = "backward", kind: str = "all_reduce", group: str = "0", size: int = 8) -> CollectiveShape:
    return CollectiveShape(kind=kind, payload_bytes=size, phase=phase, group=group)


def rank_comm(plan: Sequence[CollectiveShape], *steps: dict[str, Any], begin_ns: Sequence[int] = ()) -> RankComm:
    begins = np.array(begin_ns or [1000 * i for i in range(len(steps))], dtype=np.int64)
    return RankComm({0: plan}, begins, StepComms.of([CommRecord(plan=0, **s) for s in steps]))


def apart(ranks: Sequence[RankComm], offsets: Sequence[int] = ()) -> Split:
    """The split of ranks whose clocks are `offsets` behind; alike if none are given."""
    rows = [[offset] * len(rank.steps) for rank, offset in zip(ranks, offsets or [0] * len(ranks), strict=True)]
    return split(ranks, np.array(rows, dtype=np.int64))


def times(handed_in: list[int], ended: list[int | None], *waits: tuple[int, int, int]) -> dict[str, Any]:
    return {"handed_in_ns": handed_in, "ended_ns": ended, "waits": [number for wait in waits for number in wait]}


def nanoseconds(part: Split, name: str) -> list[list[float]]:
    return np.round(getattr(part, name) / NS, 3).tolist()


def test_waiting_for_a_late_rank_is_told_from_the_wire() -> None:
    """Rank 0 is ready at 10 and rank 1 at 40; both end at 50. Rank 0 is blocked from 12 on, rank 1 from 41 on."""
    plan = [collective()]
    ranks = [rank_comm(plan, times([10], [50], (0, 12, 50))), rank_comm(plan, times([40], [50], (0, 41, 50)))]
    part = apart(ranks)
    assert nanoseconds(part, "waiting") == [[28], [0]]
    assert nanoseconds(part, "transfer") == [[10], [9]]
    assert nanoseconds(part, "queued") == [[0], [0]]
    assert nanoseconds(part, "busy") == [[10], [10]]
    assert nanoseconds(part, "overlapped") == [[0], [1]]
    assert part.last.tolist() == [1]


def test_a_bucket_that_waits_while_its_rank_computes_costs_nothing() -> None:
    """Rank 0's collective is late from 10 to 40, but the rank computes until 45."""
    plan = [collective()]
    ranks = [rank_comm(plan, times([10], [50], (0, 45, 50))), rank_comm(plan, times([40], [50]))]
    part = apart(ranks)
    assert nanoseconds(part, "waiting") == [[0], [0]]
    assert nanoseconds(part, "transfer") == [[5], [0]]
    assert nanoseconds(part, "overlapped") == [[5], [10]]


def test_what_the_backend_has_not_begun_is_queued() -> None:
    """A third collective of a group begins when one of gloo's two threads is free; in another group at once."""
    plan = [collective(), collective(), collective(), collective(group="1")]
    one = times([0, 0, 0, 0], [20, 30, 40, 45], (2, 5, 40), (3, 40, 45))
    part = apart([rank_comm(plan, one), rank_comm(plan, one)])
    assert nanoseconds(part, "queued") == [[15], [15]]
    assert nanoseconds(part, "transfer") == [[25], [25]]


def test_waking_up_late_is_queued() -> None:
    """From the end of a collective until its rank goes on."""
    part = apart([rank_comm([collective()], times([0], [10], (0, 0, 14)))] * 2)
    assert nanoseconds(part, "queued") == [[4], [4]]


def test_clocks_are_brought_together_by_their_offsets() -> None:
    """Rank 1's clock is 500 behind, and its step begins 7 later on the true clock."""
    plan = [collective()]
    ranks = [
        rank_comm(plan, times([10], [50], (0, 12, 50)), begin_ns=[10**15]),
        rank_comm(plan, times([33], [43], (0, 34, 43)), begin_ns=[10**15 - 500 + 7]),
    ]
    assert nanoseconds(apart(ranks, [0, 500]), "waiting") == [[28], [0]]


def test_exposed_falls_to_the_phase_that_waited() -> None:
    """That in which the collective was begun, where the record names no other: a wait in the optimizer for one of
    backward is the optimizer's, one in no phase is nobody's."""
    plan = [collective("forward"), collective("backward"), collective("backward")]
    own = times([0, 5, 6], [4, 9, 20], (0, 1, 4), (1, 7, 9), (2, 11, 12), (2, 14, 18))
    own["waited_in"] = [2, PHASES.index("optimizer"), 3, -1]
    found = exposed([rank_comm(plan, own, times([0, 5, 6], [4, 9, 9]))])
    assert np.round(found.total / NS, 6).tolist() == [[10, 0]]
    assert {name: np.round(values / NS, 6).tolist() for name, values in found.phases.items()} == {
        "forward": [[3, 0]],
        "backward": [[2, 0]],
        "optimizer": [[1, 0]],
        None: [[4, 0]],
    }


def test_the_wire_is_known_where_all_ranks_saw_every_end() -> None:
    """Steps in which a rank saw an end late, or never, are not exact."""
    plan = [collective()]
    seen, late, never = ({**times([0], [end]), "exact": exact} for end, exact in ((9, True), (9, False), (None, True)))
    part = apart([rank_comm(plan, seen, seen, seen), rank_comm(plan, seen, late, never)])
    assert part.exact.tolist() == [True, False, False]


def test_steps_in_which_ranks_did_different_things_are_found() -> None:
    """By kind, bytes and group; the phase may differ."""
    one = rank_comm([collective("forward")], times([0], [1]), times([0], [1]))
    assert unlike_steps([one, rank_comm([collective("backward")], times([0], [1]), times([0], [1]))]) == 0
    for other in (collective(size=9), collective(kind="broadcast"), collective(group="1")):
        assert unlike_steps([one, rank_comm([other], times([0], [1]), times([0], [1]))]) == 2


def test_the_last_rank_is_the_one_that_cost_the_others_most() -> None:
    """Rank 2 comes last to one collective by 30, rank 0 to two by 1 each."""
    plan = [collective(group=group) for group in "012"]
    ends: list[int | None] = [100, 100, 100]
    starts = ([11, 21, 50], [10, 20, 50], [10, 20, 80])
    ranks = [rank_comm(plan, times(list(row), ends)) for row in starts]
    assert apart(ranks).last.tolist() == [2]


@st.composite
def worlds(draw: st.DrawFn) -> tuple[list[CollectiveShape], list[list[dict[str, Any]]]]:
    """Ranks with up to three collectives a step in any order of times that can be, each rank's waits apart."""
    count, steps = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    plan = [collective(group=draw(st.sampled_from("01"))) for _ in range(count)]
    moment = st.integers(0, SPAN)
    ranks = []
    for _ in range(draw(st.integers(1, 3))):
        rows = []
        for _ in range(steps):
            handed_in = sorted(draw(st.lists(moment, min_size=count, max_size=count)))
            ended = [draw(st.integers(begin, SPAN)) for begin in handed_in]
            edges = sorted(draw(st.lists(moment, min_size=2 * count, max_size=2 * count)))
            waits = [(index, edges[2 * index], edges[2 * index + 1]) for index in range(count)]
            rows.append(times(handed_in, list(ended), *waits))
        ranks.append(rows)
    return plan, ranks


def counted(plan: list[CollectiveShape], ranks: list[list[CommRecord]], rank: int, step: int) -> dict[str, int]:
    """The split of one rank and step, nanosecond by nanosecond."""
    starts = [_starts(each[step], plan) for each in ranks]
    ready = [max(row[c] for row in starts) for c in range(len(plan))]
    own = ranks[rank][step]
    waits = [own.waits[i : i + 3] for i in range(0, len(own.waits), 3)]
    found: dict[str, int] = dict.fromkeys(("waiting", "transfer", "queued", "busy", "overlapped"), 0)
    for now in range(SPAN):
        wire = {c for c, end in enumerate(own.ended_ns) if end is not None and ready[c] <= now < end}
        blocked = [c for c, begin, end in waits if begin <= now < end]
        for c in blocked:
            end = own.ended_ns[c]
            assert end is not None
            late = starts[rank][c] <= now < min(ready[c], end)
            found["waiting" if late else "transfer" if c in wire else "queued"] += 1
        found["busy"] += bool(wire)
        found["overlapped"] += bool(wire) and not blocked
    return found


def _starts(step: CommRecord, plan: Sequence[CollectiveShape]) -> list[int]:
    free: dict[str, list[int]] = {}
    starts = []
    for shape, handed_in, end in zip(plan, step.handed_in_ns, step.ended_ns, strict=True):
        threads = free.setdefault(shape.group, [0] * GLOO_THREADS)
        first = threads.index(min(threads))
        starts.append(max(handed_in, threads[first]))
        assert end is not None
        threads[first] = end
    return starts


@given(worlds())
@settings(max_examples=200, deadline=None)
def test_the_split_equals_counting(world: tuple[list[CollectiveShape], list[list[dict[str, Any]]]]) -> None:
    """Every part, on every rank and step; the three parts sum to what is exposed."""
    plan, rows = world
    ranks = [rank_comm(plan, *each) for each in rows]
    records = [[CommRecord(plan=0, **step) for step in each] for each in rows]
    part, total = apart(ranks), exposed(ranks).total
    # Steps begin 1000 apart on every rank: the clocks agree.
    for rank in range(len(ranks)):
        for step in range(total.shape[1]):
            expected = counted(plan, records, rank, step)
            for name, value in expected.items():
                assert getattr(part, name)[rank, step] / NS == pytest.approx(value), name
            parts = sum(getattr(part, name)[rank, step] for name in ("waiting", "transfer", "queued"))
            assert parts == pytest.approx(total[rank, step])
