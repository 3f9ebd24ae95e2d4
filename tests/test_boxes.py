import numpy as np
import pytest

from ssd_algo.data import boxes


def corners(*rows: list[float]) -> boxes.Boxes:
    return np.asarray(rows, dtype=np.float32).reshape(-1, 4)


def test_iou_by_hand() -> None:
    # 2x2 against: itself; a quarter shared, 1 / (4 + 4 - 1); touching; no area.
    first = corners([0, 0, 2, 2])
    second = corners([0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [1, 1, 1, 1])
    assert boxes.iou(first, second) == pytest.approx(np.asarray([[1, 1 / 7, 0, 0]]))


def test_iou_of_boxes_without_area_is_zero() -> None:
    empty = corners([1, 1, 1, 1])
    assert boxes.iou(empty, empty)[0, 0] == 0


def test_iou_of_no_boxes() -> None:
    assert boxes.iou(corners(), corners([0, 0, 1, 1])).shape == (0, 1)


def test_clip() -> None:
    assert boxes.clip(corners([-1, 2, 30, 40]), 20, 10).tolist() == [[0, 2, 20, 10]]


def test_decode_by_hand() -> None:
    # Anchor: centre (4, 5), sides 4 and 2. Offsets 1, -1: centre 4 + 0.1 * 4 = 4.4 and 5 - 0.1 * 2 = 4.8;
    # 5 ln 2 and 0: sides 4 * exp(0.2 * 5 ln 2) = 8 and 2.
    found = boxes.decode(corners([1, -1, 5 * np.log(2), 0]), corners([2, 4, 6, 6]))
    assert found == pytest.approx(corners([0.4, 3.8, 8.4, 5.8]), abs=1e-5)


def test_suppression_keeps_the_best_of_each_class() -> None:
    # Best first. The second overlaps the first by 9 / 11, the third is the same box of another class, the fourth is
    # elsewhere, the fifth overlaps only the second, which is gone: a dropped box drops nothing.
    rows = corners([0, 0, 10, 1], [1, 0, 11, 1], [0, 0, 10, 1], [50, 0, 60, 1], [5, 0, 15, 1])
    kept = boxes.non_maximum_suppression(rows, np.asarray([0, 0, 1, 0, 0]), 0.4)
    assert kept.tolist() == [0, 2, 3, 4]


def test_suppression_at_the_threshold_keeps() -> None:
    # IoU exactly 1/3: only a larger one drops.
    rows = corners([0, 0, 2, 1], [1, 0, 3, 1])
    groups = np.zeros(2, dtype=np.int64)
    assert len(boxes.non_maximum_suppression(rows, groups, float(boxes.iou(rows, rows)[0, 1]))) == 2
    assert len(boxes.non_maximum_suppression(rows, groups, 0.33)) == 1
