"""A labelled image, whatever format it came in."""

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import recordio
from ssd_algo.data.boxes import Boxes
from ssd_algo.data.files import File
from ssd_algo.data.images import NotAnImage
from ssd_algo.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image.

    Attributes
    ----------
    name : str
        What to call it in a message: its path below the channel's folder, or its record.
    file : File
        The image file, or the RecordIO file that holds it.
    offset : int
        Where its record starts in a RecordIO file; -1 for an image file.
    boxes : float32 (R, 4)
        As fractions of the upright image's width and height.
    classes : int64 (R,), 0-based
    difficult : bool (R,)
        Objects that scoring leaves out, as in PASCAL VOC.
    size : (width, height) or None
        Of the upright image in pixels, as far as known without decoding it.
    fingerprint : bytes
        Of the encoded image, see `images.Header`; empty where nobody looked.
    """

    name: str
    file: File
    offset: int
    boxes: Boxes
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    size: tuple[int, int] | None = None
    fingerprint: bytes = b""

    def encoded(self) -> bytes:
        """The encoded image."""
        if self.offset < 0:
            return self.file.read()
        with self.file.open() as file:
            file.seek(self.offset)
            return recordio.unpack(recordio.read_record(file, self.file.size)).image

    def check_size(self, width: int, height: int, reduction: int = 1) -> None:
        """Compare the decoded image's size with what was said of it; it may be smaller by a reduction, rounded up.

        Raises
        ------
        UserError
        """
        if self.size is None:
            return
        smaller = (-(-self.size[0] // reduction), -(-self.size[1] // reduction))
        if (width, height) not in (self.size, smaller):
            raise UserError(
                f"{self.name}: its annotation gives an image_size of {self.size[0]} x {self.size[1]}, but the image is "
                f"not of that size; it is {width} x {height} pixels upright (EXIF orientation applied)"
                + (f" at a {reduction}th of its own" if reduction > 1 else "")
                + ". Correct one of them."
            )


class Skipped:
    """Images of a channel that turned out not to be decodable, up to a number of them and never all `count`."""

    def __init__(self, may_skip: int, count: int) -> None:
        self._may_skip, self._count = may_skip, count
        self._names: set[str] = set()

    def add(self, name: str, reason: NotAnImage) -> None:
        """Skip one, with a warning when it is the first time.

        Raises
        ------
        UserError
            When it is one too many.
        """
        if name in self._names:
            return
        if len(self._names) >= self._may_skip:
            raise UserError(f"{name}: {reason}; replace or remove the image, or allow for it with max_bad_records.")
        self._names.add(name)
        if len(self._names) == self._count:
            raise UserError(f"{name}: {reason}; no image of its channel is left.")
        logger.warning("%s: %s; the image is skipped.", name, reason)
