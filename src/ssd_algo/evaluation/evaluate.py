"""Score a predictor on labelled images."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ssd_algo.data import images
from ssd_algo.data.boxes import Boxes
from ssd_algo.data.loader import Batch, Loader
from ssd_algo.data.progress import Progress, silent
from ssd_algo.data.samples import Sample
from ssd_algo.evaluation.average_precision import (
    CocoScore,
    VocScore,
    coco,
    mean_average_precision,
    voc,
)
from ssd_algo.evaluation.matching import Scored, Truth
from ssd_algo.inference.predictor import Detections, Predictor

Compared = tuple[Truth, Scored]

DEFINITION = (
    "mAP: mean over the classes with objects of the area under the interpolated precision-recall curve at IoU above "
    "overlap_threshold, every image counted once (PASCAL VOC 2010); coco: as pycocotools computes it, crowds taken as "
    "difficult objects"
)

_BATCH = 8  # images, of which an engine of several devices has some for each
_BATCHES_AT_ONCE = 2  # whose predictions are in memory


@dataclass(frozen=True)
class Score:
    """Average precision of each class, and COCO's summary.

    Attributes
    ----------
    voc : dict
        By class id, at one IoU.
    coco : CocoScore
    objects : dict
        By class id, how many there are to find; difficult ones are not.
    """

    voc: dict[int, VocScore]
    coco: CocoScore
    objects: dict[int, int]

    @property
    def mean(self) -> float:
        """`validation:mAP`: mean of the classes' areas under the precision-recall curve."""
        return mean_average_precision(self.voc)


def detect(
    predictor: Predictor, batches: Iterable[Batch], threads: ThreadPoolExecutor
) -> list[Future[Detections] | None]:
    """Run the network over the batches; threads make detections of its predictions, as serving does.

    Returns
    -------
    list
        In the order of the samples; None for what weighs nothing, as it fills the last batch or cannot be decoded.
    """
    found: list[Future[Detections] | None] = []
    for batch in batches:
        before = found[-_BATCHES_AT_ONCE * len(batch.weights) : -len(batch.weights) or None]
        wait([each for each in before if each is not None])
        logits, offsets = predictor.forward(batch.images)
        for index, weight in enumerate(batch.weights):
            found.append(threads.submit(predictor.select, logits[index], offsets[index]) if weight else None)
    return found


def detected(
    samples: Sequence[Sample],
    side: int,
    load: Callable[[], Predictor],
    threads: int,
    may_skip: int,
    progress: Progress = silent,
) -> list[tuple[Sample, Compared]]:
    """What a predictor detects in samples; those that cannot be decoded are left out, with a warning.

    Parameters
    ----------
    side : int
        Of the network's input, pixels.
    load : callable
        Makes the predictor, once the processes that decode images have been forked.
    threads : int
        And processes.
    may_skip : int
        As `Loader` has it.

    Raises
    ------
    UserError
        When more images cannot be decoded, or none is left.
    """
    with (
        Loader(samples, side, _BATCH, threads, seed=0, may_skip=may_skip, augmented=False, shuffled=False) as loader,
        ThreadPoolExecutor(threads) as pool,
    ):
        predictor = load()
        with progress("detecting", loader.steps()) as advance:
            found = detect(predictor, _counted(loader.epoch(0), advance), pool)
        pairs = zip(samples, found, strict=False)
        return [(sample, compare(sample, each.result())) for sample, each in pairs if each is not None]


def _counted(batches: Iterable[Batch], advance: Callable[[int], None]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        advance(1)


def compare(sample: Sample, found: Detections) -> Compared:
    """What is in an image and what was detected, in pixels of the upright image."""
    sides = np.asarray([sample.size or images.upright_size(sample.encoded())] * 2, dtype=np.float64).reshape(4)
    # Fractions as float32 times the size miss whole pixels by a little, and an area of 32 x 32 is a boundary.
    corners: Boxes = np.round(sample.boxes * sides, 3).astype(np.float32)
    return Truth(corners, sample.classes, sample.difficult), Scored(found.boxes * sides, found.scores, found.classes)


def score(compared: Sequence[Compared], iou_threshold: float) -> Score:
    """Score the detections of all images."""
    truths, scored = [each for each, _ in compared], [each for _, each in compared]
    counted = [truth.classes[~truth.difficult] for truth in truths]
    identities, counts = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *counted]), return_counts=True)
    return Score(
        voc(truths, scored, iou_threshold),
        coco(truths, scored),
        {int(identity): int(count) for identity, count in zip(identities, counts, strict=True)},
    )


def describe(score: Score, class_names: dict[int, str]) -> dict[str, Any]:
    """A score as JSON; classes by their id."""
    summary = asdict(score.coco)
    coco_by_class = summary.pop("by_class")
    return {
        "mAP": score.mean,
        "mAP_11_points": float(np.mean([each.eleven_points for each in score.voc.values() if each.objects] or [0.0])),
        "coco": summary,
        "classes": {
            str(identity): {
                "name": class_names.get(identity, str(identity)),
                "objects": score.objects.get(identity, 0),
                "AP": each.area,
                "AP_11_points": each.eleven_points,
                "coco_AP": coco_by_class.get(identity),
            }
            for identity, each in score.voc.items()
        },
    }
