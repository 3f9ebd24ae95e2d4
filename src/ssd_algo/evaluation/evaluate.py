"""Score a predictor on labelled images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ssd_algo.data.loader import Batch
from ssd_algo.data.samples import Sample
from ssd_algo.evaluation.average_precision import Scored, Truth, average_precisions, mean_average_precision
from ssd_algo.inference.predictor import Predictor


@dataclass(frozen=True)
class Score:
    """Mean average precision and that of each class."""

    mean: float
    by_class: dict[int, float]


def evaluate(predictor: Predictor, samples: Sequence[Sample], batches: Iterable[Batch], iou_threshold: float) -> Score:
    """Score every sample exactly once, through what serving runs.

    Parameters
    ----------
    batches : of the samples in their order, not augmented
        What weighs nothing, because it fills the last batch or cannot be decoded, is left out.
    """
    truths, scored = [], []
    place = 0
    for batch in batches:
        found = predictor.detect(batch.images)
        for sample, weight, detections in zip(samples[place : place + len(found)], batch.weights, found, strict=False):
            if weight:
                truths.append(Truth(sample.boxes, sample.classes, sample.difficult))
                scored.append(Scored(detections.boxes, detections.scores, detections.classes))
        place += len(found)
    precisions = average_precisions(truths, scored, iou_threshold)
    return Score(mean_average_precision(precisions), precisions)
