"""Training augmentation of SSD (Liu et al. 2016, section 2.2 and 3.6): image + boxes -> square image + boxes.

Everything is drawn first, from the image's size and boxes: the geometry as one window of the source that becomes the
whole square, smaller than the image for a crop, larger for a zoom-out. So an image can be decoded at a fraction of its
size, is resized once, and photometric work is one matrix on the final square. Every function is pure; every draw comes
from the generator passed in.
"""

import math
from dataclasses import dataclass

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
_INTERPOLATIONS = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA)

_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = 32, 0.5, 0.5, 18  # of 255, shares, degrees
_YIQ = np.asarray([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)

Window = tuple[float, float, float, float]  # xmin, ymin, xmax, ymax in pixels of the source; may reach beyond it


@dataclass(frozen=True)
class Plan:
    """What is done to an image.

    Attributes
    ----------
    window : the part of the source, in its pixels, that becomes the square
    interpolation : OpenCV's
    mirrored : bool
    colours : float64 (3, 4) or None
        Matrix and offset on RGB; None to leave colours alone.
    """

    window: Window
    interpolation: int
    mirrored: bool
    colours: NDArray[np.float64] | None


def draw(width: int, height: int, boxes: Boxes, generator: np.random.Generator) -> Plan:
    """A random plan for an image of this size with these boxes, (R, 4) in its pixels."""
    return Plan(
        window=_whole_pixels(draw_window(width, height, boxes, generator)),
        interpolation=_INTERPOLATIONS[int(generator.integers(len(_INTERPOLATIONS)))],
        mirrored=bool(generator.random() < 0.5),
        colours=draw_colours(generator),
    )


def reduction(plan: Plan, width: int, height: int, side: int) -> int:
    """By how much an image of this size may be decoded smaller, 1, 2, 4 or 8, and still not have to be enlarged."""
    shown = min(
        (plan.window[2] - plan.window[0]) / side,  # pixels of the source to a pixel of the square
        (plan.window[3] - plan.window[1]) / side,
    )
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(shown, 1) and factor <= min(width, height))


def apply(image: Pixels, width: int, height: int, plan: Plan, side: int) -> Pixels:
    """The square (side, side, 3) that a plan for an image of width x height makes of it, decoded at whatever size."""
    across, down = image.shape[1] / width, image.shape[0] / height
    window = (plan.window[0] * across, plan.window[1] * down, plan.window[2] * across, plan.window[3] * down)
    square = cut(image, window, side, plan.interpolation)
    if plan.mirrored:
        square = np.asarray(cv2.flip(square, 1), dtype=np.uint8)
    return square if plan.colours is None else np.asarray(cv2.transform(square, plan.colours), dtype=np.uint8)


def move(boxes: Boxes, classes: NDArray[np.int64], plan: Plan, side: int) -> tuple[Boxes, NDArray[np.int64]]:
    """The boxes (R, 4) in pixels of the source that a plan leaves, (K, 4) in those of the square, and their classes."""
    boxes, classes = into_window(boxes, classes, plan.window, side)
    return (mirror_boxes(boxes, side) if plan.mirrored else boxes), classes


def _whole_pixels(window: Window) -> Window:
    """The window up to whole pixels around it, so that boxes and pixels are cut at the same place."""
    left, top, right, bottom = window
    return (math.floor(left), math.floor(top), math.ceil(right), math.ceil(bottom))


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
    objects any part will do. The first of 25 trials that is kept is taken; without one the whole window stays.
    """
    sampler = int(generator.integers(len(_CROP_MIN_IOUS) + 2))
    if sampler == 0:
        return window
    least = _CROP_MIN_IOUS[sampler - 1] if sampler <= len(_CROP_MIN_IOUS) else 0.0
    parts = draw_parts(window, _CROP_TRIALS if len(boxes) else 1, generator)
    if len(boxes):
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres > parts[:, None, :2]) & (centres < parts[:, None, 2:])).all(axis=2).any(axis=1)
        kept = np.flatnonzero(inside & (iou(parts.astype(np.float32), boxes).max(axis=1) >= least))
        if not len(kept):
            return window
        parts = parts[kept]
    left, top, right, bottom = parts[0].tolist()
    return (left, top, right, bottom)


def draw_parts(window: Window, count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Parts (count, 4) of 0.3 to 1 times the window's sides with an aspect ratio, relative to it, of 0.5 to 2."""
    whole = np.asarray([window[2] - window[0], window[3] - window[1]])
    scale = generator.uniform(*_CROP_SCALES, count)
    low, high = np.maximum(_CROP_ASPECTS[0], scale**2), np.minimum(_CROP_ASPECTS[1], 1 / scale**2)
    draws = generator.random((count, 3))
    stretch = np.sqrt(low + (high - low) * draws[:, 0])
    sides = whole * np.stack([scale * stretch, scale / stretch], axis=1)
    start = np.asarray(window[:2]) + np.maximum(whole - sides, 0) * draws[:, 1:]
    return np.concatenate([start, start + sides], axis=1)


def draw_colours(generator: np.random.Generator) -> NDArray[np.float64] | None:
    """Random brightness, contrast, saturation and hue, each with probability 0.5 (Howard 2013, as SSD uses it).

    All are linear in RGB but for clipping at the end: hue turns the plane of I and Q in YIQ, saturation scales it.
    """
    chosen = generator.random(4) < 0.5
    if not chosen.any():
        return None
    strength = np.where(chosen, generator.uniform(-1, 1, 4), 0)
    brightness, contrast = strength[0] * _BRIGHTNESS, 1 + strength[1] * _CONTRAST
    saturation, hue = 1 + strength[2] * _SATURATION, np.deg2rad(strength[3] * _HUE)
    cosine, sine = saturation * np.cos(hue), saturation * np.sin(hue)
    matrix = contrast * (_RGB @ np.asarray([[1, 0, 0], [0, cosine, -sine], [0, sine, cosine]]) @ _YIQ)
    return np.concatenate([matrix, (matrix @ np.full(3, brightness))[:, None]], axis=1)


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
    # Only a window that reaches beyond the image leaves room around it.
    to_first = min(side - 1, max(0, round((first - start) * scale))) if start < 0 else 0
    to_last = min(side, max(to_first + 1, round((last - start) * scale))) if end > length else side
    return first, last, to_first, to_last


def _resize(image: Pixels, width: int, height: int, interpolation: int) -> Pixels:
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), dtype=np.uint8)


def mirror_boxes(boxes: Boxes, width: float) -> Boxes:
    """Boxes of an image of this width after left and right are exchanged."""
    mirrored = boxes.copy()
    mirrored[:, [0, 2]] = width - boxes[:, [2, 0]]
    return mirrored
