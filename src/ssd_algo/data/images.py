"""Encoded images to RGB arrays, the same way for training, validation and serving."""

import hashlib
import io
import itertools
import math
import re
import struct
import warnings
from collections.abc import Iterator
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
# How they begin. OpenCV 4.11 has decoders of more kinds: nobody needs them, and that of JPEG 2000 has CVE-2025-53644.
_BEGINNINGS = (_JPEG_MAGIC, _PNG_MAGIC, b"BM", b"RIFF", b"II", b"MM")
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_HEAD, _TAIL = 4096, 16  # bytes

# Of an image that a request may bring.
MOST_PIXELS = 50_000_000
# Of what stands before its pixels, a hundred times what is usual.
_MOST_SEGMENTS = 1000
# Of a JPEG, of which most have 1 and a progressive one 10: one without bits takes libjpeg as long as any other.
_MOST_SCANS = 100
# Of EXIF and XMP segments, which libjpeg walks through for each further one.
_MOST_EXIF_SEGMENTS = 10_000
_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
# A marker: no stuffed byte, and none of those that may stand among pixels or alone.
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")


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
    flags = _REDUCED[reduction if encoded.startswith(_JPEG_MAGIC) else 1]
    return cv2.cvtColor(_decode_bgr(encoded, flags), cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)


def _decode_bgr(encoded: bytes, flags: int) -> Pixels:
    """What OpenCV makes of an image; of an animated one its first picture."""
    still = _still(encoded) if encoded.startswith(_PNG_MAGIC) else encoded
    try:
        decoded = cv2.imdecode(np.frombuffer(still, dtype=np.uint8), flags) if still.startswith(_BEGINNINGS) else None
    except cv2.error as error:
        raise NotAnImage(f"the image cannot be decoded ({error.err})") from error
    if decoded is None:
        raise NotAnImage(f"the {len(encoded)} bytes are no image that can be decoded")
    return np.asarray(decoded, dtype=np.uint8)


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
    is_png = encoded.startswith(_PNG_MAGIC)
    width, height = _largest_size_of_png(encoded) if is_png else _size_of_jpeg(encoded)
    if width * height > MOST_PIXELS:
        most = MOST_PIXELS // 10**6
        raise NotAnImage(f"it has {width} x {height} pixels, and at most {most} million are taken; make it smaller")
    if not is_png:
        _check_work(encoded)
    image = _decode_bgr(encoded, cv2.IMREAD_COLOR)
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


def _size_of_jpeg(encoded: bytes) -> tuple[int, int]:
    """Width and height of a JPEG as it is stored, from its first frame header, found as libjpeg finds it."""
    for kind, start in itertools.islice(_markers(encoded), _MOST_SEGMENTS):
        if kind in _FRAMES and len(encoded) >= start + 7:
            height, width = struct.unpack_from(">HH", encoded, start + 3)
            return width, height
        if kind in (_SCAN, _END_OF_IMAGE):
            break
    raise NotAnImage(f"the {len(encoded)} bytes are no image that can be decoded")


def _markers(jpeg: bytes) -> Iterator[tuple[int, int]]:
    """Each marker of a JPEG, and where what belongs to it starts; whatever stands between is passed over."""
    place = 2
    while found := _MARKER.search(jpeg, place):
        kind, start = jpeg[found.end() - 1], found.end()
        yield kind, start
        place = start + int.from_bytes(jpeg[start : start + 2], "big")


def _check_work(jpeg: bytes) -> None:
    """Refuse a JPEG that libjpeg would be at for minutes or hours."""
    if jpeg.count(b"\xff\xda") > _MOST_SCANS:  # at once, but those of files that stand behind are counted too
        kinds = itertools.takewhile(lambda kind: kind != _END_OF_IMAGE, (kind for kind, _ in _markers(jpeg)))
        if any(itertools.islice((kind == _SCAN for kind in kinds if kind == _SCAN), _MOST_SCANS, None)):
            raise NotAnImage(f"it has more than {_MOST_SCANS} scans; save it again")
    if jpeg.count(b"\xff\xe1") > _MOST_EXIF_SEGMENTS:
        raise NotAnImage(f"it has more than {_MOST_EXIF_SEGMENTS} EXIF segments; save it again")


def _chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk of a PNG before its pixels, and the first with them.

    Raises
    ------
    NotAnImage
        When one is not all there, or there are too many.
    """
    place = len(_PNG_MAGIC)
    for _ in range(_MOST_SEGMENTS):
        length, kind = struct.unpack(">I4s", png[place : place + 8].ljust(8, b"\xff"))
        end = place + 12 + length
        if end > len(png):
            break
        yield kind, place, end
        if kind == b"IDAT":
            return
        place = end
    raise NotAnImage(f"the {len(png)} bytes are no image that can be decoded")


def _largest_size_of_png(png: bytes) -> tuple[int, int]:
    """Width and height as a PNG is stored; of one that says two things, the larger."""
    largest = (0, 0)
    for kind, start, end in _chunks(png):
        if kind == b"IHDR" and end - start >= 20:
            width, height = struct.unpack_from(">II", png, start + 8)
            largest = max(largest, (width, height), key=math.prod)
    return largest


def _still(png: bytes) -> bytes:
    """A PNG without the chunk that makes it a film: OpenCV 4.11 ends the process over a damaged frame."""
    parts, place = [], 0
    for kind, start, end in _chunks(png):
        if kind == b"acTL":
            parts.append(png[place:start])
            place = end
    return b"".join([*parts, png[place:]]) if parts else png


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
