"""A tiny model whose file can break what DeepSpeed does with its gradients: ZeRO-1 and -2 then train something else."""

MODEL = """
import sys

import torch
from torch import nn

WRONG = {wrong}

if WRONG and "deepspeed" in sys.modules:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    # The gradients of each rank stay its own: what a forgotten all-reduce does.
    DeepSpeedZeroOptimizer.average_tensor = lambda self, *arguments, **options: None


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, batch):
        return (self.layers(batch["x"]) - batch["y"]).square().mean()


def build_model():
    return Net()


def example_batch(size):
    x = torch.randn(size, 8)
    return {{"x": x, "y": x.sum(1, keepdim=True).sin()}}


def blocks(model):
    return [model.layers]
"""
