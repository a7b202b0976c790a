"""Every number that a diagnosis turns on, each with its reason. docs/diagnosis.md leads here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Shares are of a step with what lies between steps: the wall-clock time that a step takes."""

    least_share: float = 0.15
    """What removing a cause must buy to be one. Below it a run is healthy: like runs on a two-core virtual machine
    differed by as much as 13 %, so nobody could see the gain in one rerun."""
    least_low_share: float = 0.05
    """The lower end of its interval must buy this much: else it is not told from nothing."""
    shown_share: float = 0.03
    """Causes that buy less are not listed at all."""
    least_steps: int = 10
    """Measured steps. The moving-block bootstrap needs some blocks of n^(1/3) steps; of fewer than ten steps an
    interval says nothing."""

    taken_twice: float = 0.9
    """What is left of a cause when seconds that a more particular one takes are out: of less than a tenth nobody need
    be told, which is within the intervals."""
    room: float = 0.8
    """Of the host's memory in use at most: above it activations that are kept are not sure to fit."""
    proportional: float = 1.25
    """Own time over what a batch holds, between ranks: a rank that takes more than in proportion by this much is slow
    for another reason. As far below and above, the cost of an element is not told apart from it."""
    stolen_share: float = 0.02
    """Of the cores' time, taken by the hypervisor: below it is the counters' tick."""

    latency_share: float = 0.5
    """Of what communication costs: above it most goes to the number of messages, below it to their bytes."""
    gloo_call_seconds: float = 2e-4
    """A call over gloo that carries nothing to speak of: a scalar all-reduce between two processes of one host took
    0.2 ms (2-core virtual machine, torch 2.13). Used where neither the run nor a calibration tells."""

    operators_beyond: float = 1.5
    """Of a phase's time: what its operators were measured to take. Above it the measurement was disturbed:
    where batches are so tiny that calls are nearly all of a step, they came to 0.8 to 1.8 of it (2-core machine)."""

    others_cores_share: float = 0.1
    """Of the host's cores, kept busy by others: below it the run's own threads are what they wait for."""
    memory_close: float = 0.95
    """Of the memory limit: a loader's next batch, or a longer sample, may take the rest."""
    held_spread: float = 0.03
    """The mean deviation of what batches hold, of its mean: of less, nothing follows."""
    held_correlation: float = 0.5
    """Of own time with what a batch holds: below it most of the time's spread has another cause."""
    precision_gain: float = 1.3
    """bf16 over fp32 products, from the slow end of one to the fast end of the other: casts take some of it back."""

    periodic_factor: float = 2.0
    """A step is a stall if it takes this many times the median: noise of a shared machine moves steps by less."""
    periodic_least: int = 3
    """Stalls of a run, before they are called periodic."""
    periodic_regular: float = 0.35
    """The largest coefficient of variation of the gaps between stalls that are called periodic: gaps of a Poisson
    process have 1."""


LIMITS = Thresholds()
