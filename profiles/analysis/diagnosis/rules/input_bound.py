"""The step waits for its batch."""

from __future__ import annotations

import numpy as np

from ...steps import unmarked
from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ..tailed import tail_or
from ._contract import Rule


def find(facts: Facts) -> Answer:
    if (why := unmarked(facts.run).get("data")) is not None:
        return CannotTell(
            label="input_bound",
            lacks=f"how long a step waits for its batch: {why}",
            rerun="the run with probe.batches(loader)",
        )
    removed = {"data": facts.own["data"]}
    headroom = tail_or(facts, "cached_batch", removed)
    data = facts.own["data"]
    worst, seconds = facts.ranks_by(data.mean(axis=1))[0]
    evidence = [
        Evidence(
            says=f"a rank waits {milliseconds(float(data.mean()))} a step for its batch, {_share(facts, data)} of the "
            f"step; rank {worst} most, {milliseconds(seconds)}",
            values={"data_seconds": float(data.mean()), "rank": worst, "rank_seconds": seconds},
        ),
        Evidence(
            says=f"{float(np.mean(data > 0.1 * facts.step_seconds)):.0%} of the steps wait longer than a tenth of one",
            values={"share_of_steps": float(np.mean(data > 0.1 * facts.step_seconds))},
        ),
    ]
    config = facts.config
    if config.get("workers") is not None:
        evidence.append(
            Evidence(
                says=f"--workers {config['workers']}, --prefetch {config.get('prefetch') or 0}",
                values={"workers": config["workers"], "prefetch": config.get("prefetch") or 0},
            )
        )
    return Finding(
        label="input_bound", evidence=tuple(evidence), remedy=_remedy(facts), headroom=headroom, removed=removed
    )


def _share(facts: Facts, data: np.ndarray) -> str:
    return f"{facts.share(float(data.mean())):.0%}"


def _remedy(facts: Facts) -> Remedy:
    config = facts.config
    if facts.own_loop:
        return Remedy(
            says="more num_workers and a larger prefetch_factor of the DataLoader, decoding at the size that is read, "
            "or a faster disk"
        )
    own_loader = facts.run.run_json.get("data") is None
    if own_loader and not config.get("prefetch"):
        return Remedy(
            says="--prefetch 2 draws batches ahead in a thread; where the loader computes in Python, decode and "
            "prepare less per sample, or in processes of its own",
            options={"prefetch": 2},
        )
    if own_loader:
        return Remedy(says="make the loader faster: scaled decoding, less work in Python, its own processes")
    workers = config.get("workers") or 0
    more = max(1, 2 * workers)
    return Remedy(
        says=f"--workers {more}; where that does not help, store images nearer to the size at which they are read, or "
        "put the shards on a faster disk",
        options={"workers": more, "prefetch": max(2, config.get("prefetch") or 0)},
    )


rule = Rule(label="input_bound", devices=("cpu", "cuda"), find=find)
