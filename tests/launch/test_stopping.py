"""All ranks leave the loop after the same step, whoever was asked, and asking each other costs next to nothing."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scalelab.launch.errors import Exit
from scalelab.launch.stopping import CHECK_SECONDS, Stopping


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def together(step_seconds: list[float], asked: dict[int, tuple[int, signal.Signals]], limit: int = 5000):
    """Ranks in lockstep, their step times differing: the steps they stop after, on what, and how often they met.

    `asked` is, by rank, the step during which it is sent a signal.
    """
    world = len(step_seconds)
    clocks = [Clock() for _ in range(world)]
    meetings: list[list[list[int]]] = []
    waiting: list[list[int]] = []

    def combine_all() -> list[int]:
        return [max(numbers) for numbers in zip(*waiting, strict=True)]

    ranks: list[Stopping] = []
    for index in range(world):
        ranks.append(Stopping(lambda numbers: waiting.append(numbers) or [], clocks[index]))
    for step in range(limit):
        stops = []
        for index, rank in enumerate(ranks):
            clocks[index].now += step_seconds[index]
            if index in asked and asked[index][0] == step:
                rank._arrived(asked[index][1], None)
        # Each rank's numbers are gathered first, then all get the same answer, as an all-reduce gives it.
        waiting.clear()
        due = [rank._step + 1 >= rank._next_check for rank in ranks]
        assert len(set(due)) == 1, "ranks disagree on when they meet"
        if due[0]:
            for index, rank in enumerate(ranks):
                steps = rank._step + 1 - rank._checked_step
                per_step = (clocks[index].now - rank._checked_at) / steps
                waiting.append([rank._wish, -(max(1, int(CHECK_SECONDS / per_step)) if per_step > 0 else 1)])
            answer = combine_all()
            meetings.append([list(numbers) for numbers in waiting])
            for rank in ranks:
                rank._combine = lambda numbers, answer=answer: answer
        stops = [rank.after_step() for rank in ranks]
        assert len(set(stops)) == 1, "ranks stop at different steps"
        if stops[0]:
            return step, ranks[0].agreed, len(meetings), clocks
    return None, Exit.OK, len(meetings), clocks


@given(
    st.lists(st.floats(0.001, 3.0), min_size=1, max_size=4),
    st.integers(0, 300),
    st.integers(0, 3),
    st.sampled_from(
        [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.TERMINATED), (signal.SIGUSR1, Exit.PREEMPTED)]
    ),
)
def test_a_signal_to_one_rank_stops_all_at_one_step(
    seconds: list[float], step: int, rank: int, sent: tuple[signal.Signals, Exit]
) -> None:
    """Whichever rank is asked, all stop at the same step, within about two seconds or one step of the slowest rank."""
    number, code = sent
    stopped, agreed, _, _ = together(seconds, {rank % len(seconds): (step, number)})
    assert stopped is not None
    assert agreed == code
    assert (stopped - step) * max(seconds) <= 2 * CHECK_SECONDS + 2 * max(seconds)


def test_the_most_urgent_signal_counts() -> None:
    """A warning to one rank and SIGTERM to another end as SIGTERM."""
    assert together([0.01] * 2, {0: (5, signal.SIGUSR1), 1: (5, signal.SIGTERM)})[1] is Exit.TERMINATED


def test_ranks_meet_about_once_a_second() -> None:
    """Steps of a millisecond: a few meetings while the distance doubles, then one a second."""
    _, _, meetings, _ = together([0.001] * 2, {}, limit=5000)
    assert meetings < 20


def test_a_rank_that_is_alone_asks_nobody() -> None:
    """Without peers the flag alone decides."""
    alone = Stopping(None)
    assert not alone.after_step()
    alone._arrived(signal.SIGINT, None)
    assert alone.after_step()
    assert alone.agreed is Exit.INTERRUPTED


@pytest.mark.parametrize("wish", [signal.SIGINT, signal.SIGTERM, None])
def test_between_parts_of_a_run_every_call_asks(wish: signal.Signals | None) -> None:
    """However far ahead the next meeting of the steps is: a part may take long."""
    asked: list[list[int]] = []
    stopping = Stopping(lambda values: asked.append(values) or values)
    stopping._next_check = 10**6
    if wish is not None:
        stopping._arrived(wish, None)
    assert stopping.now() is (wish is not None)
    assert len(asked) == 1
