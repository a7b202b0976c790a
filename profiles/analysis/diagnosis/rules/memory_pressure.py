"""Memory is short: the run waits for it, or stands close to a limit that would end it."""

from __future__ import annotations

from ..facts import Facts, milliseconds
from ..finding import Answer, CannotTell, Evidence, Finding, Remedy
from ._contract import Rule


def find(facts: Facts) -> Answer:
    evidence: list[Evidence] = []
    headroom = None
    stalled = facts.memory_stalls
    if stalled is not None and facts.share(stalled.seconds) >= facts.limits.shown_share:
        headroom = stalled
        evidence.append(
            Evidence(
                says=f"tasks of this host wait for memory {milliseconds(stalled.seconds)} a step (Linux's pressure "
                f"stall "
                "information)",
                values={"stall_seconds": stalled.seconds},
            )
        )
        if faults := facts.major_faults_per_step:
            evidence.append(
                Evidence(
                    says=f"the ranks read {faults:.0f} pages a step back from disk",
                    values={"major_faults_per_step": faults},
                )
            )
    retries = facts.summary["memory"]["alloc_retries"]
    if retries:
        evidence.append(
            Evidence(
                says=f"CUDA's allocator gave memory back and asked again {retries} times in the run, each a stop of "
                "the device",
                values={"alloc_retries": retries},
            )
        )
    used = facts.memory_used_share
    close = used is not None and used >= facts.limits.memory_close
    if close:
        evidence.append(Evidence(says=f"{used:.0%} of the memory limit was in use", values={"memory_used_share": used}))
    if not evidence:
        if stalled is None and used is None and retries is None:
            return CannotTell(
                label="memory_pressure",
                lacks="how much of its memory the run used, and whether it waited for any",
                rerun="the model under scalelab run, on a Linux that counts it (/proc/pressure/memory)",
                matters=False,
            )
        return None
    return Finding(
        label="memory_pressure",
        evidence=tuple(evidence),
        remedy=_remedy(facts),
        headroom=headroom,
        why_no_headroom=(
            ""
            if headroom
            else "memory close to its limit costs no time until it ends the run"
            if close
            else "what the allocator's retries cost is not known"
        ),
        verdict=close or headroom is not None,
    )


def _remedy(facts: Facts) -> Remedy:
    if facts.own_loop:
        return Remedy(
            says="a smaller batch with gradients accumulated, torch.utils.checkpoint around the blocks, a wrapper that "
            "shards more (FSDP, ZeRO), fewer loader processes, or a higher limit"
        )
    micro, accumulation = facts.config["micro_batch"], facts.config["grad_accumulation"]
    if micro % 2 == 0:  # halved and accumulated twice, the batch stays what it is
        words = f"--micro-batch {micro // 2} --grad-accumulation {2 * accumulation}"
        options = {"micro_batch": micro // 2, "grad_accumulation": 2 * accumulation}
    else:
        words = "--checkpointing full"
        options = {"checkpointing": "full"} if facts.config["checkpointing"] == "none" else {}
    return Remedy(
        says=f"{words} needs less; so do a strategy that shards more, fewer --workers, and a higher limit",
        options=options,
    )


rule = Rule(label="memory_pressure", devices=("cpu", "cuda"), find=find)
