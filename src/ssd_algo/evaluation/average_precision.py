"""Average precision as PASCAL VOC and COCO define it.

All of it is array operations over the pairs of a detection and an object of the same image and class that overlap
enough to matter.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ssd_algo.evaluation.matching import (
    Bools,
    Floats,
    Found,
    Objects,
    Pairs,
    Scored,
    Truth,
    match,
    overlapping,
    place_in_run,
)

COCO_IOUS = np.linspace(0.5, 0.95, 10)
# Squares of sides in pixels of the original image, between which an object counts as of this size.
COCO_AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
COCO_DETECTIONS = 100  # of one class in an image
_RECALLS = np.linspace(0, 1, 101)


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
    objects, found = Objects(truths), Found(detections)
    matches, ignored = match(objects, found, iou_threshold), objects.ignored
    scores = {}
    for identity in np.union1d(objects.classes, found.classes):
        mine = np.flatnonzero((found.classes == identity) & matches.counted)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        present = int(((objects.classes == identity) & ~ignored).sum())
        if present or len(mine):
            scores[int(identity)] = VocScore(
                area_under_curve(matches.right[mine], present),
                eleven_point_average(matches.right[mine], present),
                present,
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
    return float(interpolated(right)[right].sum() / objects)


def eleven_point_average(right: Bools, objects: int) -> float:
    """Mean of the interpolated precision at recalls 0, 0.1 ... 1 (Everingham et al. 2010, section 3.4.1)."""
    if objects == 0 or not len(right):
        return 0.0
    # Tenths of the objects that must have been found, as integers: recalls as floats miss a point by rounding.
    hits, needed = np.cumsum(right), -(-np.arange(11) * objects // 10)
    place = np.searchsorted(hits, needed)
    return float(np.append(interpolated(right), 0.0)[place].mean())


def interpolated(right: Bools) -> Floats:
    """Of detections in descending order of score, the highest precision at each one's recall or any higher."""
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
    objects, found = Objects(truths), Found(detections, COCO_DETECTIONS)
    limits = np.asarray(list(COCO_AREAS.values()))
    outside = (objects.area[:, None] < limits[:, 0]) | (objects.area[:, None] > limits[:, 1])
    ignored = outside | objects.ignored[:, None]
    matched, ignored_match = _match_coco(overlapping(objects, found, COCO_IOUS[0]), objects, found, ignored)
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


def _match_coco(pairs: Pairs, objects: Objects, found: Found, ignored: Bools) -> tuple[Bools, Bools]:
    """For each detection, area and IoU, whether it has an object, and whether that one is ignored: (K, areas, T).

    Of an image and class the best detection chooses first: among the objects that are left the one with the highest IoU
    (the last of equals), and one that is ignored only where no other overlaps enough.
    """
    shape = (ignored.shape[1], len(COCO_IOUS))
    matched = np.zeros((len(found.scores), *shape), dtype=bool)
    ignored_match = np.zeros_like(matched)
    taken = np.zeros((len(objects.classes), *shape), dtype=bool)
    reusable = objects.ignored
    # One turn for the first detection of every image and class, one for the second ...
    choosing, first_pair = np.unique(pairs.detection, return_index=True)
    turn_of = place_in_run(found.image[choosing], found.classes[choosing])
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
