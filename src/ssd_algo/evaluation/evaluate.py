"""Score a predictor on labelled images."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ssd_algo.data.images import NotAnImage
from ssd_algo.data.samples import Sample, Skipped
from ssd_algo.evaluation.average_precision import Scored, Truth, average_precisions, mean_average_precision
from ssd_algo.inference.predictor import Picture, Predictor


@dataclass(frozen=True)
class Score:
    """Mean average precision and that of each class."""

    mean: float
    by_class: dict[int, float]


def evaluate(
    predictor: Predictor, samples: Sequence[Sample], batch_size: int, iou_threshold: float, skipped: Skipped
) -> Score:
    """Score every sample exactly once, through what serving runs.

    Raises
    ------
    UserError
        When more images cannot be decoded than `skipped` takes.
    """
    truths, scored = [], []
    readable = _prepared(predictor, samples, skipped)
    while chunk := list(itertools.islice(readable, batch_size)):
        pictures = [picture for _, picture in chunk]
        fill = [pictures[-1]] * (batch_size - len(chunk))  # one input shape, whatever is left for the last batch
        for (sample, _), found in zip(chunk, predictor.detect(pictures + fill), strict=False):
            truths.append(Truth(sample.boxes, sample.classes, sample.difficult))
            scored.append(Scored(found.boxes, found.scores, found.classes))
    precisions = average_precisions(truths, scored, iou_threshold)
    return Score(mean_average_precision(precisions), precisions)


def _prepared(predictor: Predictor, samples: Sequence[Sample], skipped: Skipped) -> Iterator[tuple[Sample, Picture]]:
    for sample in samples:
        try:
            picture = predictor.prepare(sample.encoded())
        except NotAnImage as error:
            skipped.add(sample.name, error)
        else:
            sample.check_size(picture.width, picture.height)
            yield sample, picture
