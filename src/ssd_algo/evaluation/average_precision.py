"""Average precision as PASCAL VOC 2010 defines it: area under the interpolated precision-recall curve."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.boxes import Boxes, iou


@dataclass(frozen=True)
class Truth:
    """Objects of an image: boxes (R, 4), classes int64 (R,), difficult bool (R,), which neither count nor cost."""

    boxes: Boxes
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """Detections of an image: boxes (K, 4) in the truth's unit, scores (K,), classes int64 (K,)."""

    boxes: Boxes
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]


def mean_average_precision(precisions: dict[int, float]) -> float:
    """Mean over the classes that were there or were detected; 0 when there is none."""
    return float(np.mean(list(precisions.values()))) if precisions else 0.0


def average_precisions(truths: Sequence[Truth], detections: Sequence[Scored], iou_threshold: float) -> dict[int, float]:
    """Average precision of each class.

    Every image counts once, also one without objects, whose detections are false. Detections are taken best first over
    all images; one is right when its IoU with the object of its class that it overlaps most is above `iou_threshold`
    and no better detection took that object.

    Parameters
    ----------
    truths, detections : one for each image, in the same order

    Returns
    -------
    dict
        For each class that has an object or a detection that counts; 0 for one with detections only.
    """
    present = [each.classes for each in truths] + [each.classes for each in detections]
    classes = {int(c) for each in present for c in np.unique(each)}
    every = {c: _average_precision(truths, detections, c, iou_threshold) for c in sorted(classes)}
    return {c: value for c, value in every.items() if value is not None}


def _average_precision(
    truths: Sequence[Truth], detections: Sequence[Scored], wanted: int, iou_threshold: float
) -> float | None:
    scores, right, counted, objects = [], [], [], 0
    for truth, found in zip(truths, detections, strict=True):
        mine, theirs = truth.classes == wanted, found.classes == wanted
        objects += int((mine & ~truth.difficult).sum())
        order = np.argsort(-found.scores[theirs], kind="stable")
        is_right, is_counted = _match(
            found.boxes[theirs][order], truth.boxes[mine], truth.difficult[mine], iou_threshold
        )
        scores.append(found.scores[theirs][order])
        right.append(is_right)
        counted.append(is_counted)
    score, hit, count = (np.concatenate(each) if each else np.zeros(0) for each in (scores, right, counted))
    order = np.argsort(-score, kind="stable")
    order = order[count[order].astype(bool)]
    if objects == 0 and len(order) == 0:
        return None
    return area_under_curve(hit[order].astype(bool), objects)


def _match(
    boxes: Boxes, objects: Boxes, difficult: NDArray[np.bool_], iou_threshold: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For detections of one class in one image, best first: which are right, and which count at all."""
    right, counted = np.zeros(len(boxes), dtype=bool), np.ones(len(boxes), dtype=bool)
    if not len(boxes) or not len(objects):
        return right, counted
    overlaps = iou(boxes, objects)
    best = overlaps.argmax(axis=1)
    taken = np.zeros(len(objects), dtype=bool)
    for index in np.flatnonzero(overlaps.max(axis=1) > iou_threshold):
        if difficult[best[index]]:
            counted[index] = False
        elif not taken[best[index]]:
            right[index] = taken[best[index]] = True
    return right, counted


def area_under_curve(right: NDArray[np.bool_], objects: int) -> float:
    """Area under the interpolated precision-recall curve of detections in descending order of score.

    Precision at a recall is the highest at this or any higher recall (Everingham et al. 2010, section 4.2, all points).
    """
    if objects == 0 or not len(right):
        return 0.0
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(right) + 1)
    interpolated = np.maximum.accumulate(precision[::-1])[::-1]
    return float(interpolated[right].sum() / objects)
