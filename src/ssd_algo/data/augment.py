"""Training augmentation of SSD (Liu et al. 2016, section 2.2 and 3.6): image + boxes -> square image + boxes.

The geometry is drawn first, as one window of the source that becomes the whole square: smaller than the image for a
crop, larger for a zoom-out. So a sample is resized once, and photometric work is done on the final square. Every
function is pure; every draw comes from the generator passed in.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.boxes import Boxes, area, intersection, iou
from ssd_algo.data.images import Pixels

FILL = (124, 116, 104)  # ImageNet's mean RGB, what a zoom-out shows around the image

_CROP_MIN_IOUS = (0.1, 0.3, 0.5, 0.7, 0.9)
_CROP_SCALES = (0.3, 1.0)  # of the image's sides
_CROP_ASPECTS = (0.5, 2.0)
_CROP_TRIALS = 25
_ZOOM_OUT_PROBABILITY = 0.5
_ZOOM_OUT_MAX = 4.0
_INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA, cv2.INTER_LANCZOS4)

Window = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax in pixels of the source; may reach beyond it


def augment(
    image: Pixels, boxes: Boxes, classes: NDArray[np.int64], side: int, generator: np.random.Generator
) -> tuple[Pixels, Boxes, NDArray[np.int64]]:
    """One augmented training sample.

    Parameters
    ----------
    image : uint8 (H, W, 3), RGB
    boxes : float32 (R, 4), pixels of `image`
    classes : int64 (R,)
    side : int
        Side of the square to make, pixels.

    Returns
    -------
    uint8 (side, side, 3), float32 (K, 4) in pixels of the square, int64 (K,)
    """
    window = draw_window(image.shape[1], image.shape[0], boxes, generator)
    square = cut(image, window, side, int(generator.choice(_INTERPOLATIONS)))
    boxes, classes = into_window(boxes, classes, window, side)
    if generator.random() < 0.5:
        square, boxes = mirror(square, boxes)
    return distort(square, generator), boxes, classes


def draw_window(width: int, height: int, boxes: Boxes, generator: np.random.Generator) -> Window:
    """Zoom out with probability 0.5, then crop by one of the paper's samplers."""
    window: Window = (0.0, 0.0, float(width), float(height))
    if generator.random() < _ZOOM_OUT_PROBABILITY:
        window = draw_zoom_out(width, height, generator)
    return draw_crop(window, boxes, generator)


def draw_zoom_out(width: int, height: int, generator: np.random.Generator) -> Window:
    """A window of 1 to 4 times the image's sides that holds the image at a random place."""
    ratio = generator.uniform(1, _ZOOM_OUT_MAX)
    left, top = generator.uniform(0, width * (ratio - 1)), generator.uniform(0, height * (ratio - 1))
    return (-left, -top, width * ratio - left, height * ratio - top)


def draw_crop(window: Window, boxes: Boxes, generator: np.random.Generator) -> Window:
    """A part of the window by one of seven samplers: the whole, a least IoU with an object (5), any part.

    A part is kept when it has the sampler's IoU with at least one object and holds the centre of at least one; without
    objects any part will do. When no trial succeeds the whole window stays.
    """
    sampler = int(generator.integers(len(_CROP_MIN_IOUS) + 2))
    if sampler == 0:
        return window
    least = _CROP_MIN_IOUS[sampler - 1] if sampler <= len(_CROP_MIN_IOUS) else 0.0
    for _ in range(_CROP_TRIALS):
        part = _draw_part(window, generator)
        if len(boxes) == 0:
            return part
        crop = np.asarray([part], dtype=np.float32)
        if iou(crop, boxes).max() >= least and centres_inside(boxes, part).any():
            return part
    return window


def _draw_part(window: Window, generator: np.random.Generator) -> Window:
    """A part of 0.3 to 1 times the window's sides with an aspect ratio, relative to it, of 0.5 to 2."""
    width, height = window[2] - window[0], window[3] - window[1]
    scale = generator.uniform(*_CROP_SCALES)
    low, high = max(_CROP_ASPECTS[0], scale**2), min(_CROP_ASPECTS[1], 1 / scale**2)
    stretch = np.sqrt(generator.uniform(low, high))
    w, h = width * scale * stretch, height * scale / stretch
    left = window[0] + generator.uniform(0, max(width - w, 0))
    top = window[1] + generator.uniform(0, max(height - h, 0))
    return (left, top, left + w, top + h)


def centres_inside(boxes: Boxes, window: Window) -> NDArray[np.bool_]:
    """Which boxes have their centre in the window, `(R,)`."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return np.asarray(((centres > window[:2]) & (centres < window[2:])).all(axis=1))


def into_window(boxes: Boxes, classes: NDArray[np.int64], window: Window, side: int) -> tuple[Boxes, NDArray[np.int64]]:
    """Boxes whose centre is in the window, clipped to it, in pixels of the square that it becomes."""
    crop = np.asarray([window], dtype=np.float32)
    kept = centres_inside(boxes, window) & (intersection(boxes, crop)[:, 0] > 0)
    scale = np.asarray([side / (window[2] - window[0]), side / (window[3] - window[1])] * 2)
    moved = np.clip((boxes[kept] - np.asarray(window[:2] * 2)) * scale, 0, side).astype(np.float32)
    whole = area(moved) > 0
    return moved[whole], classes[kept][whole]


def cut(image: Pixels, window: Window, side: int, interpolation: int) -> Pixels:
    """The window of the image as a square (side, side, 3); `FILL` where it reaches beyond the image."""
    (left, right, to_left, to_right), (top, bottom, to_top, to_bottom) = (
        _span(window[axis], window[axis + 2], image.shape[1 - axis], side) for axis in (0, 1)
    )
    if (to_left, to_top, to_right, to_bottom) == (0, 0, side, side):
        return _resize(image[top:bottom, left:right], side, side, interpolation)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = FILL
    if right > left and bottom > top:  # a zoom-out's part without objects may miss the image altogether
        square[to_top:to_bottom, to_left:to_right] = _resize(
            image[top:bottom, left:right], to_right - to_left, to_bottom - to_top, interpolation
        )
    return square


def _span(start: float, end: float, length: int, side: int) -> tuple[int, int, int, int]:
    """Along one axis: which pixels of the image the window shows, from and to, and where they come in the square."""
    first, last = max(0, round(start)), min(length, max(round(start) + 1, round(end)))
    scale = side / (end - start)
    to_first = min(side - 1, max(0, round((first - start) * scale)))
    to_last = min(side, max(to_first + 1, round((last - start) * scale)))
    return first, last, to_first, to_last


def _resize(image: Pixels, width: int, height: int, interpolation: int) -> Pixels:
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), dtype=np.uint8)


def mirror(image: Pixels, boxes: Boxes) -> tuple[Pixels, Boxes]:
    """Left and right exchanged; boxes in pixels of the image."""
    mirrored = boxes.copy()
    mirrored[:, [0, 2]] = image.shape[1] - boxes[:, [2, 0]]
    return np.ascontiguousarray(image[:, ::-1]), mirrored


def distort(image: Pixels, generator: np.random.Generator) -> Pixels:
    """Random brightness, contrast, saturation and hue, each with probability 0.5 (Howard 2013, as SSD uses it)."""
    brightness = generator.uniform(-32, 32) if generator.random() < 0.5 else 0.0
    contrast = generator.uniform(0.5, 1.5) if generator.random() < 0.5 else 1.0
    saturation = generator.uniform(0.5, 1.5) if generator.random() < 0.5 else 1.0
    hue = generator.uniform(-18, 18) if generator.random() < 0.5 else 0.0
    if brightness or contrast != 1:
        table = np.clip((np.arange(256) + brightness) * contrast, 0, 255).astype(np.uint8)
        image = np.asarray(cv2.LUT(image, table), dtype=np.uint8)
    if saturation != 1 or hue:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        tables = np.empty((1, 256, 3), dtype=np.uint8)
        tables[0, :, 0] = (np.arange(256) + round(hue / 2)) % 180  # OpenCV's hue counts half degrees
        tables[0, :, 1] = np.clip(np.arange(256) * saturation, 0, 255)
        tables[0, :, 2] = np.arange(256)
        image = np.asarray(cv2.cvtColor(cv2.LUT(hsv, tables), cv2.COLOR_HSV2RGB), dtype=np.uint8)
    return image
