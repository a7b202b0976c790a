"""Average precision and recall against cases worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scalelab.models.driving import Detections, average_precision, constant_predictor, example_batch, truths


def scene(*rows):
    """Rows of (class, score, x, y) -> detections."""
    table = np.array(rows, dtype=float).reshape(-1, 4)
    boxes = np.zeros((len(table), 7))
    boxes[:, :2], boxes[:, 3:6] = table[:, 2:], (4, 2, 1.5)
    return Detections(classes=table[:, 0].astype(np.int64), scores=table[:, 1], boxes=boxes)


TRUE = [scene((0, 1, 0, 0), (0, 1, 10, 0), (1, 1, 5, 5)), scene((0, 1, -20, 3))]


def test_perfect_detections_score_one():
    """The labels themselves have AP and recall 1 in every class that has labels, None in the others."""
    result = average_precision(TRUE, TRUE)
    assert result["ap_vehicle"] == result["ap_pedestrian"] == result["recall_vehicle"] == 1
    assert result["ap_cyclist"] is None
    assert result["ap_mean"] == result["recall_mean"] == 1


@pytest.mark.parametrize("found", [scene(), scene((0, 0.9, 30, 30)), scene((2, 0.9, 0, 0))])
def test_nothing_right_scores_zero(found):
    """No detections, far ones and ones of another class have AP and recall 0."""
    result = average_precision([found, scene()], TRUE)
    assert result["ap_mean"] == result["recall_mean"] == 0


def test_a_second_detection_of_a_box_is_false():
    """Three boxes found, each followed by its duplicate: precision 1/2 towards the end, so AP falls."""
    single = [scene((0, 0.9, 0, 0), (0, 0.7, 10, 0)), scene((0, 0.5, -20, 3))]
    double = [
        scene((0, 0.9, 0, 0), (0, 0.8, 0, 0), (0, 0.7, 10, 0), (0, 0.6, 10, 0)),
        scene((0, 0.5, -20, 3)),
    ]
    once, twice = average_precision(single, TRUE), average_precision(double, TRUE)
    assert once["ap_vehicle"] == 1
    # Precision at recalls 1/3, 2/3, 1 is 1, 2/3, 3/5; 90 levels from 0.11: 23, 33 and 34 of them.
    expected = (23 * 0.9 + 33 * (2 / 3 - 0.1) + 34 * (0.6 - 0.1)) / 90 / 0.9
    assert twice["ap_vehicle"] == pytest.approx(expected)
    assert twice["recall_vehicle"] == 1


@pytest.mark.parametrize(("distance", "share"), [(0.4, 1.0), (0.6, 0.75), (1.5, 0.5), (3.0, 0.25), (4.1, 0.0)])
def test_distance_thresholds_are_averaged(distance, share):
    """A lone box found at a distance counts for the thresholds above it: 0.5, 1, 2 and 4 m."""
    result = average_precision([scene((0, 0.9, 0, distance))], [scene((0, 1, 0, 0))])
    assert result["ap_vehicle"] == result["recall_vehicle"] == pytest.approx(share)


def test_boxes_of_other_scenes_do_not_match():
    """A detection in the wrong scene is false."""
    result = average_precision([scene(), scene((0, 0.9, 0, 0))], [scene((0, 1, 0, 0)), scene()])
    assert result["ap_vehicle"] == 0


def test_recall_asks_for_even_precision():
    """A box found only below many false detections does not count as recalled."""
    noise = [(0, 0.9 - i / 100, 30, i) for i in range(5)]
    result = average_precision([scene(*noise, (0, 0.1, 0, 0))], [scene((0, 1, 0, 0))])
    assert result["recall_vehicle"] == 0
    assert result["ap_vehicle"] == pytest.approx((1 / 6 - 0.1) / 0.9)


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 1), st.floats(-9, 9), st.floats(-9, 9)), max_size=12))
def test_scores_matter_only_by_their_order(rows):
    """A monotone change of the scores, or another order of scenes, changes nothing; all lies in 0..1."""
    rows = [(k, round(s, 3) + i / 1e5, x, y) for i, (k, s, x, y) in enumerate(rows)]
    found = [scene(*rows), scene(*[(k, s / 2 + 1e-7, y, x) for k, s, x, y in rows])]
    result = average_precision(found, TRUE)
    squashed = [Detections(classes=d.classes, scores=d.scores**3, boxes=d.boxes) for d in found]
    assert average_precision(squashed, TRUE) == result
    assert average_precision(found[::-1], TRUE[::-1]) == result
    assert all(value is None or 0 <= value <= 1 for value in result.values())


def test_scene_counts_must_agree():
    """Detections for another number of scenes than there are truths are refused."""
    with pytest.raises(ValueError, match=r"1 scenes, but truths has 2"):
        average_precision(TRUE[:1], TRUE)


def test_constant_predictor_names_the_busiest_places():
    """The surest place is where most scenes have a box; its score is their share; the limit holds."""
    train = [scene((0, 1, 5.1, 1), (2, 1, -8.5, 3)), scene((0, 1, 5.3, 1)), scene((0, 1, 5.2, 1)), scene()]
    best = constant_predictor(train, limit=1)
    assert best.classes.tolist() == [0]
    assert best.scores.tolist() == [0.75]
    np.testing.assert_allclose(best.boxes[0, :2], [5.2, 1])
    assert len(constant_predictor(train).scores) == 2


def test_truths_leave_out_padding_and_far_boxes():
    """The labels of a batch become one entry per sample: real boxes within the grid only."""
    batch = example_batch(3, "nano")
    batch["boxes"][0, 0, 0] = 55.0
    found = truths(batch)
    counts = batch["boxes_mask"].sum(1) - torch.tensor([1, 0, 0])
    assert [len(entry.classes) for entry in found] == counts.tolist()
    assert average_precision(found, found)["ap_mean"] == 1
