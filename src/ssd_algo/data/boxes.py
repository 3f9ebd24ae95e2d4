"""The one box convention and its geometry.

Boxes are `float32 (R, 4)`: xmin, ymin, xmax, ymax. The functions here do not care for the unit (pixels or fractions),
only that both sides share it.
"""

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]

# Scales of the four box offsets, SSD's "variances" (Liu et al. 2016, the authors' code): offsets are divided by them.
OFFSET_SCALES = (0.1, 0.1, 0.2, 0.2)

# Pairs of anchor and class with a lower score are no detections; the value of MXNet's MultiBoxDetection.
SCORE_THRESHOLD = 0.01

# Boxes whose overlaps with each other are computed in one go; of more they would not fit into memory.
_MOST_AT_ONCE = 2000


def area(boxes: Boxes) -> NDArray[np.float32]:
    """Area of each box, `(R,)`; zero where a side is not positive."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def intersection(first: Boxes, second: Boxes) -> NDArray[np.float32]:
    """Area shared by each pair of boxes, `(R1, 4)` and `(R2, 4)` to `(R1, R2)`."""
    # Each axis on its own: an array with a last axis of two is several times slower.
    width, height = (
        np.maximum(
            np.minimum(first[:, None, axis + 2], second[None, :, axis + 2])
            - np.maximum(first[:, None, axis], second[None, :, axis]),
            0,
        )
        for axis in (0, 1)
    )
    return np.asarray(width * height)


def iou(first: Boxes, second: Boxes) -> NDArray[np.float32]:
    """Intersection over union of each pair, `(R1, 4)` and `(R2, 4)` to `(R1, R2)`; 0 where both areas are 0."""
    shared = intersection(first, second)
    union = area(first)[:, None] + area(second)[None, :] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def clip(boxes: Boxes, width: float, height: float) -> Boxes:
    """Boxes cut to the rectangle from (0, 0) to (width, height)."""
    high = np.asarray([width, height, width, height], dtype=np.float32)
    return np.asarray(np.clip(boxes, 0, high), dtype=np.float32)


def to_centre(boxes: Boxes) -> Boxes:
    """Corners to centre form: x, y of the centre, width, height."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([boxes[:, :2] + sides / 2, sides], axis=1).astype(np.float32)


def decode(offsets: NDArray[np.float32], anchors: Boxes) -> Boxes:
    """Boxes from offsets relative to their anchors, both `(R, 4)`, anchors as corners.

    Centre: `c = c_a + 0.1 t w_a`; side: `w = w_a exp(0.2 t)` (Liu et al. 2016, eq. 2, inverted, with `OFFSET_SCALES`).
    """
    centre = to_centre(anchors)
    scaled = offsets * np.asarray(OFFSET_SCALES, dtype=np.float32)
    middle = centre[:, :2] + scaled[:, :2] * centre[:, 2:]
    half = centre[:, 2:] * np.exp(scaled[:, 2:]) / 2
    return np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)


def non_maximum_suppression(boxes: Boxes, groups: NDArray[np.int64], threshold: float) -> NDArray[np.int64]:
    """Greedy suppression within each group of boxes that are sorted by descending score.

    Parameters
    ----------
    boxes : float32 (R, 4), best first
    groups : int (R,)
        A box suppresses only boxes of its own group (its class).
    threshold : float
        A box whose IoU with a better one that was kept is larger than this is dropped.

    Returns
    -------
    int64 (K,)
        Indices of the boxes that stay, ascending.
    """
    alive = np.ones(len(boxes), dtype=bool)
    if len(boxes) > _MOST_AT_ONCE:
        for index in range(len(boxes)):
            if alive[index]:
                own = (groups[index + 1 :] == groups[index]) & alive[index + 1 :]
                rest = index + 1 + np.flatnonzero(own)
                alive[rest] = iou(boxes[index : index + 1], boxes[rest])[0] <= threshold
        return np.flatnonzero(alive)
    overlaps = (iou(boxes, boxes) > threshold) & (groups[:, None] == groups[None, :])
    for index in range(len(boxes)):
        if alive[index]:
            alive[index + 1 :] &= ~overlaps[index, index + 1 :]
    return np.flatnonzero(alive)
