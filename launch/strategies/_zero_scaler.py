"""Dynamic loss scaling for DeepSpeed's optimizers, by torch's rule, so that fp16 means the same under every strategy.

DeepSpeed's own fp16 keeps the weights in fp16 too; here they are fp32 and only the computation is fp16.
"""

from __future__ import annotations

from deepspeed.runtime.fp16.loss_scaler import LossScalerBase

# torch.amp.GradScaler's defaults.
INITIAL_SCALE = 65536.0
GROWTH_INTERVAL = 2000


class LossScaler(LossScalerBase):
    """Halves the scale after a step whose gradients overflowed, doubles it after `GROWTH_INTERVAL` without.

    DeepSpeed calls `update_scale` before it divides the gradients by the scale: a new one must not count until
    `settle`, after the step. (With its own scaler, gradients are divided by the doubled scale whenever it grows.)
    """

    def __init__(self) -> None:
        super().__init__(INITIAL_SCALE)
        self.dynamic = True
        self._overflowed = False
        self._good_steps = 0

    def update_scale(self, overflow: bool) -> None:
        self._overflowed = bool(overflow)

    def settle(self) -> None:
        """Take over the scale for the next step."""
        self._good_steps = 0 if self._overflowed else self._good_steps + 1
        if self._overflowed:
            self.cur_scale /= 2
        elif self._good_steps == GROWTH_INTERVAL:
            self.cur_scale, self._good_steps = self.cur_scale * 2, 0
