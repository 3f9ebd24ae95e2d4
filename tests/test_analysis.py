"""Errors, thresholds and confusions by hand tables."""

import numpy as np
import pytest

from ssd_algo.evaluation.analysis import RECALLS, analyse, describe, errors_at, in_doubt, lessons, per_image
from ssd_algo.evaluation.average_precision import voc
from ssd_algo.evaluation.matching import Scored, Truth

FAR = [200, 0, 210, 10]


def box(left: float) -> list[float]:
    """10 x 10 pixels."""
    return [left, 0, left + 10, 10]


def truth(*rows: tuple[int, list[float]], difficult: tuple[int, ...] = ()) -> Truth:
    boxes = np.asarray([each for _, each in rows], dtype=np.float32).reshape(-1, 4)
    flags = np.isin(np.arange(len(rows)), difficult)
    return Truth(boxes, np.asarray([identity for identity, _ in rows], dtype=np.int64), flags)


def found(*rows: tuple[int, float, list[float]]) -> Scored:
    boxes = np.asarray([each for *_, each in rows], dtype=np.float32).reshape(-1, 4)
    scores = np.asarray([score for _, score, _ in rows], dtype=np.float32)
    return Scored(boxes, scores, np.asarray([identity for identity, *_ in rows], dtype=np.int64))


# Objects 0 at 0 and 40, 1 at 20 and 60, and a difficult 0 at 80.
TRUTH = truth((0, box(0)), (1, box(20)), (0, box(40)), (1, box(60)), (0, box(80)), difficult=(4,))
FOUND = found(
    (0, 0.905, box(0)),  # right
    (0, 0.805, box(1)),  # on the same: 9 / 11 shared
    (0, 0.705, box(20)),  # on a 1
    (0, 0.605, box(44)),  # 6 / 14 = 0.43 of a 0
    (1, 0.555, box(44)),  # 0.43 of a 0, as a 1
    (1, 0.505, FAR),
    (0, 0.455, box(80)),  # on the difficult one
)


def test_each_kind_of_error() -> None:
    errors = errors_at(0.3, [TRUTH], [FOUND], 0.5)
    # By class, then by score.
    assert errors.kinds.tolist() == [
        "right",
        "duplicate",
        "confusion",
        "localisation",
        "ignored",
        "both",
        "background",
    ]
    # Objects by class: 0 at 0, 40, 80, 1 at 20, 60. Only the last has nothing on it that would explain the miss.
    assert errors.hit.tolist() == [True, False, False, False, False]
    assert errors.missed.tolist() == [False, False, False, False, True]
    # Every object that counts is in one row: two of each class. Every detection that counts is in one column.
    assert errors.confusion == {(0, 0): 1, (1, 0): 1, (None, 0): 2, (None, 1): 2, (0, None): 1, (1, None): 1}


def test_errors_below_the_score_do_not_count() -> None:
    errors = errors_at(0.7, [TRUTH], [FOUND], 0.5)
    assert errors.kinds.tolist() == ["right", "duplicate", "confusion"]
    assert errors.missed.tolist() == [False, True, False, False, True]


def test_of_several_on_an_object_the_best_is_the_confusion() -> None:
    detections = found((1, 0.9, box(0)), (2, 0.95, box(0)), (1, 0.8, box(20)), (0, 0.7, box(20)))
    errors = errors_at(0.3, [truth((0, box(0)), (0, box(20)))], [detections], 0.5)
    # The second object is found, so what calls it a 1 stands for nothing.
    assert errors.confusion == {(0, 2): 1, (0, 0): 1, (None, 1): 2}
    assert errors.kinds.tolist() == ["right", "confusion", "confusion", "confusion"]


def test_the_threshold_is_the_middle_of_the_best() -> None:
    analysis = analyse([TRUTH], [FOUND], 0.5)
    # With 0.81 to 0.90, of which 0.86 is in the middle, there is one detection, which is right, for 4 objects:
    # precision 1, recall 1/4, F1 2 x 1 / (1 + 4).
    assert analysis.threshold == 0.86
    assert (analysis.precision, analysis.recall, analysis.f1) == (1.0, 0.25, 0.4)
    # Class 0 has 2 objects: F1 2 x 1 / (1 + 2); class 1 has nothing right at any score.
    first, second = analysis.curves[0], analysis.curves[1]
    assert (first.objects, first.threshold, first.median_iou) == (2, 0.86, 1.0)
    assert first.f1[85] == pytest.approx(2 / 3)
    # From 0.61 to 0.70 there are three that count: precision 1/3, recall 1/2; from 0.46 down four, as the difficult
    # object's does not count.
    assert (first.precision[60], first.recall[60]) == (pytest.approx(1 / 3), 0.5)
    assert first.precision[44] == 0.25
    assert (second.objects, second.threshold, second.median_iou) == (2, None, None)
    assert second.precision[98] == 1  # without detections


def test_of_nothing_right_half_is_the_threshold() -> None:
    analysis = analyse([truth((0, box(0)))], [found()], 0.5)
    assert (analysis.threshold, analysis.precision, analysis.recall, analysis.f1) == (0.5, 1.0, 0.0, 0.0)
    assert describe(analysis, {0: "dog"})["classes"]["0"] == {
        "name": "dog",
        "objects": 1,
        "threshold": None,
        "precision": None,
        "recall": None,
        "F1": None,
        "F1_at_half": 0.0,
        "median_iou": None,
        "AP_75": 0.0,
        "errors": dict.fromkeys(("right", "localisation", "confusion", "both", "duplicate", "background"), 0)
        | {"missed": 1},
    }


def test_without_images() -> None:
    analysis = analyse([], [], 0.5)
    assert (analysis.curves, analysis.errors.confusion, lessons(analysis, [])) == ({}, {}, [])
    assert describe(analysis, {})["objects"] == 0


def test_the_precision_by_recall_is_the_curve_of_the_average_precision() -> None:
    # Right, wrong, right of 2 objects: 1 up to a recall of 1/2, then 2/3.
    detections = found((0, 0.9, box(0)), (0, 0.8, FAR), (0, 0.7, box(20)))
    analysis = analyse([truth((0, box(0)), (0, box(20)))], [detections], 0.5)
    expected = np.where(RECALLS <= 0.5, 1, 2 / 3)
    assert analysis.curves[0].by_recall == pytest.approx(expected)


def test_what_is_right_is_what_the_map_counts() -> None:
    """Sums over many random images: right ones, objects and detections as VOC's average precision has them."""
    generator = np.random.default_rng(0)
    truths, detections = [], []
    for _ in range(50):
        rows = [(int(generator.integers(3)), box(float(generator.integers(0, 100)))) for _ in range(8)]
        truths.append(truth(*rows, difficult=(0,)))
        moved = [
            (identity, float(generator.random()), box(each[0] + generator.normal(0, 3))) for identity, each in rows
        ]
        detections.append(found(*moved, (1, 0.5, box(3)), (2, 0.6, box(50))))
    analysis = analyse(truths, detections, 0.5)
    described = describe(analysis, {})
    threshold = analysis.threshold
    kept = [each.above(threshold) for each in detections]
    for identity, score in voc(truths, kept, 0.5).items():
        each = described["classes"][str(identity)]
        assert each["objects"] == score.objects
        errors = each["errors"]
        rows = {key: count for key, count in analysis.errors.confusion.items() if key[0] == identity}
        columns = {key: count for key, count in analysis.errors.confusion.items() if key[1] == identity}
        assert sum(rows.values()) == score.objects
        assert sum(columns.values()) == sum(errors.values()) - errors["missed"]
        assert rows[identity, identity] == errors["right"]
        place = round(threshold * 100) - 1
        assert errors["right"] == round(analysis.curves[identity].recall[place] * score.objects)
    assert described["detections"] == sum(described["errors"].values()) - described["errors"]["missed"]


def test_each_kind_of_lesson() -> None:
    missed = (truth((0, box(0)), (0, box(20))), found())
    doubt = (truth((0, box(0))), found((0, 0.9, box(0)), *((0, 0.95, box(left)) for left in (50, 70, 90))))
    sure = (truth(), found((0, 0.99, FAR)))
    confused = (truth((1, box(0)), (0, box(20))), found((0, 0.95, box(0)), (0, 0.9, box(20))))
    best = (truth((0, box(0)), (0, box(20))), found((0, 0.9, box(0)), (0, 0.9, box(20))))
    good = (truth((0, box(0))), found((0, 0.9, box(0))))
    empty = (truth(), found())
    images = [empty, good, best, confused, sure, doubt, missed]
    analysis = analyse([each for each, _ in images], [each for _, each in images], 0.5)
    assert analysis.threshold < 0.9
    assert in_doubt(per_image(analysis)).tolist() == [False] * 5 + [True, False]
    assert [(each.image, each.why) for each in lessons(analysis, range(7))] == [
        (6, "most missed"),
        (3, "most missed"),  # its 1
        (5, "labels in doubt"),
        (4, "surest mistakes"),
        (2, "best"),
        (1, "best"),
    ]
    assert [each.image for each in lessons(analysis, [1, 3])] == [3, 1]


def test_lessons_are_no_more_than_24() -> None:
    images = [(truth((0, box(0))), found((0, 0.9, box(0))))] * 40 + [(truth((0, box(0))), found((0, 0.9, FAR)))] * 40
    analysis = analyse([each for each, _ in images], [each for _, each in images], 0.5)
    chosen = lessons(analysis, range(80))
    assert len({each.image for each in chosen}) == len(chosen) == 24
    assert {each.why for each in chosen} == {"most missed", "surest mistakes", "best"}
