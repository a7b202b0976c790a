"""A loop under Hugging Face Accelerate, measured.

torchrun --nproc-per-node 2 examples/own_loop_accelerate.py && scalelab report runs/latest
"""

from __future__ import annotations

import scalelab
import torch
from accelerate import Accelerator
from byte_gpt import build_loader, build_model

STEPS = 30
BATCH = 4


def main() -> None:
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # makes the process group
    torch.manual_seed(0)
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe = scalelab.Probe.attach(model.to(accelerator.device), optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = build_loader(accelerator.process_index, accelerator.num_processes, BATCH, seed=0)
    for step, batch in enumerate(probe.batches(loader)):
        with probe.step():
            loss = model({"bytes": batch["bytes"].to(accelerator.device)})
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        if step + 1 == STEPS:
            accelerator.print(f"loss {loss.item():.3f} after {STEPS} steps; run folder {probe.folder.path}")
            break
    probe.close()
    accelerator.end_training()


if __name__ == "__main__":
    main()
