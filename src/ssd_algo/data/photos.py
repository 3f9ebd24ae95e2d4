"""Photos named on a command line, and the pictures that are made of them."""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from ssd_algo.data.draw import Mark, colour, draw
from ssd_algo.data.files import list_folder
from ssd_algo.data.images import EXTENSIONS, Pixels
from ssd_algo.errors import UserError

_QUALITY = 92


def find(arguments: Sequence[str], output: Path) -> list[Path]:
    """The photos that arguments mean, each once: files, folders with all below them, patterns (`photos/**/*.jpg`).

    Pictures of an earlier time, below `output`, are left out where an argument means others too.

    Raises
    ------
    UserError
        When an argument means none.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        named = [argument] if os.path.lexists(argument) else sorted(glob.glob(argument, recursive=True))
        if not named:
            raise UserError(f"there is no file or folder {argument}, nor any that it is a pattern of; check the path.")
        photos = [each for name in named for each in ([Path(name)] if not os.path.isdir(name) else _below(Path(name)))]
        if not photos:
            raise UserError(f"{argument} holds no photo ({', '.join(EXTENSIONS)}); check the path.")
        others = [each for each in photos if output.resolve() not in each.resolve().parents]
        found |= {os.path.abspath(each): each for each in others or photos}
    return list(found.values())


def _below(folder: Path) -> list[Path]:
    return [folder / file.name for file in list_folder(folder.name, folder).with_extension(*EXTENSIONS)]


def places(photos: Sequence[Path], output: Path) -> list[Path]:
    """Where the pictures of photos go: below `output` as the photos lie below the folder that has all of them.

    Raises
    ------
    UserError
        When one would be written over a photo.
    """
    absolute = [Path(os.path.abspath(each)) for each in photos]
    top = os.path.commonpath([each.parent for each in absolute])
    found = [output / each.relative_to(top) for each in absolute]
    found = [each if each.suffix.lower() in EXTENSIONS else each.with_name(f"{each.name}.jpg") for each in found]
    originals = {each.resolve() for each in absolute}
    for each in found:
        if each.resolve() in originals:
            raise UserError(f"the photo {each} would be overwritten; give another folder as --output.")
    return found


def draw_annotations(image: Pixels, annotations: Sequence[dict[str, Any]]) -> Pixels:
    """An image with the boxes, names and scores of its annotations, in the form of `serving.app.as_annotation`."""
    marks = [
        Mark(
            (each["left"], each["top"], each["left"] + each["width"], each["top"] + each["height"]),
            colour(each["class_id"]),
            f"{each['class_name']} {each['score']:.2f}",
        )
        for each in annotations
    ]
    return draw(image, marks)


def write(image: Pixels, path: Path) -> None:
    """Write a picture, its kind by its name, and the folders above it."""
    done, encoded = cv2.imencode(
        path.suffix.lower(), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    assert done
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.tobytes())
