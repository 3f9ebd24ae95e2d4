"""Objects and detections of many images in one table each, and which of them belong together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.boxes import Boxes

_PAIRS_AT_ONCE = 2_000_000

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Truth:
    """Objects of an image: boxes (R, 4), classes int64 (R,), and what kinds neither count nor cost.

    Attributes
    ----------
    difficult : bool (R,)
        As in PASCAL VOC.
    crowd : bool (R,) or None for none
        As in COCO, where its box is one around many objects: any number of detections may lie in it.
    """

    boxes: Boxes
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Scored:
    """Detections of an image: boxes (K, 4) in the truth's unit, scores (K,), classes int64 (K,)."""

    boxes: Boxes
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def above(self, threshold: float) -> "Scored":
        """Those with at least this score."""
        kept = self.scores >= threshold
        return Scored(self.boxes[kept], self.scores[kept], self.classes[kept])


class Objects:
    """The objects of all images in one row each, those of an image and class together and in their order."""

    def __init__(self, truths: Sequence[Truth]) -> None:
        image = np.repeat(np.arange(len(truths)), [len(each.classes) for each in truths])
        classes = _joined([each.classes for each in truths], np.int64)
        order = np.lexsort((classes, image))
        self.image, self.classes = image[order], classes[order]
        self.boxes = _joined([each.boxes for each in truths], np.float64, 4)[order]
        self.difficult = _joined([each.difficult for each in truths], bool)[order]
        crowds = [np.zeros(len(each.classes), dtype=bool) if each.crowd is None else each.crowd for each in truths]
        self.crowd = _joined(crowds, bool)[order]
        self.ignored: Bools = self.difficult | self.crowd  # neither count nor cost
        self.area = _area(self.boxes)


class Found:
    """The detections of all images in one row each, those of an image and class together and best first."""

    def __init__(self, detections: Sequence[Scored], most: int | None = None) -> None:
        image = np.repeat(np.arange(len(detections)), [len(each.classes) for each in detections])
        classes = _joined([each.classes for each in detections], np.int64)
        scores = _joined([each.scores for each in detections], np.float64)
        order = np.lexsort((-scores, classes, image))
        if most is not None:
            order = order[place_in_run(image[order], classes[order]) < most]
        self.image, self.classes, self.scores = image[order], classes[order], scores[order]
        self.boxes = _joined([each.boxes for each in detections], np.float64, 4)[order]
        self.area = _area(self.boxes)


@dataclass(frozen=True)
class Pairs:
    """Detections and objects, as rows of `Found` and `Objects`, with their IoU; in the order of the detections."""

    detection: Indices
    object: Indices
    iou: Floats

    def of(self, chosen: Indices | Bools) -> "Pairs":
        return Pairs(self.detection[chosen], self.object[chosen], self.iou[chosen])


@dataclass(frozen=True)
class Matches:
    """What the detections of a `Found` are worth, as PASCAL VOC counts.

    Attributes
    ----------
    counted : bool (K,)
        Not on an object that neither counts nor costs.
    right : bool (K,)
    object : int64 (K,)
        The object that a right detection has found, as row of `Objects`; -1 for others.
    iou : float64 (K,)
        With that object; 0 for others.
    """

    counted: Bools
    right: Bools
    object: Indices
    iou: Floats


def match(objects: Objects, found: Found, iou_threshold: float) -> Matches:
    """Give each detection the object of its class that it overlaps most, above a threshold, unless a better has it.

    As better detections choose first, it is the same with and without the detections below a score.
    """
    pairs = overlapping(objects, found, iou_threshold)
    pairs = pairs.of(pairs.iou > iou_threshold)
    # Of each detection the pair with the highest IoU, the first of equals; a crowd only where there is no other.
    order = np.lexsort((-pairs.iou, objects.crowd[pairs.object], pairs.detection))
    best = pairs.of(order[np.unique(pairs.detection[order], return_index=True)[1]])
    counted, taken = np.ones(len(found.scores), dtype=bool), np.full(len(found.scores), -1)
    iou = np.zeros(len(found.scores))
    counted[best.detection[objects.ignored[best.object]]] = False
    best = best.of(~objects.ignored[best.object])
    # The detections of an image and class are best first, so the first of an object's is the one that takes it.
    first = best.of(np.unique(best.object, return_index=True)[1])
    taken[first.detection], iou[first.detection] = first.object, first.iou
    return Matches(counted, taken >= 0, taken, iou)


def overlapping(objects: Objects, found: Found, least: float, same_class: bool = True) -> Pairs:
    """The pairs of the same image, and class unless told otherwise, with an IoU of at least `least`."""
    parts = list(_parts(objects, found, least, same_class))
    return Pairs(
        _joined([each.detection for each in parts], np.int64),
        _joined([each.object for each in parts], np.int64),
        _joined([each.iou for each in parts], np.float64),
    )


def _parts(objects: Objects, found: Found, least: float, same_class: bool) -> Iterator[Pairs]:
    """The same a part of the detections at a time, as there may be many pairs."""
    width = 1 + max(objects.classes.max(initial=0), found.classes.max(initial=0))
    held = objects.image * width + (objects.classes if same_class else 0)
    wanted = found.image * width + (found.classes if same_class else 0)
    keys, first, count = np.unique(held, return_index=True, return_counts=True)
    if not len(keys):
        return
    run = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    partners = np.where(keys[run] == wanted, count[run], 0)
    before = np.concatenate([[0], np.cumsum(partners)])
    start = 0
    while start < len(partners):
        end = max(start + 1, int(np.searchsorted(before, before[start] + _PAIRS_AT_ONCE, side="right")) - 1)
        detection = np.repeat(np.arange(start, end), partners[start:end])
        ordinal = np.arange(len(detection)) - np.repeat(before[start:end] - before[start], partners[start:end])
        pairs = _with_iou(objects, found, detection, first[run[detection]] + ordinal)
        yield pairs.of(pairs.iou >= least)
        start = end


def _with_iou(objects: Objects, found: Found, detection: Indices, partner: Indices) -> Pairs:
    """With a crowd it is the share of the detection that lies in it, as in COCO."""
    one, other = found.boxes[detection], objects.boxes[partner]
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = np.where(objects.crowd[partner], 0, objects.area[partner] - shared) + found.area[detection]
    return Pairs(detection, partner, np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def place_in_run(*columns: Indices) -> Indices:
    """For each row its place, from 0, among the rows around it that are equal in these columns."""
    count = len(columns[0])
    if not count:
        return np.zeros(0, dtype=np.int64)
    new: Bools = np.concatenate([[True], np.any([np.diff(column) != 0 for column in columns], axis=0)])
    starts = np.flatnonzero(new)
    places: Indices = np.arange(count) - np.repeat(starts, np.diff(np.append(starts, count)))
    return places


def _joined(parts: Sequence[NDArray[Any]], dtype: type, width: int | None = None) -> NDArray[Any]:
    shape = (0,) if width is None else (0, width)
    return np.concatenate([np.zeros(shape, dtype=dtype), *parts]).astype(dtype, copy=False)


def _area(boxes: Floats) -> Floats:
    area: Floats = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return area
