"""Score a predictor on labelled images."""

from collections.abc import Sequence
from dataclasses import dataclass

from ssd_algo.data.images import NotAnImage
from ssd_algo.data.samples import Sample
from ssd_algo.errors import UserError
from ssd_algo.evaluation.average_precision import Scored, Truth, average_precisions, mean_average_precision
from ssd_algo.inference.predictor import Picture, Predictor


@dataclass(frozen=True)
class Score:
    """Mean average precision and that of each class."""

    mean: float
    by_class: dict[int, float]


def evaluate(predictor: Predictor, samples: Sequence[Sample], batch_size: int, iou_threshold: float) -> Score:
    """Score every sample exactly once, through what serving runs.

    Raises
    ------
    UserError
        When an image cannot be decoded.
    """
    truths, scored = [], []
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        pictures = [_prepare(predictor, sample) for sample in chunk]
        fill = [pictures[-1]] * (batch_size - len(chunk))  # one input shape, whatever is left for the last batch
        for sample, found in zip(chunk, predictor.detect(pictures + fill), strict=False):
            truths.append(Truth(sample.boxes, sample.classes, sample.difficult))
            scored.append(Scored(found.boxes, found.scores, found.classes))
    precisions = average_precisions(truths, scored, iou_threshold)
    return Score(mean_average_precision(precisions), precisions)


def _prepare(predictor: Predictor, sample: Sample) -> Picture:
    try:
        return predictor.prepare(sample.encoded())
    except NotAnImage as error:
        raise UserError(f"{sample.name}: {error}; replace the image.") from error
