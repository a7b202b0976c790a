"""The driving model: three towers, a fusion, heads; a batch goes in, a scalar loss comes out.

B samples; the batch's keys and shapes are those of `scalelab.data.schema`. The model knows no rank, no
strategy, no clock.

Precision: geometry and loss are computed in at least 32 bits; features take the dtype of the weights where
they enter a tower. So the same code runs under autocast, with weights in bfloat16, and in double precision.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .camera import CameraTower
from .config import ModelConfig
from .fusion import Fusion
from .heads import Heads, decode
from .lidar import LidarTower
from .metrics import Detections
from .targets import sample_losses
from .text import TextTower


class DrivingModel(nn.Module):
    """Finds vehicles, pedestrians and cyclists around the vehicle as boxes in the ego frame."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.camera = CameraTower(config)
        self.lidar = LidarTower(config)
        self.text = TextTower(config)
        self.fusion = Fusion(config)
        self.heads = Heads(config)

    @property
    def image_size(self) -> tuple[int, int]:
        """(width, height) in pixels of the images that the model takes."""
        return self.config.image_width, self.config.image_height

    def forward(self, batch: Mapping[str, Tensor], raw: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """The mean over samples of their losses, a scalar in at least 32 bits.

        With `raw`, which needs no labels: heatmap logits (B, K, G, G) and boxes (B, 8, G, G). It is an
        argument, not a method of its own, so that wrappers which gather weights around `forward` serve it
        too.
        """
        # Weights in 64 bits ask for 64; weights in 16 bits must not round metres to 0.25 m.
        wide = torch.promote_types(self.heads.heat.weight.dtype, torch.float32)
        real = {key: value.to(wide) for key, value in batch.items() if value.is_floating_point()}
        seen = self.camera(batch["images"], real["intrinsics"], real["distortion"], real["extrinsics"])
        fine, coarse = self.lidar(real["points"], batch["points_mask"])
        told = self.text(batch["tokens"], real["ego"])
        fused = self.fusion(coarse, torch.cat([seen, told], dim=1), like=real["points"])
        heat, shape = (output.to(wide) for output in self.heads(fused, fine))
        if raw:
            return heat, shape
        return sample_losses(heat, shape, real["boxes"], batch["classes"], batch["boxes_mask"]).mean()

    @torch.no_grad()
    def detect(self, batch: Mapping[str, Tensor], limit: int = 100) -> list[Detections]:
        """Per sample, up to `limit` boxes with their classes and scores, best first, as numpy arrays."""
        heat, shape = self(batch, raw=True)
        columns = [column.cpu().numpy() for column in decode(heat, shape, limit)]
        return [Detections(classes=c, scores=s, boxes=b) for c, s, b in zip(*columns, strict=True)]
