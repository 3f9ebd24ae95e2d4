"""Average precision as PASCAL VOC and COCO define it.

All of it is array operations over the pairs of a detection and an object of the same image and class that overlap
enough to matter.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.boxes import Boxes

COCO_IOUS = np.linspace(0.5, 0.95, 10)
# Squares of sides in pixels of the original image, between which an object counts as of this size.
COCO_AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
COCO_DETECTIONS = 100  # of one class in an image
_RECALLS = np.linspace(0, 1, 101)

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


@dataclass(frozen=True)
class VocScore:
    """Average precision of a class in both of PASCAL VOC's definitions, and how many objects there are to find."""

    area: float
    eleven_points: float
    objects: int


@dataclass(frozen=True)
class CocoScore:
    """COCO's summary; None where there is no object to find.

    Attributes
    ----------
    mean : over IoU 0.5 to 0.95
    at_50, at_75 : at one IoU
    small, medium, large : over objects of a size, IoU 0.5 to 0.95
    by_class : dict
        For each class that has an object, over IoU 0.5 to 0.95.
    """

    mean: float | None
    at_50: float | None
    at_75: float | None
    small: float | None
    medium: float | None
    large: float | None
    by_class: dict[int, float]


def voc(truths: Sequence[Truth], detections: Sequence[Scored], iou_threshold: float) -> dict[int, VocScore]:
    """Average precision of each class (Everingham et al. 2010, sections 3.4.1 and 4.2).

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
    objects, found = _Objects(truths), _Found(detections)
    pairs = _overlapping(objects, found, iou_threshold)
    pairs = pairs.of(pairs.iou > iou_threshold)
    # Of each detection the pair with the highest IoU, the first of equals; a crowd only where there is no other.
    order = np.lexsort((-pairs.iou, objects.crowd[pairs.object], pairs.detection))
    best = pairs.of(order[np.unique(pairs.detection[order], return_index=True)[1]])
    ignored = objects.difficult | objects.crowd
    counted, right = np.ones(len(found.scores), dtype=bool), np.zeros(len(found.scores), dtype=bool)
    counted[best.detection[ignored[best.object]]] = False
    best = best.of(~ignored[best.object])
    # The detections of an image and class are best first, so the first of an object's is the one that takes it.
    right[best.detection[np.unique(best.object, return_index=True)[1]]] = True
    scores = {}
    for identity in np.union1d(objects.classes, found.classes):
        mine = np.flatnonzero((found.classes == identity) & counted)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        present = int(((objects.classes == identity) & ~ignored).sum())
        if present or len(mine):
            scores[int(identity)] = VocScore(
                area_under_curve(right[mine], present), eleven_point_average(right[mine], present), present
            )
    return scores


def mean_average_precision(scores: dict[int, VocScore]) -> float:
    """Mean area over the classes that have an object to find, as in VOC and COCO; 0 when there is none."""
    return float(np.mean([each.area for each in scores.values() if each.objects] or [0.0]))


def area_under_curve(right: Bools, objects: int) -> float:
    """Area under the interpolated precision-recall curve of detections in descending order of score.

    Precision at a recall is the highest at this or any higher recall (Everingham et al. 2010, section 4.2, all points).
    """
    if objects == 0 or not len(right):
        return 0.0
    return float(_interpolated(right)[right].sum() / objects)


def eleven_point_average(right: Bools, objects: int) -> float:
    """Mean of the interpolated precision at recalls 0, 0.1 ... 1 (Everingham et al. 2010, section 3.4.1)."""
    if objects == 0 or not len(right):
        return 0.0
    # Tenths of the objects that must have been found, as integers: recalls as floats miss a point by rounding.
    hits, needed = np.cumsum(right), -(-np.arange(11) * objects // 10)
    place = np.searchsorted(hits, needed)
    return float(np.append(_interpolated(right), 0.0)[place].mean())


def _interpolated(right: Bools) -> Floats:
    precision = np.cumsum(right) / np.arange(1, len(right) + 1)
    interpolated: Floats = np.maximum.accumulate(precision[::-1])[::-1]
    return interpolated


def coco(truths: Sequence[Truth], detections: Sequence[Scored]) -> CocoScore:
    """COCO's average precision, as pycocotools computes it.

    Parameters
    ----------
    truths, detections : one for each image, in the same order
        Boxes in pixels of the original image, as their sizes matter. Difficult objects neither count nor cost.
    """
    objects, found = _Objects(truths), _Found(detections, COCO_DETECTIONS)
    limits = np.asarray(list(COCO_AREAS.values()))
    outside = (objects.area[:, None] < limits[:, 0]) | (objects.area[:, None] > limits[:, 1])
    ignored = outside | (objects.difficult | objects.crowd)[:, None]
    matched, ignored_match = _match_coco(_overlapping(objects, found, COCO_IOUS[0]), objects, found, ignored)
    outside = (found.area[:, None] < limits[:, 0]) | (found.area[:, None] > limits[:, 1])
    counted = ~np.where(matched, ignored_match, outside[:, :, None])
    classes = np.unique(objects.classes)
    values = np.full((len(classes), *matched.shape[1:]), np.nan)
    for row, identity in enumerate(classes):
        mine = np.flatnonzero(found.classes == identity)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        present = (~ignored[objects.classes == identity]).sum(axis=0)
        for area in np.flatnonzero(present):
            values[row, area] = _coco_precisions(matched[mine, area], counted[mine, area], int(present[area]))
    means = [_mean(values[:, area]) for area in range(len(COCO_AREAS))]
    by_class = {int(identity): _mean(values[row, 0]) for row, identity in enumerate(classes)}
    return CocoScore(
        mean=means[0],
        at_50=_mean(values[:, 0, 0]),
        at_75=_mean(values[:, 0, 5]),
        small=means[1],
        medium=means[2],
        large=means[3],
        by_class={identity: value for identity, value in by_class.items() if value is not None},
    )


def _coco_precisions(matched: Bools, counted: Bools, objects: int) -> Floats:
    """Mean precision over 101 recalls at each IoU, of detections (K, T) in descending order of score."""
    hits, misses = np.cumsum(matched & counted, axis=0), np.cumsum(~matched & counted, axis=0)
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.vstack([np.maximum.accumulate(precision[::-1], axis=0)[::-1], np.zeros(matched.shape[1])])
    recall = hits / objects
    places = [np.searchsorted(column, _RECALLS, side="left") for column in recall.T]
    return np.asarray([precision[place, column].mean() for column, place in enumerate(places)])


def _mean(values: Floats) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


class _Objects:
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
        self.area = _area(self.boxes)


class _Found:
    """The detections of all images in one row each, those of an image and class together and best first."""

    def __init__(self, detections: Sequence[Scored], most: int | None = None) -> None:
        image = np.repeat(np.arange(len(detections)), [len(each.classes) for each in detections])
        classes = _joined([each.classes for each in detections], np.int64)
        scores = _joined([each.scores for each in detections], np.float64)
        order = np.lexsort((-scores, classes, image))
        if most is not None:
            order = order[_place_in_run(image[order], classes[order]) < most]
        self.image, self.classes, self.scores = image[order], classes[order], scores[order]
        self.boxes = _joined([each.boxes for each in detections], np.float64, 4)[order]
        self.area = _area(self.boxes)


@dataclass(frozen=True)
class _Pairs:
    """Detections and objects, as rows of `_Found` and `_Objects`, with their IoU; in the order of the detections."""

    detection: Indices
    object: Indices
    iou: Floats

    def of(self, chosen: Indices | Bools) -> "_Pairs":
        return _Pairs(self.detection[chosen], self.object[chosen], self.iou[chosen])


def _overlapping(objects: _Objects, found: _Found, least: float) -> _Pairs:
    """The pairs of the same image and class with an IoU of at least `least`."""
    parts = list(_parts(objects, found, least))
    return _Pairs(
        _joined([each.detection for each in parts], np.int64),
        _joined([each.object for each in parts], np.int64),
        _joined([each.iou for each in parts], np.float64),
    )


def _parts(objects: _Objects, found: _Found, least: float) -> Iterator[_Pairs]:
    """The same a part of the detections at a time, as there may be many pairs."""
    width = 1 + max(objects.classes.max(initial=0), found.classes.max(initial=0))
    keys, first, count = np.unique(objects.image * width + objects.classes, return_index=True, return_counts=True)
    if not len(keys):
        return
    wanted = found.image * width + found.classes
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


def _with_iou(objects: _Objects, found: _Found, detection: Indices, partner: Indices) -> _Pairs:
    """With a crowd it is the share of the detection that lies in it, as in COCO."""
    one, other = found.boxes[detection], objects.boxes[partner]
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = np.where(objects.crowd[partner], 0, objects.area[partner] - shared) + found.area[detection]
    return _Pairs(detection, partner, np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _match_coco(pairs: _Pairs, objects: _Objects, found: _Found, ignored: Bools) -> tuple[Bools, Bools]:
    """For each detection, area and IoU, whether it has an object, and whether that one is ignored: (K, areas, T).

    Of an image and class the best detection chooses first: among the objects that are left the one with the highest IoU
    (the last of equals), and one that is ignored only where no other overlaps enough.
    """
    shape = (ignored.shape[1], len(COCO_IOUS))
    matched = np.zeros((len(found.scores), *shape), dtype=bool)
    ignored_match = np.zeros_like(matched)
    taken = np.zeros((len(objects.classes), *shape), dtype=bool)
    reusable = objects.crowd | objects.difficult
    # One turn for the first detection of every image and class, one for the second ...
    choosing, first_pair = np.unique(pairs.detection, return_index=True)
    turn_of = _place_in_run(found.image[choosing], found.classes[choosing])
    turns = np.repeat(turn_of, np.diff(np.append(first_pair, len(pairs.detection))))
    by_turn = np.argsort(turns, kind="stable")
    ends = np.searchsorted(turns[by_turn], np.arange(turns.max(initial=-1) + 2))
    for start, end in itertools.pairwise(ends):
        now = pairs.of(by_turn[start:end])
        detection, first = np.unique(now.detection, return_index=True)
        free = ~taken[now.object] | reusable[now.object, None, None]
        enough = (now.iou[:, None] >= np.minimum(COCO_IOUS, 1 - 1e-10))[:, None, :] & free
        value = np.where(enough, now.iou[:, None, None] + 2 * ~ignored[now.object][:, :, None], -1)
        highest = np.repeat(np.maximum.reduceat(value, first), np.diff(np.append(first, len(value))), axis=0)
        row = np.arange(len(value))[:, None, None]
        chosen = np.maximum.reduceat(np.where(enough & (value == highest), row, -1), first)
        which, area, iou = np.nonzero(chosen >= 0)
        partner = now.object[chosen[which, area, iou]]
        matched[detection[which], area, iou] = taken[partner, area, iou] = True
        ignored_match[detection[which], area, iou] = ignored[partner, area]
    return matched, ignored_match


def _place_in_run(*columns: Indices) -> Indices:
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
