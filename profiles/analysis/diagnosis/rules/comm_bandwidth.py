"""The bytes that ranks exchange take long on their wire."""

from __future__ import annotations

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ._comm import cost
from ._contract import Rule, larger_batch


def find(facts: Facts) -> Answer:
    found = cost(facts, "comm_bandwidth")
    if isinstance(found, CannotTell):
        return found
    if found.latency_share >= facts.limits.latency_share:
        return None
    comm = facts.summary["comm"]
    evidence = [
        Evidence(
            says=f"{found.bytes_per_step / 2**20:.3g} MiB a step in {found.calls:.0f} collectives hold ranks up "
            f"{milliseconds(found.headroom.seconds)}",
            values={"bytes_per_step": found.bytes_per_step, "calls_per_step": found.calls},
        )
    ]
    if (rate := comm["bus_bandwidth"]) is not None:
        evidence.append(Evidence(says=f"at {rate / 1e6:.4g} MB/s on the bus", values={"bus_bandwidth": rate}))
    if (share := comm["bus_bandwidth_share"]) is not None:
        evidence.append(
            Evidence(
                says=f"{share:.0%} of what this machine gives at rest (its calibration)",
                values={"bus_bandwidth_share": share},
            )
        )
    return Finding(
        label="comm_bandwidth",
        evidence=tuple(evidence),
        remedy=_remedy(facts),
        headroom=found.headroom,
        removed=found.removed,
    )


def _remedy(facts: Facts) -> Remedy:
    config = facts.config
    words, options = "a faster wire between the ranks", {}
    if facts.own_loop:
        return Remedy(
            says=f"{words}, or fewer bytes: gradients sent in bf16 (bf16_compress_hook of DDP), or several batches "
            "under no_sync() for each reduction"
        )
    # DeepSpeed overlaps by CUDA streams alone, and its stages 2 and 3 reduce after every micro-batch.
    zero = config["strategy"].startswith("zero")
    if config.get("overlap") is False and not (zero and facts.device == "cpu"):
        words, options = "--overlap true reduces gradients while backward computes", {"overlap": True}
    elif config["strategy"] not in ("zero2", "zero3"):
        words = f"{words}, or fewer bytes: --grad-accumulation, which sends once for several micro-batches"
        more = {"accumulation_sync": "last"} if config.get("accumulation_sync") == "each" else {}
        options = larger_batch(config, grad_accumulation=2 * config["grad_accumulation"], **more)
    return Remedy(says=f"{words}; --precision bf16-params halves what is sent", options=options)


rule = Rule(label="comm_bandwidth", devices=("cpu", "cuda"), least_ranks=2, find=find)
