"""What must be found of what was planted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scalelab.launch import strategies
from scalelab.profiles.analysis.communication import communication
from scalelab.profiles.analysis.load import Run
from scalelab.profiles.analysis.straggler import own_phases
from scipy import stats

from tests.support import hosts
from tests.truth import wire as wires
from tests.truth.training import WARMUP, Delay, planted

SHARDING = [name for name in strategies.names() if name != "single"]
STRAGGLING = ("ddp", "zero2", "zero3", "fsdp2")
BLOCK = 10
UNATTRIBUTED_BOUND = 0.02
DELAY_TOLERANCE = 0.10
DELAYS = {"data": 0.030, "forward": 0.020, "optimizer": 0.020}
STRAGGLER_SECONDS = 0.040
WIRE_BYTES_TOLERANCE = 0.03
WIRE_SECONDS_TOLERANCE = 0.10


@dataclass(frozen=True)
class Line:
    holds: bool
    text: str


def closure(place: Path) -> Iterator[Line]:
    """Steps and phases against the stamps of the model, the loader and the wall clock."""
    for name in SHARDING:
        summary, run, witnesses = planted(place, name, 100)
        share = summary["phases"]["unattributed"]["median"] / summary["step_seconds"]["median"]
        yield Line(share <= UNATTRIBUTED_BOUND, f"{name}: unattributed {share:.2%} of the step, bound 2 %")
        ledger = own_phases(run, communication(run).exposed)
        least = min(float(values.min()) for values in ledger.values())
        yield Line(least > -1e-6, f"{name}: the smallest part of any step is {least * 1e6:.1f} us")
        for rank, witness in zip(run.ranks, witnesses, strict=True):
            tiled = float(rank.steps.numbers["seconds"].sum()) + sum(event.seconds for event in rank.events)
            wall = witness.end - witness.begin
            holds = abs(tiled / wall - 1) < 0.005
            yield Line(holds, f"{name} rank {rank.rank}: steps and events {tiled:.4f} s, wall clock {wall:.4f} s")
            for phase in ("data", "forward"):
                own = np.array(witness.seconds[phase][: len(rank.steps)])[WARMUP:]
                seen = rank.steps.phases[phase][WARMUP:]
                # A wrapper around the model communicates before it calls it.
                most = 1.1 * own.mean() + 1e-3 + _exposed(run, rank.rank, phase)
                holds = float((seen - own).min()) >= 0 and float(seen.mean()) < most
                yield Line(
                    holds,
                    f"{name} rank {rank.rank}: {phase} {seen.mean() * 1e3:.2f} ms, of which the code itself saw "
                    f"{own.mean() * 1e3:.2f} ms",
                )


def _exposed(run: Run, rank: int, phase: str) -> float:
    known = communication(run).exposed
    return float(known.phases[phase][rank].mean()) if known is not None and phase in known.phases else 0.0


def _on_and_off(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of the blocks with and without a delay, in pairs of neighbours, (pairs,) each."""
    blocks = values[: len(values) // (2 * BLOCK) * 2 * BLOCK].reshape(-1, 2, BLOCK).mean(axis=2)
    return blocks[:, 1], blocks[:, 0]


def _difference(values: np.ndarray) -> tuple[float, float]:
    """The mean difference between blocks with and without, and half of its 95 % interval."""
    on, off = _on_and_off(values)
    differences = on - off
    return float(differences.mean()), float(stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences))


def _by_step(run: Run) -> dict[str, np.ndarray]:
    """Mean over ranks of each part, from the first step of the first block without a delay on."""
    known = communication(run)
    assert known.exposed is not None
    parts = {**own_phases(run, known.exposed), "comm_exposed": known.exposed.total}
    first = -WARMUP % (2 * BLOCK)
    return {name: values.mean(axis=0)[first:] for name, values in parts.items()}


def delays(place: Path) -> Iterator[Line]:
    """Delays that come and go in blocks of one run, on both ranks alike."""
    for phase, seconds in DELAYS.items():
        _, run, witnesses = planted(place, "ddp", 410, Delay(phase, seconds, every=BLOCK), work=2)
        slept = float(np.mean([delay for witness in witnesses for delay in witness.delays]))
        for name, values in _by_step(run).items():
            mean, half = _difference(values)
            if name == phase:
                # Behind a sleep the first instructions find cold caches: a part of what it costs.
                holds = abs(mean - slept) <= half + 5e-4 and half <= DELAY_TOLERANCE * seconds
                what = f"planted {slept * 1e3:.2f} ms ({seconds * 1e3:.0f} asked of sleep)"
            else:
                holds, what = abs(mean) <= DELAY_TOLERANCE * seconds + half, "nothing planted"
            yield Line(holds, f"delay in {phase}: {name} {mean * 1e3:+.2f} +- {half * 1e3:.2f} ms, {what}")


def stragglers(place: Path) -> Iterator[Line]:
    """40 ms on rank 1: named with its phase, and the other rank's wait; nobody where all are alike."""
    for name in STRAGGLING:
        healthy, _, _ = planted(place, name, 60)
        found = healthy["comm"]["straggler"]
        yield Line(found is None, f"{name}, healthy: {found or healthy['reasons']['comm.straggler']}")
        before = healthy["per_rank"][0]["waiting_seconds"]
        for phase in ("data", "forward", "backward"):
            summary, _, _ = planted(place, name, 60, Delay(phase, STRAGGLER_SECONDS, rank=1))
            found = summary["comm"]["straggler"]
            named = found is not None and (found["rank"], found["cause"]) == (1, phase)
            waited = summary["per_rank"][0]["waiting_seconds"] - before
            close = abs(waited / STRAGGLER_SECONDS - 1) <= DELAY_TOLERANCE
            said = (
                "nobody" if found is None else f"rank {found['rank']}, {found['cause']}, last in {found['share']:.0%}"
            )
            yield Line(
                named and close, f"{name}, 40 ms in rank 1's {phase}: {said}; rank 0 waits {waited * 1e3:+.1f} ms more"
            )


def wire(place: Path) -> Iterator[Line]:
    """A wire of 200 Mbit between two network namespaces: bytes, transfer, and what a free wire would save."""
    if (reason := hosts.why_not()) is not None:
        yield Line(True, f"skipped: {reason}")
        return
    for number, name in enumerate(STRAGGLING):
        with hosts.two_hosts() as names:
            hosts.limit(names, wires.MEGABITS)
            summary, seen = wires.measure(place, names, name, wires.PORT + 10 * number)
        rate = float(np.mean([rate for rank in seen for rate in rank["bytes_per_second"]]))
        for rank, row in enumerate(seen):
            ratio = row["sent_bytes"] / row["payload"]
            yield Line(
                abs(ratio - 1) <= WIRE_BYTES_TOLERANCE,
                f"{name} rank {rank}: the interface sent {row['sent_bytes']:,} bytes, by formula "
                f"{row['payload']:,.0f}: {ratio:.3f}",
            )
        comm = summary["comm"]
        expected = comm["wire_bytes_per_step"] / rate
        ratio = comm["transfer_seconds"] / expected
        yield Line(
            abs(ratio - 1) <= WIRE_SECONDS_TOLERANCE,
            f"{name}: transfer {comm['transfer_seconds'] * 1e3:.1f} ms a step, bytes over a TCP stream's "
            f"{rate / 1e6:.1f} MB/s {expected * 1e3:.1f} ms: {ratio:.3f}",
        )
        free = float(np.mean([row["headroom_seconds"] for row in seen]))
        ratio = comm["exposed_seconds"] / free
        yield Line(
            abs(ratio - 1) <= WIRE_SECONDS_TOLERANCE,
            f"{name}: exposed {comm['exposed_seconds'] * 1e3:.1f} ms a step, a free wire saves {free * 1e3:.1f} ms: "
            f"{ratio:.3f}",
        )
        cold = float(np.mean([row["cold_seconds"] for row in seen]))
        ratio = (comm["exposed_seconds"] + cold) / free
        yield Line(
            abs(ratio - 1) <= WIRE_SECONDS_TOLERANCE,
            f"{name}: the same with the {cold * 1e3:.1f} ms that sleeps of that number and length were seen to cost "
            f"besides: {ratio:.3f}",
        )
