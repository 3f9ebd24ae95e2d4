"""Boxes drawn over an image, for a person to look at."""

import colorsys
import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ssd_algo.data.findings import printable
from ssd_algo.data.images import Pixels

_GOLDEN_ANGLE = 137.508  # degrees between the hues of consecutive classes: no two of them are alike
_BLACK, WHITE = (0, 0, 0), (255, 255, 255)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Mark:
    """A box to draw.

    Attributes
    ----------
    box : xmin, ymin, xmax, ymax in pixels
    colour : RGB
        Light enough for a black label.
    label : str
        Empty for none.
    dashed : bool
    """

    box: Sequence[float] | NDArray[np.float32]
    colour: Colour
    label: str = ""
    dashed: bool = False


def colour(identity: int) -> Colour:
    """A class's colour; all are light."""
    hue = (200 + identity * _GOLDEN_ANGLE) % 360 / 360
    red, green, blue = colorsys.hls_to_rgb(hue, 0.72 if identity % 2 else 0.6, 1.0)
    # Yellow is brighter than blue of the same lightness, which gets some white.
    light = 0.3 * red + 0.59 * green + 0.11 * blue
    white = max(0.0, 0.55 - light)
    return tuple(round(255 * (each + white * (1 - each))) for each in (red, green, blue))  # type: ignore[return-value]


def draw(image: Pixels, marks: Sequence[Mark]) -> Pixels:
    """The image with these boxes, the first on top; lines and labels are as large as suits it.

    Each line has a black rim and each label a plate, so that both are seen on any ground.
    """
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    font = _font(max(11, round(max(picture.size) / 38)))
    line = max(1, round(max(picture.size) / 300))
    for mark in reversed(marks):
        _outline(canvas, mark, line)
    for mark in reversed(marks):
        if mark.label:
            _label(canvas, mark, font, line, picture.size)
    return np.array(picture)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has the letters of most alphabets and comes with matplotlib; that is not imported for it."""
    package = importlib.util.find_spec("matplotlib")
    assert package is not None and package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0])
    return ImageFont.truetype(folder / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _outline(canvas: ImageDraw.ImageDraw, mark: Mark, line: int) -> None:
    left, top, right, bottom = (round(float(each)) for each in mark.box)
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    if not mark.dashed:
        canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_BLACK, width=line + 2)
        canvas.rectangle((left, top, right, bottom), outline=mark.colour, width=line)
        return
    dash = 5 * line
    for first, last, y in ((left, right, top), (left, right, bottom)):
        canvas.line((first, y, last, y), fill=_BLACK, width=line + 1)
        for start in range(first, last + 1, 2 * dash):
            canvas.line((start, y, min(start + dash, last), y), fill=mark.colour, width=line)
    for first, last, x in ((top, bottom, left), (top, bottom, right)):
        canvas.line((x, first, x, last), fill=_BLACK, width=line + 1)
        for start in range(first, last + 1, 2 * dash):
            canvas.line((x, start, x, min(start + dash, last)), fill=mark.colour, width=line)


def _label(
    canvas: ImageDraw.ImageDraw,
    mark: Mark,
    font: ImageFont.FreeTypeFont,
    line: int,
    size: tuple[int, int],
) -> None:
    """Above the box's upper left corner, or within the box where there is no room above."""
    text = printable(mark.label)
    _, _, width, height = canvas.textbbox((0, 0), text, font=font)
    width, height = int(width) + 6, int(height) + 4
    left = min(max(0, round(float(mark.box[0]))), max(0, size[0] - width))
    top = round(float(mark.box[1])) - height
    if top < 0:
        top = round(float(mark.box[1])) + line
    top = min(max(0, top), max(0, size[1] - height))
    canvas.rectangle((left, top, left + width, top + height), fill=mark.colour, outline=_BLACK)
    canvas.text((left + 3, top + 1), text, fill=_BLACK, font=font)
