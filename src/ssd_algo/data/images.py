"""Encoded images to RGB arrays, the same way for training, validation and serving."""

import io
import warnings

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


def upright_size(encoded: bytes) -> tuple[int, int]:
    """Width and height after EXIF orientation, from the image's header.

    Raises
    ------
    NotAnImage
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on damaged EXIF; decode() decides what is an image
            image = Image.open(io.BytesIO(encoded))
            width, height = image.size
            sideways = image.getexif().get(_EXIF_ORIENTATION) in _SIDEWAYS
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise NotAnImage(f"the {len(encoded)} bytes are no image ({error})") from error
    return (height, width) if sideways else (width, height)


def to_square(image: Pixels, side: int) -> Pixels:
    """The whole image resized to (side, side, 3), ignoring its aspect ratio: what the network sees."""
    shrinks = min(image.shape[:2]) > side
    return np.asarray(
        cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8
    )
