"""What a detector gets wrong: where to cut its scores, kinds of errors, confusions, and images to learn from.

What is right is what counts as right for the mAP (`matching.match`).
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.evaluation.average_precision import interpolated, voc
from ssd_algo.evaluation.matching import (
    Bools,
    Floats,
    Found,
    Indices,
    Matches,
    Objects,
    Pairs,
    Scored,
    Truth,
    match,
    overlapping,
)

# Scores at which a user may cut; two decimals are what anybody types.
THRESHOLDS: Floats = np.arange(1, 100) / 100
RECALLS: Floats = np.linspace(0, 1, 101)

# Where no threshold is better than another, as nothing is right at any.
_ANY_THRESHOLD = 0.5

# Kinds of false detections after TIDE (Bolya et al. 2020, "TIDE: A General Toolbox for Identifying Object Detection
# Errors", section 2.2). The objects that are missed are TIDE's sixth kind.
KINDS = ("localisation", "confusion", "both", "duplicate", "background")
_COUNTED = ("right", *KINDS, "missed")
_BACKGROUND_IOU = 0.1  # up to which a detection lies on no object

# A background detection with this score is so sure of itself that a label may be missing.
CONFIDENT = 0.8
# Background detections in an image, of which fewer may be anything.
_DOUBTFUL = 3


@dataclass(frozen=True)
class ClassCurves:
    """A class at all thresholds.

    Attributes
    ----------
    objects : int
        How many there are to find.
    precision, recall, f1 : float64 (99,)
        Of the detections with a score of at least each of `THRESHOLDS`; a precision without detections is 1.
    by_recall : float64 (101,)
        Interpolated precision at `RECALLS`, whose mean is nearly the average precision.
    threshold : float or None
        Of those with the highest F1 the one in the middle; None where nothing is right.
    median_iou : float or None
        Of the right detections from that threshold on, with their objects.
    """

    objects: int
    precision: Floats
    recall: Floats
    f1: Floats
    by_recall: Floats
    threshold: float | None
    median_iou: float | None


@dataclass(frozen=True)
class Errors:
    """What is wrong at a threshold.

    Attributes
    ----------
    found : Found
        The detections with at least this score.
    objects : Objects
    kinds : str (K,)
        Of each detection: `right`, one of `KINDS`, or `ignored` for one on an object that neither counts nor costs.
    hit, missed : bool (R,)
        Objects that are found; that neither are nor have a detection with an error of localisation or confusion.
    confusion : Counter
        Of pairs (class of the object, class found): None is the background. Each object that counts stands in one pair,
        and so does each detection that does.
    """

    found: Found
    objects: Objects
    kinds: NDArray[np.str_]
    hit: Bools
    missed: Bools
    confusion: Counter[tuple[int | None, int | None]]


@dataclass(frozen=True)
class Analysis:
    """All of it.

    Attributes
    ----------
    images : int
    iou_threshold : float
        Above which a detection is right.
    threshold : float
        The score with the highest F1 over all classes together, at which `errors` are; 0.5 where nothing is right.
    precision, recall, f1 : float
        There, over all classes together.
    curves : dict
        By class, of each that has an object or a detection that counts.
    strict : dict
        Average precision by class with right detections above an IoU of 0.75.
    errors : Errors
    """

    images: int
    iou_threshold: float
    threshold: float
    precision: float
    recall: float
    f1: float
    curves: dict[int, ClassCurves]
    strict: dict[int, float]
    errors: Errors


def analyse(truths: Sequence[Truth], detections: Sequence[Scored], iou_threshold: float) -> Analysis:
    """Look at the detections of labelled images, one of each for each image, in the same order."""
    objects, found = Objects(truths), Found(detections)
    matches = match(objects, found, iou_threshold)
    present = ~objects.ignored
    curves = {}
    for identity in np.union1d(objects.classes[present], found.classes[matches.counted]):
        rows = np.flatnonzero((found.classes == identity) & matches.counted)
        curves[int(identity)] = _curves(found, matches, rows, int((present & (objects.classes == identity)).sum()))
    precision, recall, f1 = _at_thresholds(
        found.scores[matches.counted], matches.right[matches.counted], int(present.sum())
    )
    best = _best(f1)
    place = int(np.searchsorted(THRESHOLDS, _ANY_THRESHOLD)) if best is None else best
    threshold = float(THRESHOLDS[place])
    return Analysis(
        len(truths),
        iou_threshold,
        threshold,
        float(precision[place]),
        float(recall[place]),
        float(f1[place]),
        curves,
        {identity: each.area for identity, each in voc(truths, detections, 0.75).items()},
        errors_at(threshold, truths, detections, iou_threshold),
    )


def _curves(found: Found, matches: Matches, rows: Indices, objects: int) -> ClassCurves:
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    right = matches.right[rows]
    precision, recall, f1 = _at_thresholds(found.scores[rows], right, objects)
    by_recall = np.zeros(len(RECALLS))
    if objects and len(rows):
        place = np.searchsorted(np.cumsum(right) / objects, RECALLS)
        by_recall = np.append(interpolated(right), 0.0)[place]
    best = _best(f1)
    threshold = None if best is None else float(THRESHOLDS[best])
    median = None
    if threshold is not None:
        median = float(np.median(matches.iou[rows[right & (found.scores[rows] >= threshold)]]))
    return ClassCurves(objects, precision, recall, f1, by_recall, threshold, median)


def _at_thresholds(scores: Floats, right: Bools, objects: int) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of detections that count, in any order, at `THRESHOLDS`."""
    kept = len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS)
    hits = right.sum() - np.searchsorted(np.sort(scores[right]), THRESHOLDS)
    precision = np.divide(hits, kept, out=np.ones(len(THRESHOLDS)), where=kept > 0)
    recall = hits / max(objects, 1)
    f1 = np.divide(2 * hits, kept + objects, out=np.zeros(len(THRESHOLDS)), where=kept + objects > 0)
    return precision, recall, f1


def _best(f1: Floats) -> int | None:
    """The place in the middle of those with the highest F1, which is farthest from where it falls."""
    if f1.max() <= 0:
        return None
    highest = np.flatnonzero(f1 == f1.max())
    return int(highest[len(highest) // 2])


def errors_at(threshold: float, truths: Sequence[Truth], detections: Sequence[Scored], iou_threshold: float) -> Errors:
    """The kinds of errors of the detections with at least this score."""
    objects, found = Objects(truths), Found([each.above(threshold) for each in detections])
    matches = match(objects, found, iou_threshold)
    pairs = overlapping(objects, found, _BACKGROUND_IOU, same_class=False)
    pairs = pairs.of(pairs.iou > _BACKGROUND_IOU)
    counts = ~objects.ignored[pairs.object]
    same = objects.classes[pairs.object] == found.classes[pairs.detection]
    own, own_object = _nearest(pairs.of(counts & same), len(matches.right))
    other, other_object = _nearest(pairs.of(counts & ~same), len(matches.right))
    touching = np.isin(np.arange(len(matches.right)), pairs.detection)
    kinds = np.select(
        [
            ~matches.counted,
            matches.right,
            (own > 0) & (own <= iou_threshold),
            other > iou_threshold,
            own > iou_threshold,
            touching,
        ],
        ["ignored", "right", "localisation", "confusion", "duplicate", "both"],
        "background",
    )
    hit = np.zeros(len(objects.classes), dtype=bool)
    hit[matches.object[matches.right]] = True
    explained = hit | objects.ignored
    explained[own_object[kinds == "localisation"]] = True
    explained[other_object[kinds == "confusion"]] = True
    confusion = _confusion(objects, found, kinds, hit, other_object)
    return Errors(found, objects, kinds, hit, ~explained, confusion)


def _nearest(pairs: Pairs, detections: int) -> tuple[Floats, Indices]:
    """Of each detection the highest IoU and its object; 0 and -1 where there is no pair."""
    order = np.lexsort((-pairs.iou, pairs.detection))
    best = pairs.of(order[np.unique(pairs.detection[order], return_index=True)[1]])
    iou, nearest = np.zeros(detections), np.full(detections, -1)
    iou[best.detection], nearest[best.detection] = best.iou, best.object
    return iou, nearest


def _confusion(
    objects: Objects, found: Found, kinds: NDArray[np.str_], hit: Bools, mistaken: Indices
) -> Counter[tuple[int | None, int | None]]:
    """Pairs of an object's class and the class found, see `Errors`.

    Of several detections of other classes on an object the best stands for it, and none if the object is found.
    """
    rows = np.flatnonzero(kinds == "confusion")
    rows = rows[np.argsort(-found.scores[rows], kind="stable")]
    rows = rows[np.unique(mistaken[rows], return_index=True)[1]]
    rows = rows[~hit[mistaken[rows]]]
    alone = ~np.isin(kinds, ("right", "ignored"))
    alone[rows] = False
    left = ~hit & ~objects.ignored
    left[mistaken[rows]] = False
    pairs = Counter(zip(objects.classes[mistaken[rows]].tolist(), found.classes[rows].tolist(), strict=True))
    confusion: Counter[tuple[int | None, int | None]] = Counter(pairs)
    for identity, count in Counter(found.classes[kinds == "right"].tolist()).items():
        confusion[identity, identity] = count
    for identity, count in Counter(found.classes[alone].tolist()).items():
        confusion[None, identity] = count
    for identity, count in Counter(objects.classes[left].tolist()).items():
        confusion[identity, None] = count
    return confusion


@dataclass(frozen=True)
class Lesson:
    """An image to look at: its place among the images, and for what it was chosen."""

    image: int
    why: str


# How many images of each kind there are, if it has so many.
_LESSONS = {"most missed": 6, "labels in doubt": 6, "surest mistakes": 6, "most confused": 3, "best": 3}


def lessons(analysis: Analysis, available: Sequence[int]) -> list[Lesson]:
    """Up to 24 images that teach something, each once.

    Most missed are those with the most objects not found; surest mistakes those with the false detection of the highest
    score; best those with the highest F1 and, of equals, the most objects.

    Parameters
    ----------
    available : places of the images to choose from
    """
    tally = per_image(analysis)
    surest, errors = np.zeros(analysis.images), analysis.errors
    false = np.isin(errors.kinds, KINDS)
    np.maximum.at(surest, errors.found.image[false], errors.found.scores[false])
    total = tally.objects + tally.right + tally.false
    values = {
        "most missed": tally.missed,
        "labels in doubt": np.where(in_doubt(tally), tally.background, 0),
        "surest mistakes": surest,
        "most confused": tally.confused,
        "best": np.where(tally.right > 0, 2 * tally.right / np.maximum(total, 1) + 1e-6 * tally.right, 0),
    }
    ranked = {
        why: [image for image in np.argsort(-value, kind="stable").tolist() if value[image] > 0]
        for why, value in values.items()
    }
    chosen: dict[int, str] = {}
    left = set(available)

    def take(why: str, count: int) -> None:
        for image in [image for image in ranked[why] if image in left][:count]:
            chosen[image] = why
            left.remove(image)

    for why, count in _LESSONS.items():
        take(why, count)
    # What one kind lacks, the others fill in turns.
    for why in itertools.islice(itertools.cycle(_LESSONS), sum(_LESSONS.values()) * len(_LESSONS)):
        take(why, int(len(chosen) < sum(_LESSONS.values())))
    return [Lesson(image, why) for why in _LESSONS for image in chosen if chosen[image] == why]


@dataclass(frozen=True)
class Tally:
    """Counts of each image, (N,): objects, and those not found; detections that are right, false, of a kind."""

    objects: Indices
    missed: Indices
    right: Indices
    false: Indices
    confused: Indices
    background: Indices


def per_image(analysis: Analysis) -> Tally:
    """What is in each image."""
    errors = analysis.errors
    present, image = ~errors.objects.ignored, errors.found.image

    def number(of: Indices) -> Indices:
        counted: Indices = np.bincount(of, minlength=analysis.images)
        return counted

    return Tally(
        objects=number(errors.objects.image[present]),
        missed=number(errors.objects.image[present & ~errors.hit]),
        right=number(image[errors.kinds == "right"]),
        false=number(image[np.isin(errors.kinds, KINDS)]),
        confused=number(image[errors.kinds == "confusion"]),
        background=number(image[errors.kinds == "background"]),
    )


def in_doubt(tally: Tally) -> Bools:
    """Images whose labels may be incomplete: more is found where nothing is labelled than there are labels."""
    doubtful: Bools = (tally.background >= _DOUBTFUL) & (tally.background > tally.objects)
    return doubtful


def describe(analysis: Analysis, names: dict[int, str]) -> dict[str, Any]:
    """The analysis as JSON; classes by their id.

    Returns
    -------
    dict
        `images`, `objects`, `detections` (with a score of at least `threshold`, that count), `iou_threshold`,
        `threshold`, `precision`, `recall`, `F1`; `errors`: number of each kind; `classes`: for each its name, objects,
        `threshold` with the highest F1, `precision`, `recall` and `F1` there, `F1_at_half` at 0.5, `AP_75`,
        `median_iou`, `errors`; `confusion`: rows of truth, found (null is the background) and count; `confident`: of
        the false detections with a score of at least `score`, how many there are, how many lie on nothing labelled, in
        how many images; `in_doubt`: images whose labels may be incomplete, and their `background` detections.
    """
    errors = analysis.errors
    of_class: Counter[tuple[int, str]] = Counter(zip(errors.found.classes.tolist(), errors.kinds.tolist(), strict=True))
    of_class.update((identity, "missed") for identity in errors.objects.classes[errors.missed].tolist())
    tally = per_image(analysis)
    doubtful = in_doubt(tally)
    confident = max(CONFIDENT, analysis.threshold)
    sure = (errors.found.scores >= confident) & np.isin(errors.kinds, KINDS)
    nothing = sure & (errors.kinds == "background")
    return {
        "images": analysis.images,
        "objects": sum(each.objects for each in analysis.curves.values()),
        "detections": int((errors.kinds != "ignored").sum()),
        "iou_threshold": analysis.iou_threshold,
        "threshold": analysis.threshold,
        "precision": analysis.precision,
        "recall": analysis.recall,
        "F1": analysis.f1,
        "errors": {kind: sum(of_class[each, kind] for each in analysis.curves) for kind in _COUNTED},
        "classes": {
            str(identity): {
                "name": names.get(identity, str(identity)),
                **_describe_curves(curves),
                "AP_75": analysis.strict.get(identity, 0.0),
                "errors": {kind: of_class[identity, kind] for kind in _COUNTED},
            }
            for identity, curves in analysis.curves.items()
        },
        "confusion": [
            {"truth": truth, "found": found, "count": count} for (truth, found), count in errors.confusion.most_common()
        ],
        "confident": {
            "score": confident,
            "false": int(sure.sum()),
            "on_nothing": int(nothing.sum()),
            "images": len(np.unique(errors.found.image[nothing])),
        },
        "in_doubt": {"images": int(doubtful.sum()), "background": int(tally.background[doubtful].sum())},
    }


def _describe_curves(curves: ClassCurves) -> dict[str, Any]:
    at_best: dict[str, float | None] = {"precision": None, "recall": None, "F1": None}
    if curves.threshold is not None:
        place = int(np.searchsorted(THRESHOLDS, curves.threshold))
        values = (curves.precision[place], curves.recall[place], curves.f1[place])
        at_best = {name: float(value) for name, value in zip(at_best, values, strict=True)}
    return {
        "objects": curves.objects,
        "threshold": curves.threshold,
        **at_best,
        "F1_at_half": float(curves.f1[np.searchsorted(THRESHOLDS, 0.5)]),
        "median_iou": curves.median_iou,
    }
