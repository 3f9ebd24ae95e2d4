"""Average precision by hand tables."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssd_algo.evaluation import matching
from ssd_algo.evaluation.average_precision import (
    area_under_curve,
    coco,
    eleven_point_average,
    mean_average_precision,
    voc,
)
from ssd_algo.evaluation.matching import Scored, Truth


def truth(*rows: list[float], difficult: list[bool] | None = None) -> Truth:
    """Rows of class, xmin, ymin, xmax, ymax."""
    table = np.asarray(rows, dtype=np.float32).reshape(-1, 5)
    flags = np.asarray(difficult or [False] * len(table), dtype=bool)
    return Truth(table[:, 1:], table[:, 0].astype(np.int64), flags)


def found(*rows: list[float]) -> Scored:
    """Rows of class, score, xmin, ymin, xmax, ymax."""
    table = np.asarray(rows, dtype=np.float32).reshape(-1, 6)
    return Scored(table[:, 2:], table[:, 1], table[:, 0].astype(np.int64))


def areas(truths: list[Truth], detections: list[Scored], iou_threshold: float) -> dict[int, float]:
    return {identity: score.area for identity, score in voc(truths, detections, iou_threshold).items()}


BOX = [0.0, 0.0, 0.2, 0.2]
ELSEWHERE = [0.5, 0.5, 0.7, 0.7]


def test_area_under_the_interpolated_curve_by_hand() -> None:
    # Right, wrong, right, right, wrong of 4 objects: precisions 1, 1/2, 2/3, 3/4, 3/5; interpolated at the three hits
    # 1, 3/4, 3/4, each over a quarter of recall: (1 + 0.75 + 0.75) / 4.
    right = np.asarray([True, False, True, True, False])
    assert area_under_curve(right, 4) == pytest.approx(0.625)


def test_perfect_detections() -> None:
    assert areas([truth([0, *BOX])], [found([0, 0.9, *BOX])], 0.5) == {0: 1.0}


def test_disjoint_boxes_score_nothing() -> None:
    # In units of fractions too, where GluonCV's metric, which adds 1 to each side, gives 1.0.
    assert areas([truth([0, *BOX])], [found([0, 0.9, *ELSEWHERE])], 0.5) == {0: 0.0}


def test_an_object_is_found_once() -> None:
    # Two detections of one of two objects: one right of 1, precision 1, recall 1/2; the duplicate is wrong.
    both = found([0, 0.9, *BOX], [0, 0.8, *BOX])
    assert areas([truth([0, *BOX], [0, *ELSEWHERE])], [both], 0.5) == {0: 0.5}


def test_false_positives_on_an_image_without_objects_count() -> None:
    # The false one scores higher: precision at the hit is 1/2.
    truths = [truth(), truth([0, *BOX])]
    assert areas(truths, [found([0, 0.9, *BOX]), found([0, 0.8, *BOX])], 0.5) == {0: 0.5}


def test_class_seen_only_in_detections_has_zero_and_is_left_out_of_the_mean() -> None:
    scores = voc([truth([0, *BOX])], [found([0, 0.9, *BOX], [2, 0.9, *BOX])], 0.5)
    assert {identity: (score.area, score.objects) for identity, score in scores.items()} == {0: (1.0, 1), 2: (0.0, 0)}
    assert mean_average_precision(scores) == 1.0


def test_an_object_within_a_crowd_is_found() -> None:
    """All of the detection lies in the crowd, which overlaps it more than the object does."""
    one = Truth(
        np.float32([[0, 0, 100, 100], [10, 10, 30, 30]]), np.zeros(2, int), np.zeros(2, bool), np.array([1, 0], bool)
    )
    detections = [found([0, 0.9, 10, 10, 30, 31], [0, 0.8, 60, 60, 80, 80])]
    assert areas([one], detections, 0.5) == {0: 1.0}  # the second lies in the crowd alone, and does not count


def test_class_that_is_never_found_has_zero() -> None:
    assert areas([truth([1, *BOX])], [found()], 0.5) == {1: 0.0}


def test_nothing_at_all() -> None:
    assert mean_average_precision(voc([truth()], [found()], 0.5)) == 0.0


def test_difficult_objects_neither_count_nor_cost() -> None:
    truths = [truth([0, *BOX], [0, *ELSEWHERE], difficult=[True, False])]
    assert areas(truths, [found([0, 0.9, *BOX], [0, 0.8, *ELSEWHERE])], 0.5) == {0: 1.0}


def test_class_with_difficult_objects_only_is_left_out() -> None:
    truths = [truth([0, *BOX], [1, *ELSEWHERE], difficult=[False, True])]
    assert areas(truths, [found([0, 0.9, *BOX], [1, 0.9, *ELSEWHERE])], 0.5) == {0: 1.0}


def test_iou_at_the_threshold_is_not_enough() -> None:
    # Half of the box in one direction: IoU 1/2 exactly.
    half = found([0, 0.9, 0, 0, 1, 0.5])
    assert areas([truth([0, 0, 0, 1, 1])], [half], 0.5) == {0: 0.0}
    assert areas([truth([0, 0, 0, 1, 1])], [half], 0.49) == {0: 1.0}


def test_order_is_by_score_over_all_images() -> None:
    # Image 1 has the higher score and is wrong, image 2 is right: 1/2, whatever the order of the images.
    truths = [truth([0, *BOX]), truth([0, *BOX])]
    detections = [found([0, 0.3, *BOX]), found([0, 0.9, *ELSEWHERE])]
    expected = {0: pytest.approx(0.25)}  # one hit of two objects at precision 1/2
    assert areas(truths, detections, 0.5) == expected
    assert areas(truths[::-1], detections[::-1], 0.5) == expected


def test_eleven_points_by_hand() -> None:
    # Right, wrong, right of 4 objects: precision 1 up to recall 1/4 (points 0, 0.1, 0.2), 2/3 up to 1/2 (0.3, 0.4,
    # 0.5), nothing beyond: (3 + 3 * 2/3) / 11.
    assert eleven_point_average(np.asarray([True, False, True]), 4) == pytest.approx(5 / 11)


def test_eleven_points_do_not_lose_one_by_rounding() -> None:
    # 3 of 10 objects: recall 0.3, which as a float is above 3 / 10 in steps of 0.1; points 0, 0.1, 0.2, 0.3.
    assert eleven_point_average(np.ones(3, dtype=bool), 10) == pytest.approx(4 / 11)


def test_a_difficult_object_takes_any_number_of_detections() -> None:
    truths = [truth([0, *BOX], [0, *ELSEWHERE], difficult=[True, False])]
    detections = [found([0, 0.9, *BOX], [0, 0.85, *BOX], [0, 0.8, *ELSEWHERE])]
    assert areas(truths, detections, 0.5) == {0: 1.0}
    assert coco(truths, detections).mean == pytest.approx(1.0)


def random_images(generator: np.random.Generator, images: int, classes: int) -> tuple[list[Truth], list[Scored]]:
    """Objects of all sizes, also crowds; detections near them, doubled, of the wrong class or anywhere; equal scores."""
    truths, detections = [], []
    for _ in range(images):
        count = int(generator.integers(0, 12))
        low, sides = generator.uniform(0, 400, (count, 2)), np.exp(generator.uniform(1.5, 5.5, (count, 2)))
        boxes = np.concatenate([low, low + sides], axis=1)
        identities = generator.integers(0, classes, count)
        truths.append(Truth(boxes, identities, np.zeros(count, dtype=bool), generator.random(count) < 0.1))
        which = generator.integers(0, count, 3 * count) if count else np.zeros(0, dtype=np.int64)
        near = boxes[which] + generator.normal(0, 0.06, (len(which), 4)) * np.tile(sides[which], 2)
        anywhere = generator.uniform(0, 400, (5, 2))
        near = np.concatenate([near, np.concatenate([anywhere, anywhere + generator.uniform(5, 200, (5, 2))], axis=1)])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        same = np.concatenate([identities[which], generator.integers(0, classes, 5)])
        wrong = generator.random(len(same)) < 0.1
        found_classes = np.where(wrong, generator.integers(0, classes, len(same)), same)
        detections.append(Scored(near, generator.random(len(near)).round(2), found_classes))
    return truths, detections


def judged_by_pycocotools(truths: list[Truth], detections: list[Scored]) -> COCOeval:
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    found_rows = []
    for image, (objects, each) in enumerate(zip(truths, detections, strict=True)):
        data["images"].append({"id": image})
        crowds = np.zeros(len(objects.classes), dtype=bool) if objects.crowd is None else objects.crowd
        for box, identity, crowd in zip(objects.boxes.tolist(), objects.classes.tolist(), crowds.tolist(), strict=True):
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            row = {"id": len(data["annotations"]) + 1, "image_id": image, "category_id": identity, "bbox": sides}
            data["annotations"].append(row | {"area": sides[2] * sides[3], "iscrowd": int(crowd)})
        for box, score, identity in zip(each.boxes.tolist(), each.scores.tolist(), each.classes.tolist(), strict=True):
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            found_rows.append({"image_id": image, "category_id": identity, "bbox": sides, "score": score})
    present = {row["category_id"] for row in [*data["annotations"], *found_rows]}
    data["categories"] = [{"id": identity} for identity in sorted(present)]
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCO()
        judge.dataset = data
        judge.createIndex()
        evaluation = COCOeval(judge, judge.loadRes(found_rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize(("seed", "images", "classes"), [(0, 40, 1), (1, 60, 5), (2, 30, 20), (3, 3, 2), (4, 100, 3)])
def test_coco_is_equal_to_pycocotools(seed: int, images: int, classes: int) -> None:
    truths, detections = random_images(np.random.default_rng(seed), images, classes)
    ours, theirs = coco(truths, detections), judged_by_pycocotools(truths, detections)
    values = [ours.mean, ours.at_50, ours.at_75, ours.small, ours.medium, ours.large]
    assert [-1 if value is None else value for value in values] == pytest.approx(theirs.stats[:6], abs=1e-6)
    assert 0.1 < theirs.stats[0] < 0.9
    precision = theirs.eval["precision"][:, :, :, 0, -1]
    by_class = {
        identity: precision[:, :, column].mean()
        for column, identity in enumerate(theirs.params.catIds)
        if precision[0, 0, column] > -1
    }
    assert ours.by_class == pytest.approx(by_class, abs=1e-6)


def test_coco_takes_no_more_than_a_hundred_detections_of_a_class_in_an_image() -> None:
    generator = np.random.default_rng(0)
    low = generator.uniform(0, 1000, (150, 2))
    boxes = np.concatenate([low, low + 20], axis=1)
    truths = [Truth(boxes, np.zeros(150, dtype=np.int64), np.zeros(150, dtype=bool))]
    detections = [Scored(boxes, generator.random(150), np.zeros(150, dtype=np.int64))]
    ours = coco(truths, detections)
    assert ours.mean == pytest.approx(67 / 101)  # recall 100 / 150 at precision 1: points 0 ... 0.66
    assert ours.mean == pytest.approx(judged_by_pycocotools(truths, detections).stats[0], abs=1e-6)


def test_coco_without_objects_or_detections() -> None:
    assert coco([truth()], [found([0, 0.9, *BOX])]).mean is None
    assert coco([truth([1, *BOX])], [found()]).by_class == {1: 0.0}
    assert coco([], []).mean is None


def test_pairs_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    truths, detections = random_images(np.random.default_rng(5), 20, 3)
    whole = voc(truths, detections, 0.5), coco(truths, detections)
    monkeypatch.setattr(matching, "_PAIRS_AT_ONCE", 7)
    assert (voc(truths, detections, 0.5), coco(truths, detections)) == whole
