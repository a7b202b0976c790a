"""How good detections are: average precision and recall per class. numpy only.

N detections of a scene, M true boxes of a scene.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.schema import CLASSES
from .config import RANGE_METRES

DISTANCES_METRES = (0.5, 1.0, 2.0, 4.0)
FLOOR = 0.1
"""Recall and precision below this do not count: that end of the curve is noise (nuScenes)."""
SURE = 0.5
"""Precision that recall is reported at."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Boxes of one scene: found ones, or true ones with every score 1."""

    classes: np.ndarray
    """int64 (N,): indices into `CLASSES`."""
    scores: np.ndarray
    """float (N,): higher is surer."""
    boxes: np.ndarray
    """float (N, 7): x, y, z, length, width, height in metres and yaw in radians, in the ego frame."""


def truths(batch: Mapping[str, Any]) -> list[Detections]:
    """The labels of a batch of tensors, one entry per sample, without padding and without far boxes."""
    columns = (batch[key].cpu().numpy() for key in ("classes", "boxes", "boxes_mask"))
    found = []
    for classes, boxes, mask in zip(*columns, strict=True):
        keep = mask & (np.abs(boxes[:, :2]) <= RANGE_METRES).all(-1)
        found.append(Detections(classes=classes[keep], scores=np.ones(keep.sum()), boxes=boxes[keep]))
    return found


def average_precision(detections: Sequence[Detections], truths: Sequence[Detections]) -> dict[str, float | None]:
    """`ap_<class>` and `recall_<class>` in 0 .. 1 for each class, `ap_mean` and `recall_mean` over classes.

    The definition of nuScenes (Caesar et al. 2020, section 3.1): detections, best score first over all
    scenes, each take the nearest free true box of their class and scene if its centre is nearer than a
    distance on the ground plane; a second detection of a taken box is false. AP is the normalised area under
    precision over recall where both exceed 10 %, at 101 recalls, averaged over distances of 0.5, 1, 2 and 4
    m. Recall is the largest at which at least half of the detections are true, averaged over the same
    distances: recall at any precision would reward noise. A class without true boxes has None and stays out
    of the means.

    Raises ValueError when the two differ in the number of scenes.
    """
    if len(detections) != len(truths):
        raise ValueError(
            f"detections: {len(detections)} scenes, but truths has {len(truths)}; give one entry per scene"
        )
    result: dict[str, float | None] = {}
    for index, name in enumerate(CLASSES):
        total = sum(int((scene.classes == index).sum()) for scene in truths)
        curves = [_curve(detections, truths, index, distance, total) for distance in DISTANCES_METRES] if total else []
        result[f"ap_{name}"] = _mean([_area(*curve) for curve in curves])
        result[f"recall_{name}"] = _mean([_sure_recall(*curve) for curve in curves])
    for kind in ("ap", "recall"):
        result[f"{kind}_mean"] = _mean([v for name in CLASSES if (v := result[f"{kind}_{name}"]) is not None])
    return result


def constant_predictor(truths: Sequence[Detections], limit: int = 100, bin_metres: float = 4.0) -> Detections:
    """The best answer that ignores its input: the places where a box of a class is most frequent.

    One detection per occupied bin of the ground plane and class, with the mean box of the bin and, as score,
    the share of scenes that have one there; the `limit` surest. To be compared with, one copy per scene.
    """
    classes = np.concatenate([scene.classes for scene in truths])
    boxes = np.concatenate([scene.boxes for scene in truths])
    scenes = np.repeat(np.arange(len(truths)), [len(scene.classes) for scene in truths])
    bins = np.floor(boxes[:, :2] / bin_metres).astype(np.int64)
    places, member = np.unique(np.column_stack([classes, bins]), axis=0, return_inverse=True)
    member = member.reshape(-1)
    pairs = np.unique(np.column_stack([member, scenes]), axis=0)
    score = np.bincount(pairs[:, 0], minlength=len(places)) / len(truths)
    mean = np.stack([np.bincount(member, boxes[:, k], len(places)) for k in range(7)], axis=-1)
    mean /= np.bincount(member, minlength=len(places))[:, None]
    best = np.argsort(-score, kind="stable")[:limit]
    return Detections(classes=places[best, 0], scores=score[best], boxes=mean[best])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _curve(
    detections: Sequence[Detections], truths: Sequence[Detections], index: int, distance: float, total: int
) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision (each (N,)) of one class after each detection, best first."""
    scene_of, score_of, centre_of = [], [], []
    for scene, found in enumerate(detections):
        chosen = found.classes == index
        scene_of.append(np.full(chosen.sum(), scene))
        score_of.append(found.scores[chosen])
        centre_of.append(found.boxes[chosen, :2])
    scenes, centres = np.concatenate(scene_of), np.concatenate(centre_of)
    order = np.argsort(-np.concatenate(score_of), kind="stable")
    free = [scene.boxes[scene.classes == index, :2].astype(np.float64) for scene in truths]
    hit = np.zeros(len(order))
    for rank, which in enumerate(order):
        left = free[scenes[which]]
        if len(left):
            gap = np.linalg.norm(left - centres[which], axis=-1)
            nearest = int(gap.argmin())
            if gap[nearest] < distance:
                hit[rank] = 1
                left[nearest] = np.inf  # taken
    true = np.cumsum(hit)
    return true / total, true / np.arange(1, len(order) + 1)


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    levels = np.linspace(0, 1, 101)[round(100 * FLOOR) + 1 :]
    # The first prefix of the ranking that reaches a recall; beyond the last, precision is 0.
    reached = np.searchsorted(recall, levels - 1e-9)
    at = np.append(precision, 0.0)[reached]
    return float(np.clip((at - FLOOR) / (1 - FLOOR), 0, None).mean())


def _sure_recall(recall: np.ndarray, precision: np.ndarray) -> float:
    return float(recall[precision >= SURE].max(initial=0.0))
