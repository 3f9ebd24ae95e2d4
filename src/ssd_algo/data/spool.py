"""What a stream has delivered ahead of whoever takes it, in a file that has no name.

The system keeps such a file in memory as long as it has room, and on the disk behind it; the file is read by forked
processes through the descriptor that they share. It is there as long as a process is, as samples know it by its number.
"""

import io
import os
import tempfile
import threading
from functools import partial
from typing import BinaryIO

from ssd_algo.data.files import File


class Spool:
    """A ring of bytes.

    Parameters
    ----------
    budget : int
        Bytes that it may hold; 0 for as many as the disk does.
    """

    def __init__(self, budget: int = 0) -> None:
        self.budget = budget
        self._descriptor, path = tempfile.mkstemp(prefix="ssd-algo-")
        os.unlink(path)
        self._begin = self._end = 0  # counted on and on; where that is in the file is the rest by the budget
        self._room = threading.Condition()
        self.waits = False  # for room

    def put(self, content: bytes) -> tuple[int, int]:
        """Add bytes; waits for room. Returns their place in the file, and the mark up to which they take the ring.

        Raises
        ------
        ValueError
            When it is larger than the ring.
        OSError
            When the disk is full.
        """
        size = len(content)
        with self._room:
            if self.budget:
                if size > self.budget:
                    raise ValueError(f"it has {size} bytes, more than the {self.budget} of the spool")
                left = self.budget - self._end % self.budget
                begin = self._end if size <= left else self._end + left  # in one piece
                if self._begin == self._end:
                    self._begin = begin  # it is empty: what is left at its end does not count
                self.waits = True
                self._room.wait_for(lambda: begin + size - self._begin <= self.budget)
                self.waits = False
            else:
                begin = self._end
            self._end = begin + size
        place = begin % self.budget if self.budget else begin
        view = memoryview(content)
        while view:
            written = os.pwrite(self._descriptor, view, place)
            view, place = view[written:], place + written
        return place - size, self._end

    def file(self, name: str, place: int, size: int) -> File:
        """What was put at a place, or a part of it, as a file."""
        return File(name, size, partial(_open, self._descriptor, place, size))

    def free(self, mark: int) -> None:
        """Nothing before the mark is needed any more."""
        with self._room:
            self._begin = max(self._begin, mark)
            self._room.notify()

    @property
    def held(self) -> int:
        """Bytes that it holds now."""
        return self._end - self._begin


def _open(descriptor: int, offset: int, size: int) -> BinaryIO:
    return io.BytesIO(os.pread(descriptor, size, offset))
