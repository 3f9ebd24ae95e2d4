"""Average precision by hand tables."""

import numpy as np
import pytest

from ssd_algo.evaluation.average_precision import (
    Scored,
    Truth,
    area_under_curve,
    average_precisions,
    mean_average_precision,
)


def truth(*rows: list[float], difficult: list[bool] | None = None) -> Truth:
    """Rows of class, xmin, ymin, xmax, ymax."""
    table = np.asarray(rows, dtype=np.float32).reshape(-1, 5)
    flags = np.asarray(difficult or [False] * len(table), dtype=bool)
    return Truth(table[:, 1:], table[:, 0].astype(np.int64), flags)


def found(*rows: list[float]) -> Scored:
    """Rows of class, score, xmin, ymin, xmax, ymax."""
    table = np.asarray(rows, dtype=np.float32).reshape(-1, 6)
    return Scored(table[:, 2:], table[:, 1], table[:, 0].astype(np.int64))


BOX = [0.0, 0.0, 0.2, 0.2]
ELSEWHERE = [0.5, 0.5, 0.7, 0.7]


def test_area_under_the_interpolated_curve_by_hand() -> None:
    # Right, wrong, right, right, wrong of 4 objects: precisions 1, 1/2, 2/3, 3/4, 3/5; interpolated at the three hits
    # 1, 3/4, 3/4, each over a quarter of recall: (1 + 0.75 + 0.75) / 4.
    right = np.asarray([True, False, True, True, False])
    assert area_under_curve(right, 4) == pytest.approx(0.625)


def test_perfect_detections() -> None:
    assert average_precisions([truth([0, *BOX])], [found([0, 0.9, *BOX])], 0.5) == {0: 1.0}


def test_disjoint_boxes_score_nothing() -> None:
    # In units of fractions too, where GluonCV's metric, which adds 1 to each side, gives 1.0.
    assert average_precisions([truth([0, *BOX])], [found([0, 0.9, *ELSEWHERE])], 0.5) == {0: 0.0}


def test_an_object_is_found_once() -> None:
    # Two detections of one of two objects: one right of 1, precision 1, recall 1/2; the duplicate is wrong.
    both = found([0, 0.9, *BOX], [0, 0.8, *BOX])
    assert average_precisions([truth([0, *BOX], [0, *ELSEWHERE])], [both], 0.5) == {0: 0.5}


def test_false_positives_on_an_image_without_objects_count() -> None:
    # The false one scores higher: precision at the hit is 1/2.
    truths = [truth(), truth([0, *BOX])]
    assert average_precisions(truths, [found([0, 0.9, *BOX]), found([0, 0.8, *BOX])], 0.5) == {0: 0.5}


def test_class_seen_only_in_detections_has_zero() -> None:
    result = average_precisions([truth([0, *BOX])], [found([0, 0.9, *BOX], [2, 0.9, *BOX])], 0.5)
    assert result == {0: 1.0, 2: 0.0}
    assert mean_average_precision(result) == 0.5


def test_class_that_is_never_found_has_zero() -> None:
    assert average_precisions([truth([1, *BOX])], [found()], 0.5) == {1: 0.0}


def test_nothing_at_all() -> None:
    assert mean_average_precision(average_precisions([truth()], [found()], 0.5)) == 0.0


def test_difficult_objects_neither_count_nor_cost() -> None:
    truths = [truth([0, *BOX], [0, *ELSEWHERE], difficult=[True, False])]
    assert average_precisions(truths, [found([0, 0.9, *BOX], [0, 0.8, *ELSEWHERE])], 0.5) == {0: 1.0}


def test_class_with_difficult_objects_only_is_left_out() -> None:
    truths = [truth([0, *BOX], [1, *ELSEWHERE], difficult=[False, True])]
    assert average_precisions(truths, [found([0, 0.9, *BOX], [1, 0.9, *ELSEWHERE])], 0.5) == {0: 1.0}


def test_iou_at_the_threshold_is_not_enough() -> None:
    # Half of the box in one direction: IoU 1/2 exactly.
    half = found([0, 0.9, 0, 0, 1, 0.5])
    assert average_precisions([truth([0, 0, 0, 1, 1])], [half], 0.5) == {0: 0.0}
    assert average_precisions([truth([0, 0, 0, 1, 1])], [half], 0.49) == {0: 1.0}


def test_order_is_by_score_over_all_images() -> None:
    # Image 1 has the higher score and is wrong, image 2 is right: 1/2, whatever the order of the images.
    truths = [truth([0, *BOX]), truth([0, *BOX])]
    detections = [found([0, 0.3, *BOX]), found([0, 0.9, *ELSEWHERE])]
    expected = {0: pytest.approx(0.25)}  # one hit of two objects at precision 1/2
    assert average_precisions(truths, detections, 0.5) == expected
    assert average_precisions(truths[::-1], detections[::-1], 0.5) == expected
