"""One rank of a run, from its environment variables to its last record.

Started by torchrun as `python -m scalelab.launch.worker RUN_FOLDER`, or forked by `supervision/forker.py`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..models.contract import ModelSource, load_model
from ..models.errors import ModelError
from ..profiles.capture.memory import peaks
from ..profiles.capture.probe import Probe, WindowProbe
from ..profiles.capture.timeline import timeline_for
from ..profiles.records import StepRecord
from ..profiles.runfolder import RunFolder, appending
from . import strategies
from .assemble import Job, events_of, prepare_determinism, start_record
from .build import build, fingerprint, shape_of
from .config import RunConfig
from .errors import Exit, NumericError, ScalelabError, exit_code_of
from .feed import open_feed, to_device
from .loop import train
from .ranks import Rank, process_group
from .schedule import schedule
from .setting import Setting
from .supervision.messages import Sender
from .supervision.parent import die_with_parent


def run_rank(folder: RunFolder, rank: Rank) -> Exit:
    """Train as `folder` describes. What goes wrong is written to the folder and returned as an exit code."""
    send = Sender(rank.rank)
    progress = _Progress(send, rank)
    try:
        _train(folder, rank, progress)
    except BaseException as error:
        code = _exit_code(error)
        where = progress.where
        failure = {
            "rank": rank.rank,
            "exit_code": int(code),
            "type": type(error).__name__,
            "message": str(error),
            "hint": error.hint if isinstance(error, ScalelabError) else "",
            "phase": where[1],
            "step": where[0],
            "traceback": traceback.format_exc(),
        }
        folder.write(f"errors/r{rank.rank:03d}.json", failure)
        traceback.print_exc()
        send(state="failed", exit_code=int(code))
        return code
    send(state="finished")
    return Exit.OK


class _Progress:
    """Tells the supervisor how far this rank is, and stops the run at a loss that is not finite."""

    def __init__(self, send: Sender, rank: Rank) -> None:
        self._send = send
        self._rank = rank
        self.probe: Probe | WindowProbe | None = None
        self._state = "starting"

    @property
    def where(self) -> tuple[int | None, str | None]:
        step, phase = self.probe.where if self.probe is not None else (None, None)
        return step, phase or self._state

    def enter(self, state: str) -> None:
        self._state = state
        self._send(state=state)

    def after_step(self, record: StepRecord) -> None:
        if None in record.losses:
            raise NumericError(
                f"rank {self._rank.rank}: the loss of step {record.step} is not finite",
                hint="lower --lr, warm it up with --lr-warmup-steps, or clip with --clip-norm 1",
            )
        if self._rank.rank == 0:
            allocated = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else None
            losses = [loss for loss in record.losses if loss is not None]
            self._send(
                step=record.step,
                role=record.role,
                seconds=record.seconds,
                loss=sum(losses) / len(losses),
                memory_bytes=allocated or peaks(torch.device("cpu")).rss_peak_bytes,
            )


def _train(folder: RunFolder, rank: Rank, progress: _Progress) -> None:
    run_json = folder.read("run.json")
    config = RunConfig(**run_json["config"])
    setting = Setting(**run_json["setting"])
    torch.set_num_threads(run_json["threads_per_rank"])
    prepare_determinism(config)
    progress.enter("joining")
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(process_group(rank, setting.device))
        write = stack.enter_context(appending(folder.rank_file(rank.rank)))
        write(start_record(rank, device, torch.get_num_threads()))
        progress.enter("building")
        source = load_model(str(config.model), config.model_option)
        model, blocks = build(source, setting, config.seed)
        strategy, shape = strategies.load(config.strategy), shape_of(model, blocks)
        if reason := strategy.unsupported_model(shape):
            raise ModelError(f"--strategy {config.strategy}, model {source.name}: {reason}")
        _refuse_unlike(source, fingerprint(model))
        if rank.rank == 0:
            facts = _facts(source, model, blocks)
            folder.write("run.json", {**run_json, "model": facts, "law": strategy.law(shape, setting)})
        run = strategy.shard(model.to(device), setting, blocks)
        job = Job(config=config, setting=setting, source=source, run=run, device=device, rank=rank, folder=folder)
        feed = stack.enter_context(open_feed(config, source, rank, job.image_size))
        timeline = timeline_for(device)
        if config.probe == "on":
            total = config.warmup + (config.steps or 0)
            probe = Probe(
                write,
                timeline,
                watch=progress.after_step,
                record_grad_norm=config.record_grad_norm,
                memory_step=min(max(1, config.warmup - 1), total - 1) or None,
            )
        else:
            probe = WindowProbe(write, timeline)
        progress.probe = probe
        progress.enter("training")
        global_batch = setting.micro_batch * setting.accumulation * setting.world_size
        steps = schedule(
            config,
            steps=config.steps or 0,
            samples=setting.micro_batch * setting.accumulation,
            global_batch=global_batch,
        )
        train(run, feed, steps, probe, lambda batch: to_device(batch, device), events_of(job))
        probe.close()
        write(peaks(device))


def _refuse_unlike(source: ModelSource, fingerprint: int) -> None:
    """Raise ModelError when the ranks built different weights: some strategies would mix them."""
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, fingerprint)
    if len(set(found)) > 1:
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


def _exit_code(error: BaseException) -> Exit:
    """In a rank, what is nobody's known error means that a worker died: the model's code runs here too."""
    code = exit_code_of(error)
    return Exit.WORKER_DIED if code is Exit.INTERNAL else code


def main() -> None:
    die_with_parent()
    folder = RunFolder(Path(sys.argv[1]))
    rank = Rank.from_environment()
    if folder.log_file(rank.rank).parent.is_dir():
        redirect_output(folder.log_file(rank.rank))
    code = run_rank(folder, rank)
    leave(code)


def redirect_output(path: Path) -> None:
    """Send this process's output, that of libraries included, to `path`."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def leave(code: int) -> None:
    """End this process now. After a failure, waiting for communication threads would hang on peers that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
