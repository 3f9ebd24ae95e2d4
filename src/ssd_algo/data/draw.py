"""Boxes drawn over an image, for a person to look at."""

import colorsys
import functools
import importlib.util
import itertools
import math
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
_RIM = (0, 0, 0, 130)  # with its opacity

Colour = tuple[int, int, int]
Area = tuple[int, int, int, int]


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

    Each line has a dark rim and each label a plate, so that both are seen on any ground. A label that would hide
    another, of a mark before, is left out.
    """
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture, "RGBA")
    side = math.sqrt(picture.width * picture.height)
    font = _font(max(11, round(side / 29)))
    line = max(2, round(side / 217))
    for mark in reversed(marks):
        _outline(canvas, mark, line)
    taken: list[Area] = []
    for mark in marks:
        place = _place(canvas, mark, font, picture.size, taken) if mark.label else None
        if place is not None:
            taken.append(place)
            _label(canvas, mark, font, place)
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
        canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_RIM, width=line + 2)
        canvas.rectangle((left, top, right, bottom), outline=mark.colour, width=line)
        return
    line -= 1
    canvas.rectangle((left, top, right, bottom), outline=_RIM, width=line + 1)
    step = 4 * line
    for start in range(left, right + 1, 2 * step):
        for y in (top, bottom):
            canvas.line((start, y, min(start + step, right), y), fill=mark.colour, width=line)
    for start in range(top, bottom + 1, 2 * step):
        for x in (left, right):
            canvas.line((x, start, x, min(start + step, bottom)), fill=mark.colour, width=line)


def _place(
    canvas: ImageDraw.ImageDraw,
    mark: Mark,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    taken: Sequence[Area],
) -> Area | None:
    """Where a label goes: above the box, within it or below it, where no other label is; None without such a place."""
    _, _, width, height = (int(each) for each in canvas.textbbox((0, 0), printable(mark.label), font=font))
    width, height = width + 6, height + 4
    left, top, right, bottom = (round(float(each)) for each in mark.box)
    places = []
    for x, y in itertools.product((left, right - width), (top - height, top, bottom - height, bottom)):
        x, y = min(max(0, x), max(0, size[0] - width - 1)), min(max(0, y), max(0, size[1] - height - 1))
        places.append((x, y, x + width, y + height))
    return next((each for each in places if not any(_overlap(each, other) for other in taken)), None)


def _label(canvas: ImageDraw.ImageDraw, mark: Mark, font: ImageFont.FreeTypeFont, place: Area) -> None:
    canvas.rectangle(place, fill=mark.colour, outline=_BLACK)
    canvas.text((place[0] + 3, place[1] + 1), printable(mark.label), fill=_BLACK, font=font)


def _overlap(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
