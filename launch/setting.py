"""What a strategy's law, its wrapper and the model's preparation depend on, besides the model. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

# AdamW's constants are PyTorch's defaults (Loshchilov and Hutter 2019), written out so that no library's own win.
ADAMW_BETAS = (0.9, 0.999)
ADAMW_EPS = 1e-8
WEIGHT_DECAY = 0.01
SGD_MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is trained, resolved. `bucket_mb` (MiB) and `overlap` are None where a strategy has no such knob."""

    world_size: int
    device: Literal["cpu", "cuda"]
    engine: Literal["native", "accelerate"] = "native"
    precision: str = "fp32"
    checkpointing: Literal["none", "full", "selective"] = "none"
    compile: bool = False
    optimizer: Literal["adamw", "sgd"] = "adamw"
    micro_batch: int = 1
    accumulation: int = 1
    accumulation_sync: Literal["each", "last"] = "last"
    lr: float = 1e-3
    clip_norm: float | None = None
    bucket_mb: float | None = None
    overlap: bool | None = None

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """The optimizer's constants, the same under every strategy."""
        if self.optimizer == "sgd":
            return {"momentum": SGD_MOMENTUM, "weight_decay": WEIGHT_DECAY}
        return {"betas": ADAMW_BETAS, "eps": ADAMW_EPS, "weight_decay": WEIGHT_DECAY}

    @property
    def reductions(self) -> int:
        """How often the gradients are reduced in an optimizer step."""
        return self.accumulation if self.accumulation_sync == "each" else 1
