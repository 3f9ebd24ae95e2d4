"""Encoded images to RGB arrays, the same way for training, validation and serving."""

import hashlib
import warnings
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

Pixels = NDArray[np.uint8]

EXTENSIONS = (".jpg", ".jpeg", ".png")

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)

# Formats that OpenCV decodes, by Pillow's name for them; MPO is a JPEG with further pictures behind.
_KINDS = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "BMP": "BMP", "WEBP": "WebP", "TIFF": "TIFF"}
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_HEAD, _TAIL, _LONG_TAIL = 4096, 16, 1 << 16  # bytes


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


@dataclass(frozen=True, slots=True)
class Header:
    """What an image file says without being decoded.

    Attributes
    ----------
    width, height : int
        Pixels, EXIF orientation applied.
    fingerprint : bytes
        Of the file's length, beginning and end: two files with the same one are most likely the same image.
    """

    width: int
    height: int
    fingerprint: bytes


def read_header(file: BinaryIO, length: int) -> Header:
    """Header and end of an image file of `length` bytes.

    Raises
    ------
    NotAnImage
        When it is no image, of a kind that cannot be decoded, or cut off.
    """
    if not length:
        raise NotAnImage("the file is empty")
    width, height, kind = _open(file)
    file.seek(0)
    head = file.read(_HEAD)
    file.seek(max(0, length - _TAIL))
    tail = file.read(_TAIL)
    if not _ends(file, length, kind, tail):
        raise NotAnImage(f"the {kind} image is cut off: its end marker is missing")
    fingerprint = hashlib.blake2b(head + tail + length.to_bytes(8, "little"), digest_size=16).digest()
    return Header(width, height, fingerprint)


def _open(file: BinaryIO) -> tuple[int, int, str]:
    """Upright width and height, and the format."""
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
    except Exception as error:  # Pillow's parsers fail in many ways on damaged files
        raise NotAnImage(f"the image's header cannot be read ({error})") from error
    kind = _KINDS.get(image.format or "")
    if kind is None:
        raise NotAnImage(f"a {image.format} image cannot be decoded here; JPEG and PNG can")
    return (height, width, kind) if sideways else (width, height, kind)


def _ends(file: BinaryIO, length: int, kind: str, tail: bytes) -> bool:
    """Whether a JPEG or PNG has its end marker; some cameras write more behind it."""
    marker = _END_MARKERS.get(kind)
    if marker is None or marker in tail:
        return True
    file.seek(max(0, length - _LONG_TAIL))
    return marker in file.read(_LONG_TAIL)


def to_square(image: Pixels, side: int) -> Pixels:
    """The whole image resized to (side, side, 3), ignoring its aspect ratio: what the network sees."""
    shrinks = min(image.shape[:2]) > side
    return np.asarray(
        cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8
    )
