"""Encoded images to RGB arrays, the same way for training, validation and serving."""

import warnings
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]

EXTENSIONS = (".jpg", ".jpeg", ".png")

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


class NotAnImage(ValueError):
    """The bytes are no image that can be decoded."""


def decode(encoded: bytes) -> Pixels:
    """Decode an image to upright RGB.

    Grayscale, palette, 16-bit, CMYK and images with an alpha channel (dropped) come out as RGB; EXIF orientation is
    applied.

    Returns
    -------
    uint8 (H, W, 3)

    Raises
    ------
    NotAnImage
    """
    try:
        decoded = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR) if encoded else None
    except cv2.error as error:
        raise NotAnImage(f"the image cannot be decoded ({error.err})") from error
    if decoded is None:
        raise NotAnImage(f"the {len(encoded)} bytes are no image that can be decoded")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def upright_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height after EXIF orientation, from an image file's header.

    Raises
    ------
    NotAnImage
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on damaged EXIF and large images; decode() decides
            image = Image.open(file)
            width, height = image.size
            # Not image.getexif(), which takes an orientation from XMP too; OpenCV, which decodes, does not.
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
            sideways = exif.get(_EXIF_ORIENTATION) in _SIDEWAYS
    except UnidentifiedImageError as error:
        raise NotAnImage("the file is no image") from error
    except Image.DecompressionBombError as error:
        raise NotAnImage(f"the image is too large ({error})") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise NotAnImage(f"the image's header cannot be read ({error})") from error
    return (height, width) if sideways else (width, height)


def to_square(image: Pixels, side: int) -> Pixels:
    """The whole image resized to (side, side, 3), ignoring its aspect ratio: what the network sees."""
    shrinks = min(image.shape[:2]) > side
    return np.asarray(
        cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8
    )
