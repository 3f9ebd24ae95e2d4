"""A picture of augmented samples with their boxes, for a person to look at."""

from collections.abc import Sequence

import cv2
import numpy as np

from ssd_algo.data.images import NotAnImage, Pixels
from ssd_algo.data.loader import augmented, decoded
from ssd_algo.data.samples import Sample
from ssd_algo.errors import UserError

_COLUMNS = 5


def contact_sheet(
    samples: Sequence[Sample], class_names: dict[int, str], side: int, count: int, generator: np.random.Generator
) -> Pixels:
    """Augmented samples in rows of five, every box drawn with its class, as training sees them.

    Parameters
    ----------
    samples : the pictures are drawn from these, evenly
    side : int
        Of each square, pixels.
    count : int
    """
    chosen = [samples[int(index)] for index in np.linspace(0, len(samples) - 1, count).round()]
    squares = [_drawn(sample, class_names, side, generator) for sample in chosen]
    squares += [np.zeros((side, side, 3), dtype=np.uint8)] * (-len(squares) % _COLUMNS)
    rows = [np.concatenate(squares[start : start + _COLUMNS], axis=1) for start in range(0, len(squares), _COLUMNS)]
    return np.concatenate(rows)


def _drawn(sample: Sample, class_names: dict[int, str], side: int, generator: np.random.Generator) -> Pixels:
    try:
        square, boxes, classes = augmented(sample, side, generator, decoded)
    except NotAnImage as error:
        raise UserError(f"{sample.name}: {error}; replace or remove the image.") from error
    square = np.ascontiguousarray(square)
    for box, identity in zip(boxes, classes, strict=True):
        left, top, right, bottom = (round(float(each)) for each in box)
        hue = np.asarray([[[int(identity) * 67 % 180, 255, 255]]], dtype=np.uint8)  # classes next to each other differ
        colour = [int(each) for each in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0]]
        cv2.rectangle(square, (left, top), (right - 1, bottom - 1), colour, 1)
        name = class_names.get(int(identity), str(identity))
        cv2.putText(square, name, (left + 2, top + 11), cv2.FONT_HERSHEY_SIMPLEX, 0.4, colour, 1, cv2.LINE_AA)
    cv2.rectangle(square, (0, 0), (side - 1, side - 1), (0, 0, 0), 1)
    return square
