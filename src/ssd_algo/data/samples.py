"""A labelled image, whatever format it came in."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import recordio
from ssd_algo.data.boxes import Boxes


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image.

    Attributes
    ----------
    name : str
        What to call it in a message: its path relative to the channel, or its record.
    path : Path
        The image file, or the RecordIO file that holds it.
    offset : int
        Where its record starts in a RecordIO file; -1 for an image file.
    boxes : float32 (R, 4)
        As fractions of the upright image's width and height.
    classes : int64 (R,), 0-based
    difficult : bool (R,)
        Objects that scoring leaves out, as in PASCAL VOC.
    """

    name: str
    path: Path
    offset: int
    boxes: Boxes
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]

    def encoded(self) -> bytes:
        """The encoded image."""
        if self.offset < 0:
            return self.path.read_bytes()
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return recordio.unpack(recordio.read_record(file), self.name).image
