"""One rank of a run, from its environment variables to its last record.

Started by torchrun through `supervision/torchrun_rank.py`, or forked by `supervision/forker.py`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..models.contract import ModelSource, load_model
from ..models.errors import ModelError
from ..profiles.capture.batches import BatchTally
from ..profiles.capture.clocks import compare_clocks, over
from ..profiles.capture.comm import CommRecorder
from ..profiles.capture.finite import FiniteWatch, first_not_finite, parts_of
from ..profiles.capture.memory import digest, peaks
from ..profiles.capture.pauses import watched_pauses
from ..profiles.capture.probe import Probe
from ..profiles.capture.ranges import RangedProbe, nvtx_range, under_nsight
from ..profiles.capture.timeline import timeline_for
from ..profiles.capture.window import WindowProbe
from ..profiles.records import Record
from ..profiles.runfolder import RunFolder, appending
from ..profiles.storage import OutputError
from . import efficiency, recompute, strategies
from .afterwards import afterwards
from .assemble import Job, Saver, ended, events_of, prepare_determinism, start_record
from .build import build, fingerprint, shape_of
from .config import RunConfig, as_given, is_user_model
from .environment import boot_id
from .errors import Exit, NumericError
from .failure import AtHand, write_failure
from .feed import MADE_UP_BATCHES, bad_samples, open_feed, to_device
from .loop import train
from .out_of_memory import Training
from .ranks import Rank, control_group, join_ranks, largest_over, store_of_hosts
from .schedule import schedule
from .setting import Setting
from .step_watch import StepNotFiniteError, after_steps
from .stopping import Stopping
from .supervision import collectives
from .supervision.aftermath import STACK_SIGNAL
from .supervision.parent import redirect_output
from .supervision.pulse import Pulse, stack_file


def run_rank(folder: RunFolder, rank: Rank) -> Exit:
    """Train as `folder` describes. What goes wrong is written to the folder and returned as an exit code."""
    pulse, at_hand = Pulse(folder.path, rank.rank), AtHand()
    with stack_file(folder.path, rank.rank).open("w") as stacks:
        faulthandler.enable()
        faulthandler.register(STACK_SIGNAL, file=stacks, all_threads=True)
        pulse.start_beating(lambda: collectives.dump(collectives.dump_file(folder.path, rank.rank)))
        try:
            state, code = _train(folder, rank, pulse, at_hand)
        except BaseException as error:
            state, code = "failed", write_failure(folder, rank, pulse, error, at_hand)
    pulse.end(state, code)
    return Exit.OK if state == "stopped" else code


def _train(folder: RunFolder, rank: Rank, pulse: Pulse, at_hand: AtHand) -> tuple[str, Exit]:
    """The rank's state at its end, and the exit code that the run should have."""
    run_json = folder.read("run.json")
    config = as_given(run_json["config"])
    setting = Setting(**run_json["setting"])
    torch.set_num_threads(run_json["threads_per_rank"])
    prepare_determinism(config)
    pulse.at(None, "joining")
    with contextlib.ExitStack() as stack:
        comm = CommRecorder() if config.probe == "on" and rank.world_size > 1 else None
        device = join_ranks(rank, setting.device, comm)
        control = control_group() if rank.world_size > 1 else None
        combine = None if control is None else largest_over(control)
        boot_ids = _gathered(boot_id())
        stopping = Stopping(combine)
        stopping.listen()
        write = stack.enter_context(appending(folder.rank_file(rank.rank)))
        write(start_record(rank, device, torch.get_num_threads()))
        _compare_clocks(rank, boot_ids, control, write)
        pulse.at(None, "building")
        job = _job(folder, rank, config, setting, device, run_json, at_hand)
        bad = bad_samples(config, write)
        feed = stack.enter_context(open_feed(config, job.source, rank, job.image_size, bad))
        timeline = timeline_for(device)
        if comm is not None:
            comm.on(device)
        if config.probe == "on":
            total = config.warmup + (config.steps or 0)
            tally = BatchTally(tuple(job.source.padded() or ()))
            probe = Probe(
                write,
                timeline,
                watch=lambda records: after_steps(rank, pulse, records),
                grad_norm_steps=(config.grad_norm_steps or sys.maxsize) * config.record_grad_norm,
                memory_step=min(max(1, config.warmup - 1), total - 1) or None,
                at=pulse.at,
                finite=job.finite,
                comm=comm,
                pauses=stack.enter_context(watched_pauses()),
                batches=tally,
                times_recompute=config.checkpointing != "none" and not config.compile,
            )
            recompute.timed_by(probe.recomputing)
        else:
            tally, probe = None, WindowProbe(write, timeline, at=pulse.at)
        saver = Saver(job)
        steps = schedule(
            config,
            steps=config.steps or 0,
            samples=setting.micro_batch * setting.accumulation,
            global_batch=setting.micro_batch * setting.accumulation * setting.world_size,
        )
        events = events_of(job, saver, bad)

        def drawn() -> Iterator[Any]:
            for batch in feed:
                yield batch
                at_hand.batch = None  # so that it is freed where the next one is waited for

        batches = drawn()

        def moved(batch: Any) -> Any:
            at_hand.batch = to_device(batch, device)
            return at_hand.batch

        stepping = probe
        if isinstance(probe, Probe) and device.type == "cuda" and under_nsight():
            stepping = RangedProbe(probe, nvtx_range)
        # What is there now stays: the collector need not look through it again, which takes it up to half a second.
        gc.collect()
        gc.freeze()
        try:
            train(job.run, batches, steps, stepping, moved, events, stopping.after_step)
        except BaseException as error:
            probe.keep()
            if isinstance(error, NumericError):
                raise _located(error, job) from None
            raise
        together = True
        if stopping.agreed is Exit.PREEMPTED or (stopping.agreed and config.save_every):
            saver.before_leaving(probe, pulse.step or 0)
        elif not stopping.agreed and isinstance(probe, Probe):
            together = afterwards(
                job,
                batches,
                moved,
                probe,
                pulse,
                timeline=timeline,
                write=write,
                comm=comm,
                combine=combine,
                stop=stopping.now,
                stop_after_step=stopping.after_step,
            )
            if stopping.agreed is Exit.PREEMPTED:
                stopping.agreed = Exit.OK  # every step that was asked for is done: there is nothing to resume
        probe.close()
        if together:
            _compare_clocks(rank, boot_ids, control, write)
        # For those whose parameters are compared with another run's; it reads every one of them.
        compared = together and (config.counterfactual or config.deterministic)
        end = peaks(device, digest(job.run.parameters()) if compared else None)
        # Others are to leave at once.
        if tally is not None and together and stopping.agreed in (Exit.OK, Exit.INTERRUPTED):
            pulse.patient()
            flops = efficiency.count(tally, job.source, setting, config.seed, control, leads=rank.rank == 0)
            write(tally.record(), *([] if flops is None else [flops]))
        write(ended(end))
    # Nobody leaves while a peer may still have something to receive from it.
    if together:
        distributed.barrier()
    if saver.failed is not None and rank.rank == 0:
        with contextlib.suppress(OutputError):
            folder.write("errors/incomplete.json", {"cause": str(saver.failed), "hint": saver.failed.hint})
    if stopping.agreed is Exit.PREEMPTED and saver.failed is not None:
        return "stopped", Exit.CHECKPOINT
    if stopping.agreed:
        return "stopped", stopping.agreed
    return "finished", Exit.OK if saver.failed is None else Exit.SOME_FAILED


def _gathered(text: str) -> list[str]:
    """`text` of every rank."""
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, text)
    return found


def _compare_clocks(rank: Rank, boot_ids: Sequence[str], control: Any, write: Callable[[Record], None]) -> None:
    """Note how far the hosts' clocks are apart, where there are several; on all ranks together."""
    if len(set(boot_ids)) > 1 and (reading := compare_clocks(rank.rank, boot_ids, *over(control))) is not None:
        write(reading)


def _located(error: NumericError, job: Job) -> NumericError:
    """`error`, raised by a strategy over gradients that ranks have mixed, with the rank's own first bad tensor."""
    if job.finite is None or isinstance(error, StepNotFiniteError):
        return error
    job.finite.micro_batch_over()
    outputs, gradients = job.finite.take()
    noted = [*outputs, *gradients]
    first = first_not_finite(noted)
    located = NumericError(f"{error}{f': first {first}' if first else ''}", hint=error.hint)
    located.elsewhere = first is None
    return located


def _job(
    folder: RunFolder,
    rank: Rank,
    config: RunConfig,
    setting: Setting,
    device: torch.device,
    run_json: dict[str, Any],
    at_hand: AtHand,
) -> Job:
    """The model under its strategy. Rank 0 adds what is known of it to run.json."""
    source = load_model(str(config.model), config.model_option)
    at_hand.training = Training(
        source=source,
        setting=setting,
        strategy=config.strategy,
        seed=config.seed,
        rank=rank.rank,
        batches_alive=MADE_UP_BATCHES if is_user_model(config.model) and not source.has_loader else 1,
    )
    model, blocks = build(source, setting, config.seed)
    strategy, shape = strategies.load(config.strategy), shape_of(model, blocks)
    if reason := strategy.unsupported_model(shape):
        raise ModelError(f"--strategy {config.strategy}, model {source.name}: {reason}")
    _refuse_unlike(source, fingerprint(model))
    if rank.rank == 0:
        facts = _facts(source, model, blocks)
        folder.write("run.json", {**run_json, "model": facts, "law": strategy.law(shape, setting)})
    finite = FiniteWatch(parts_of(model, blocks), compiled=setting.compile) if config.probe == "on" else None
    at_hand.run = run = strategy.shard(model.to(device), setting, blocks)
    if finite is not None:
        finite.sharded()
    return Job(
        config=config, setting=setting, source=source, run=run, device=device, rank=rank, folder=folder, finite=finite
    )


def _refuse_unlike(source: ModelSource, fingerprint: int) -> None:
    """Raise ModelError when the ranks built different weights: some strategies would mix them."""
    if len(set(_gathered(str(fingerprint)))) > 1:
        raise ModelError(
            f"{source.name}: build_model made different weights on different ranks; draw them from torch's, numpy's or "
            "random's global generator, which are seeded alike, and not from the time or the rank"
        )


def _facts(source: ModelSource, model: torch.nn.Module, blocks: list[torch.nn.Module]) -> dict[str, Any]:
    parameters = list(model.parameters())
    return {
        "name": source.name,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "tensors": len(parameters),
        "blocks": len(blocks),
        "buffer_bytes": sum(buffer.numel() * buffer.element_size() for buffer in model.buffers()),
    }


def main() -> None:
    """The rank that torchrun's variables describe; the run folder is the last argument."""
    folder = RunFolder(Path(sys.argv[1]))
    rank = Rank.from_environment(folder.read("run.json")["setting"]["world_size"])
    if (store := store_of_hosts()) is not None:
        os.environ.update(rank.environment(*store))
    if folder.log_file(rank.rank).parent.is_dir():
        redirect_output(folder.log_file(rank.rank))
    code = run_rank(folder, rank)
    leave(code)


def leave(code: int) -> None:
    """End this process now. After a failure, waiting for communication threads would hang on peers that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
