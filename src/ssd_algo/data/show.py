"""A picture of augmented samples with their boxes, for a person to look at."""

from collections.abc import Sequence

import numpy as np

from ssd_algo.data.draw import Mark, colour, draw
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
    marks = [
        Mark(box, colour(int(identity)), class_names.get(int(identity), str(identity)))
        for box, identity in zip(boxes, classes, strict=True)
    ]
    square = draw(square, marks)
    square[[0, -1]] = square[:, [0, -1]] = 0
    return square
