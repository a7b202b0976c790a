"""A loop on DeepSpeed's engine (ZeRO-2), measured: the engine takes the place of model and optimizer.

torchrun --nproc-per-node 2 examples/own_loop_deepspeed.py && scalelab report runs/latest
"""

from __future__ import annotations

import os

import torch

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
import scalelab
from byte_gpt import build_loader, build_model
from torch import distributed

STEPS = 30
BATCH = 4
CONFIG = {
    "train_micro_batch_size_per_gpu": BATCH,
    "gradient_clipping": 0.0,  # DeepSpeed clips to 1.0 unless told otherwise
    "zero_optimization": {"stage": 2},
    "zero_allow_untested_optimizer": True,
}


# Else DeepSpeed compiles it at first use, half a minute: a collective for inference, which training never calls.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def main() -> None:
    deepspeed.init_distributed()
    torch.manual_seed(0)
    model = build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe = scalelab.Probe.attach(model)  # before the engine makes its groups
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)
    probe.follow(engine)
    loader = build_loader(distributed.get_rank(), distributed.get_world_size(), BATCH, seed=0)
    for step, batch in enumerate(probe.batches(loader)):
        with probe.step():
            loss = engine({"bytes": batch["bytes"].to(engine.device)})
            engine.backward(loss)
            engine.step()
        if step + 1 == STEPS:
            print(f"rank {distributed.get_rank()}: loss {loss.item():.3f} after {STEPS} steps; {probe.folder.path}")
            break
    probe.close()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
