"""Many samples in little memory: a column for each of their parts, a `Sample` made when it is asked for."""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.files import File
from ssd_algo.data.samples import Sample

_MOST = 65535  # pixels of a side that a column holds; larger ones count as not known


class SampleTable(Sequence[Sample]):
    """The samples of a channel.

    Beside labels and paths a sample takes 12 bytes (16 in a RecordIO file of more than 16 GB), and 16 more for its
    fingerprint until `settle`. So a million samples are no burden to processes that share the table.

    Parameters
    ----------
    prefix : str
        What the names of all samples begin with: channel and `/`.
    file : callable
        The file of an image by its name without the prefix; of no use for records, see `begin`.
    """

    def __init__(self, prefix: str, file: Callable[[str], File]) -> None:
        self._prefix, self._file = prefix, file
        self._record_files: list[File] = []
        self._file_starts: list[int] = []  # how many samples stand before each RecordIO file's first
        self._file_starts_left_out: list[int] = []  # and how many of `_left_out`
        self._names = bytearray()
        self._name_ends, self._object_ends = array("I"), array("I")
        self._offsets = array("I")  # of 4 bytes: records begin there
        self._sides = array("H")
        self._boxes, self._classes, self._difficult = array("f"), array("i"), bytearray()
        self._fingerprints = bytearray()
        self._left_out: list[int] = []  # how many samples stood before each record that is left out

    def begin(self, file: File) -> None:
        """What is added from now on are records of this RecordIO file."""
        if file.size >= 1 << 34 and self._offsets.typecode == "I":
            self._offsets = array("Q", self._offsets)
        self._record_files.append(file)
        self._file_starts.append(len(self))
        self._file_starts_left_out.append(len(self._left_out))

    def append(self, sample: Sample) -> None:
        """Add a sample; its name must begin with the prefix."""
        if sample.offset < 0:
            self._names += sample.name[len(self._prefix) :].encode("utf-8", "surrogateescape")
            self._name_ends.append(len(self._names))
        else:
            self._offsets.append(sample.offset // 4)
        known = sample.size and max(sample.size) <= _MOST
        self._sides.extend(sample.size if known and sample.size else (0, 0))
        self._boxes.frombytes(np.ascontiguousarray(sample.boxes, dtype=np.float32).tobytes())
        self._classes.frombytes(sample.classes.astype(np.int32).tobytes())
        self._difficult += sample.difficult.tobytes()
        self._object_ends.append(len(self._classes))
        self._fingerprints += sample.fingerprint.ljust(16, b"\0")

    def leave_out(self) -> None:
        """Count a record of a RecordIO file that is no sample, so that those behind it keep their numbers."""
        self._left_out.append(len(self))

    def settle(self) -> None:
        """Nothing will be added, and fingerprints are compared: give back what memory is not needed."""
        self._fingerprints = bytearray()
        self._names, self._difficult = bytearray(bytes(self._names)), bytearray(bytes(self._difficult))
        for name in ("_name_ends", "_offsets", "_object_ends", "_sides", "_boxes", "_classes"):
            setattr(self, name, getattr(self, name)[:])  # a slice is given just what it holds

    def sorted(self) -> "SampleTable":
        """The same samples in the order of their names."""
        names = [self[index].name for index in range(len(self))]
        if names == sorted(names):
            return self
        table = SampleTable(self._prefix, self._file)
        for index in sorted(range(len(self)), key=names.__getitem__):
            table.append(self[index])
        return table

    def __len__(self) -> int:
        return len(self._object_ends)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = (self._object_ends[index - 1] if index else 0), self._object_ends[index]
        width, height = self._sides[2 * index], self._sides[2 * index + 1]
        name, file, offset = self._place(index)
        return Sample(
            name=name,
            file=file,
            offset=offset,
            boxes=np.asarray(self._boxes[4 * start : 4 * end], dtype=np.float32).reshape(-1, 4),
            classes=np.asarray(self._classes[start:end], dtype=np.int64),
            difficult=np.frombuffer(bytes(self._difficult[start:end]), dtype=np.bool_),
            size=(width, height) if width else None,
            fingerprint=bytes(self._fingerprints[16 * index : 16 * index + 16]).rstrip(b"\0"),
        )

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def object_counts(self) -> NDArray[np.int64]:
        """Objects of each sample, (N,)."""
        return np.diff(np.asarray(self._object_ends, dtype=np.int64), prepend=0)

    def _place(self, index: int) -> tuple[str, File, int]:
        """Name, file and offset of a sample."""
        if self._record_files:
            which = bisect_right(self._file_starts, index) - 1
            file, offset = self._record_files[which], 4 * self._offsets[index]
            first, end = [*self._file_starts_left_out, len(self._left_out)][which : which + 2]
            left_out = bisect_right(self._left_out, index, first, end) - first
            number = index - self._file_starts[which] + left_out
            return f"{self._prefix}{file.name}, record {number} at byte {offset}", file, offset
        begin, end = (self._name_ends[index - 1] if index else 0), self._name_ends[index]
        name = self._names[begin:end].decode("utf-8", "surrogateescape")
        return self._prefix + name, self._file(name), -1
