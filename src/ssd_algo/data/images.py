"""Encoded images to RGB arrays, the same way for training, validation and serving."""

import hashlib
import io
import math
import struct
import warnings
from dataclasses import dataclass
from typing import BinaryIO

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ssd_algo.errors import UserError

Pixels = NDArray[np.uint8]

EXTENSIONS = (".jpg", ".jpeg", ".png")

_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)

_JPEG_MAGIC, _PNG_MAGIC = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# Markers of a JPEG: frame headers of all kinds (C4, C8 and CC are other things), EXIF or XMP, and a scan.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_EXIF_SEGMENT = 0xE1
# Markers that a length and so many bytes follow: tables, applications' and comments.
_SEGMENTS = frozenset({0xC4, 0xCC, 0xDB, 0xDD, 0xFE}) | frozenset(range(0xE0, 0xF0))
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

# Formats that OpenCV decodes, by Pillow's name for them; MPO is a JPEG with further pictures behind.
_KINDS = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "BMP": "BMP", "WEBP": "WebP", "TIFF": "TIFF"}
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_HEAD, _TAIL = 4096, 16  # bytes

# Of an image that a request may bring.
MOST_PIXELS = 50_000_000


class NotAnImage(ValueError):
    """The bytes are no image that can be decoded."""


def decode(encoded: bytes, reduction: int = 1) -> Pixels:
    """Decode an image to upright RGB.

    Grayscale, palette, 16-bit, CMYK and images with an alpha channel (dropped) come out as RGB; EXIF orientation is
    applied.

    Parameters
    ----------
    reduction : 1, 2, 4 or 8
        By how much the sides of a JPEG are to be smaller, rounded up, which saves work. Other kinds come out whole.

    Returns
    -------
    uint8 (H, W, 3)

    Raises
    ------
    NotAnImage
    """
    try:
        flags = _REDUCED[reduction if encoded.startswith(_JPEG_MAGIC) else 1]
        decoded = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), flags) if encoded else None
    except cv2.error as error:
        raise NotAnImage(f"the image cannot be decoded ({error.err})") from error
    if decoded is None:
        raise NotAnImage(f"the {len(encoded)} bytes are no image that can be decoded")
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def upright_size(encoded: bytes) -> tuple[int, int]:
    """Width and height, EXIF orientation applied, from an encoded image's header.

    Raises
    ------
    NotAnImage
    """
    return _size_of_plain_jpeg(encoded) or _open(io.BytesIO(encoded))[:2]


def decode_square(encoded: bytes, side: int) -> tuple[Pixels, int, int]:
    """Decode a JPEG or PNG that anyone may have sent, for the network.

    The pixels are those of `to_square(decode(encoded), side)`. Whatever the bytes say, no more memory is taken than an
    image of `MOST_PIXELS` needs: 12 bytes a pixel, of which a progressive JPEG takes the most.

    Returns
    -------
    square : uint8 (side, side, 3) RGB
    width, height : int
        Of the upright image.

    Raises
    ------
    NotAnImage
    """
    if not encoded.startswith((_JPEG_MAGIC, _PNG_MAGIC)):  # other kinds have parsers that nobody needs
        raise NotAnImage(f"the {len(encoded)} bytes are no image that can be decoded")
    width, height = _size_of_plain_jpeg(encoded) or _largest_size(encoded)
    if width * height > MOST_PIXELS:
        most = MOST_PIXELS // 10**6
        raise NotAnImage(f"it has {width} x {height} pixels, and at most {most} million are taken; make it smaller")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise NotAnImage(f"the image cannot be decoded ({error.err})") from error
    if image is None:
        raise NotAnImage(f"the {len(encoded)} bytes are no image that can be decoded")
    square = to_square(image, side)  # first, as it leaves less to do for the rest
    return np.asarray(cv2.cvtColor(square, cv2.COLOR_BGR2RGB), dtype=np.uint8), image.shape[1], image.shape[0]


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
    if kind in _END_MARKERS and _END_MARKERS[kind] not in tail and not _ends(file, kind):
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
            # Nor of other formats, which OpenCV does not turn.
            sideways = image.format in ("JPEG", "MPO", "PNG") and exif.get(_EXIF_ORIENTATION) in _SIDEWAYS
    except UnidentifiedImageError as error:
        raise NotAnImage("the file is no image") from error
    except Image.DecompressionBombError as error:
        raise NotAnImage(f"the image is too large ({error})") from error
    except UserError:  # the file's storage cannot be read
        raise
    except Exception as error:  # Pillow's parsers fail in many ways on damaged files
        raise NotAnImage(f"the image's header cannot be read ({error})") from error
    kind = _KINDS.get(image.format or "")
    if kind is None:
        raise NotAnImage(f"a {image.format} image cannot be decoded here; JPEG and PNG can")
    return (height, width, kind) if sideways else (width, height, kind)


def _ends(file: BinaryIO, kind: str) -> bool:
    """Whether the end marker of a JPEG or PNG stands anywhere behind the beginning of its pixels.

    Telephones put films behind a photo, and before its pixels a small picture with an end marker of its own.
    """
    file.seek(0)
    content = file.read()
    start = _start_of_scan(content) if kind == "JPEG" else 0
    return content.find(_END_MARKERS[kind], start) >= 0


def _size_of_plain_jpeg(encoded: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG without EXIF, from its frame header (ITU-T T.81, annex B); None for anything else.

    What Pillow does in 60 microseconds, of which a small image takes not many more to be decoded.
    """
    place = 2 if encoded.startswith(_JPEG_MAGIC) else len(encoded)
    while encoded[place : place + 1] == b"\xff" and len(encoded) > place + 9:
        kind = encoded[place + 1]
        if kind in _FRAMES:
            height, width = struct.unpack_from(">HH", encoded, place + 5)
            return (width, height) if width and height else None
        if kind == _EXIF_SEGMENT or kind not in _SEGMENTS:
            return None
        place += 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
    return None


def _largest_size(encoded: bytes) -> tuple[int, int]:
    """Width and height of a JPEG or PNG; of one that says two things, the larger."""
    width, height, _ = _open(io.BytesIO(encoded))
    return max((width, height), _size_of_png(encoded), key=math.prod)


def _size_of_png(encoded: bytes) -> tuple[int, int]:
    """What the first chunk of a PNG says, which a decoder goes by; zeros for anything else."""
    if not encoded.startswith(_PNG_MAGIC) or len(encoded) < len(_PNG_MAGIC) + 16:
        return 0, 0
    width, height = struct.unpack_from(">II", encoded, len(_PNG_MAGIC) + 8)
    return width, height


def _start_of_scan(jpeg: bytes) -> int:
    """Where the first scan begins: behind the segments, each a marker and a length (ITU-T T.81, annex B)."""
    place = 2
    while jpeg[place : place + 1] == b"\xff" and jpeg[place + 1 : place + 2] != b"\xda":
        place += 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
    return place


def to_square(image: Pixels, side: int) -> Pixels:
    """The whole image resized to (side, side, 3), ignoring its aspect ratio: what the network sees."""
    shrinks = min(image.shape[:2]) > side
    return np.asarray(
        cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8
    )
