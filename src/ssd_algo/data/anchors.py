"""Anchors of a layout of feature maps (Liu et al. 2016, section 2.2)."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from ssd_algo.data.boxes import Boxes

# Share of the image's side that the anchors of the first map have, of the second, and of the last; the maps between
# are spaced evenly. Published with SSD for COCO, whose objects are small (weiliu89/caffe, ssd_coco.py).
_SMALL_SCALES = (0.07, 0.15, 0.87)
_LARGE_SCALES = (0.04, 0.10, 0.90)
_LARGE_FROM = 448

_FEW_RATIOS = (1.0, 2.0, 1 / 2)
_MANY_RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)


def is_large(image_shape: int) -> bool:
    """Whether the layout for large inputs applies, which has one feature map more."""
    return image_shape >= _LARGE_FROM


def map_count(image_shape: int) -> int:
    """Feature maps of a network for this input: strides 8, 16 and 32, then extra layers until a map would vanish."""
    if is_large(image_shape):
        return 7
    side = math.ceil(image_shape / 64)  # of the first extra layer's map
    return 4 + (side >= 3) + (side >= 5)  # the last two take 2 off


def scales(image_shape: int, maps: int) -> list[tuple[float, float]]:
    """For each feature map the scale of its anchors and that of its one larger square anchor.

    The second is the geometric mean with the next map's scale (`s'_k = sqrt(s_k s_{k+1})`).
    """
    first, second, last = _LARGE_SCALES if is_large(image_shape) else _SMALL_SCALES
    rest = np.linspace(second, last, maps - 1)
    step = rest[1] - rest[0] if maps > 2 else last - second
    every = [first, *rest, rest[-1] + step]
    return [(float(s), float(np.sqrt(s * following))) for s, following in itertools.pairwise(every)]


def ratios(maps: int) -> list[tuple[float, ...]]:
    """For each feature map the width-to-height ratios of its anchors: fewer on the first and the last two."""
    return [_FEW_RATIOS if index in (0, maps - 2, maps - 1) else _MANY_RATIOS for index in range(maps)]


def anchors_per_cell(maps: int) -> list[int]:
    """How many anchors each cell of each feature map has: one a ratio and the larger square."""
    return [len(each) + 1 for each in ratios(maps)]


def anchors(image_shape: int, map_sizes: Sequence[tuple[int, int]]) -> Boxes:
    """All anchors of a layout.

    Parameters
    ----------
    image_shape : int
        Side of the network's input in pixels; decides between the layouts for small and large inputs.
    map_sizes : sequence of (height, width)
        Sizes of the feature maps, finest first.

    Returns
    -------
    float32 (A, 4)
        Corners as fractions of the image, not clipped; ordered by map, row, column, then within a cell: the scale, the
        larger square, the other ratios (MXNet's MultiBoxPrior order).
    """
    every = []
    for (height, width), (scale, larger), cell_ratios in zip(
        map_sizes, scales(image_shape, len(map_sizes)), ratios(len(map_sizes)), strict=True
    ):
        shapes = [(scale, scale), (larger, larger)]
        shapes += [(scale * ratio**0.5, scale / ratio**0.5) for ratio in cell_ratios[1:]]
        rows, columns = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        centres = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2)
        half = np.asarray(shapes).reshape(1, -1, 2) / 2
        every.append(np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4))
    return np.concatenate(every).astype(np.float32)
