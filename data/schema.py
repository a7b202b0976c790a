"""What a sample and a batch hold: the names that data writes and models read.

A batch is a `dict[str, torch.Tensor]` of B samples, C cameras, H x W pixels, P points, M boxes, T text bytes:

| key           | dtype, shape           | meaning                                                                |
|---------------|------------------------|------------------------------------------------------------------------|
| `images`      | uint8 (B, C, 3, H, W)  | RGB                                                                    |
| `intrinsics`  | float32 (B, C, 3, 3)   | pinhole matrix, decoded pixels; the first pixel's centre is (0.5, 0.5)  |
| `distortion`  | float32 (B, C, 5)      | Brown-Conrady k1, k2, p1, p2, k3                                       |
| `extrinsics`  | float32 (B, C, 4, 4)   | camera to ego                                                          |
| `points`      | float32 (B, P, 4)      | LiDAR x, y, z in the ego frame and intensity 0..1, zero padded         |
| `points_mask` | bool (B, P)            | True where a point is real                                             |
| `tokens`      | int64 (B, T)           | UTF-8 bytes of the route command plus 1; 0 is padding                  |
| `ego`         | float32 (B, 6)         | see `EGO_FIELDS`                                                       |
| `boxes`       | float32 (B, M, 7)      | see `BOX_FIELDS`, ego frame                                            |
| `classes`     | int64 (B, M)           | index into `CLASSES`, -1 where padded                                  |
| `boxes_mask`  | bool (B, M)            | True where a box is real                                               |

Ego frame: x forward, y left, z up, origin on the ground below the vehicle, metres.
Camera frame: x right, y down, z forward.
"""

CLASSES = ("vehicle", "pedestrian", "cyclist")
TEXT_BYTES = 48
BOX_FIELDS = ("x", "y", "z", "length", "width", "height", "yaw")
EGO_FIELDS = ("speed", "acceleration", "yaw_rate", "steering", "previous_dx", "previous_dy")
BATCH_KEYS = (
    "images",
    "intrinsics",
    "distortion",
    "extrinsics",
    "points",
    "points_mask",
    "tokens",
    "ego",
    "boxes",
    "classes",
    "boxes_mask",
)
