"""A plain PyTorch loop under DistributedDataParallel, measured: three lines of it are scalelab's, and a fourth
that may be left out.

torchrun --nproc-per-node 2 examples/own_loop_ddp.py && scalelab report runs/latest
"""

from __future__ import annotations

import os

import scalelab
import torch
from byte_gpt import build_loader, build_model
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

STEPS = 30
BATCH = 4


def main() -> None:
    cuda = torch.cuda.is_available()
    distributed.init_process_group("nccl" if cuda else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    torch.manual_seed(0)
    model = build_model().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe = scalelab.Probe.attach(model, optimizer)  # one: before the model is wrapped
    wrapped = DistributedDataParallel(model)
    loader = build_loader(distributed.get_rank(), distributed.get_world_size(), BATCH, seed=0)
    for step, batch in enumerate(probe.batches(loader)):  # two
        with probe.step():  # three
            loss = wrapped({"bytes": batch["bytes"].to(device)})
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if step + 1 == STEPS:
            print(f"rank {distributed.get_rank()}: loss {loss.item():.3f} after {STEPS} steps; {probe.folder.path}")
            break
    probe.close()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
