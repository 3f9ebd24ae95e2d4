"""RecordIO files with packed detection labels, read and written from the format (dmlc-core recordio, MXNet im2rec).

A record is `magic, flag and length, payload, padding to 4 bytes`. A payload that holds the magic number itself is split
there into several records, flagged first, middle and last. The payload is a header (`flag, label, id, id2`), `flag`
label values in float32, and the encoded image. The label is `A, B, extras (A - 2), objects of B values each`; an object
is `class, xmin, ymin, xmax, ymax, [difficult]`, corners as fractions of the image.
"""

import io
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.boxes import Boxes

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_WHOLE_OR_FIRST, _MIDDLE_OR_LAST = (_WHOLE, _FIRST), (_MIDDLE, _LAST)
_LENGTH_BITS = 29
_HEADER = struct.Struct("<IfQQ")


@dataclass(frozen=True)
class LabelledImage:
    """What a record holds, not checked.

    Attributes
    ----------
    boxes : float32 (R, 4), fractions as they should be
    classes : float32 (R,)
    difficult : bool (R,)
    label_width : int
        Numbers in its label, header included.
    image : bytes, encoded
    """

    boxes: Boxes
    classes: NDArray[np.float32]
    difficult: NDArray[np.bool_]
    label_width: int
    image: bytes


class BrokenRecord(ValueError):
    """A record of a file cannot be read."""

    def __init__(self, number: int, offset: int, text: str) -> None:
        super().__init__(text)
        self.number, self.offset = number, offset


class BadLabel(ValueError):
    """A record's label breaks a rule."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(text)
        self.rule = rule


def read_records(file: BinaryIO, size: int) -> Iterator[tuple[int, bytes]]:
    """Offset and payload of each record of a file of `size` bytes, which is read from one end to the other.

    Raises
    ------
    BrokenRecord
        Saying which record cannot be read, and why. What follows it cannot be found.
    """
    number = 0
    while file.tell() < size:
        offset = file.tell()
        try:
            payload = read_record(file, size)
        except ValueError as error:
            raise BrokenRecord(number, offset, str(error)) from error
        yield offset, payload
        number += 1


def read_stream(stream: "io.BufferedReader[Any]") -> Iterator[tuple[int, bytes]]:
    """Offset and payload of each record of a stream, until it ends.

    Raises
    ------
    BrokenRecord
        As `read_records` does.
    """
    forward, number = _Forward(stream), 0
    while True:
        offset = forward.tell()
        try:
            if not forward.more():
                return
            payload = read_record(cast("BinaryIO", forward), sys.maxsize)
        except ValueError as error:
            raise BrokenRecord(number, offset, str(error)) from error
        yield offset, payload
        number += 1


class _Forward:
    """A stream as far as reading a record needs of a file."""

    def __init__(self, stream: "io.BufferedReader[Any]") -> None:
        self._stream, self._at = stream, 0

    def more(self) -> bool:
        return bool(self._stream.peek(1))

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        found = self._stream.read(count)
        self._at += len(found)
        if len(found) < count:
            raise ValueError(f"is cut off: the stream ends at byte {self._at}, within it")
        return found

    def seek(self, count: int, _: int) -> None:
        self.read(count)


def read_record(file: BinaryIO, size: int) -> bytes:
    """The payload of the record that starts at the position of a file of `size` bytes.

    Raises
    ------
    ValueError
        Saying what is wrong with the record.
    """
    parts: list[bytes] = []
    while True:
        flag, length = _read_head(file, size, _WHOLE_OR_FIRST if not parts else _MIDDLE_OR_LAST)
        parts.append(file.read(length))
        file.seek(-length % 4, io.SEEK_CUR)
        if flag in (_WHOLE, _LAST):
            return MAGIC_BYTES.join(parts)


def _read_head(file: BinaryIO, size: int, flags: tuple[int, int]) -> tuple[int, int]:
    """Continuation flag and length of what stands at the file's position, which is moved behind its 8 bytes."""
    head = file.read(8)
    if len(head) < 8:
        raise ValueError("is cut off: the file ends within its header")
    magic, flag_and_length = struct.unpack("<II", head)
    if magic != MAGIC:
        raise ValueError(f"does not start with the RecordIO magic number 0x{MAGIC:x}")
    flag, length = flag_and_length >> _LENGTH_BITS, flag_and_length & ((1 << _LENGTH_BITS) - 1)
    if flag not in flags:
        raise ValueError(f"has the continuation flag {flag} where none of that kind may be")
    left = size - file.tell()
    if length > left:
        raise ValueError(f"is cut off: {length} bytes announced, {left} there")
    return flag, length


def unpack(payload: bytes) -> LabelledImage:
    """A record's payload to labels and image.

    Raises
    ------
    BadLabel
        Naming the rule that its label breaks.
    """
    if len(payload) < _HEADER.size:
        raise BadLabel("record too short", f"it has {len(payload)} bytes, fewer than a header's {_HEADER.size}")
    count, _, _, _ = _HEADER.unpack_from(payload)
    if count == 0:
        raise BadLabel(
            "label without boxes",
            "it holds one class and no box, as records for image classification do; write the file with "
            "im2rec --pack-label from a list with boxes",
        )
    image_start = _HEADER.size + 4 * count
    if count < 2 or image_start > len(payload):
        raise BadLabel(
            "label that does not fit",
            f"its header announces {count} label values in a record of {len(payload)} bytes; at least 2 and their room "
            "are needed",
        )
    label = np.frombuffer(payload, dtype="<f4", count=count, offset=_HEADER.size)
    widths = label[:2] if np.isfinite(label[:2]).all() and (abs(label[:2]) <= count + 5).all() else np.zeros(2)
    header_width, object_width = int(widths[0]), int(widths[1])
    if header_width < 2 or object_width < 5 or count < header_width or (count - header_width) % object_width:
        raise BadLabel(
            "label that does not fit",
            f"{count} label values do not make a header of {label[0]:g} (at least 2) and objects of {label[1]:g} (at "
            "least 5: class, xmin, ymin, xmax, ymax)",
        )
    objects = label[header_width:].reshape(-1, object_width)
    return LabelledImage(
        boxes=objects[:, 1:5],
        classes=objects[:, 0],
        difficult=objects[:, 5] > 0 if object_width > 5 else np.zeros(len(objects), dtype=bool),
        label_width=count,
        image=payload[image_start:],
    )


def image_of(payload: bytes) -> bytes:
    """The encoded image of a record's payload, whatever its label; of one without, or too short for it, nothing."""
    if len(payload) < _HEADER.size:
        return b""
    return payload[_HEADER.size + 4 * _HEADER.unpack_from(payload)[0] :]


def pack(number: int, boxes: Boxes, classes: NDArray[np.int64], difficult: NDArray[np.bool_], image: bytes) -> bytes:
    """Objects (boxes as fractions) and an encoded image to a record's payload; `number` becomes its id.

    Objects are 5 values wide, or 6 where one is difficult.
    """
    columns: list[NDArray[Any]] = [classes[:, None], boxes]
    columns += [difficult[:, None]] if difficult.any() else []
    table = np.concatenate(columns, axis=1, dtype="<f4", casting="unsafe")
    label = np.concatenate([np.asarray([2, table.shape[1]], dtype="<f4"), table.reshape(-1)])
    return _HEADER.pack(len(label), 0.0, number, 0) + label.tobytes() + image


def write_record(file: BinaryIO, payload: bytes) -> None:
    """Write a record at the file's position."""
    parts = _split_at_magic(payload)
    for index, part in enumerate(parts):
        if len(parts) == 1:
            flag = _WHOLE
        elif index == 0:
            flag = _FIRST
        else:
            flag = _LAST if index == len(parts) - 1 else _MIDDLE
        file.write(struct.pack("<II", MAGIC, flag << _LENGTH_BITS | len(part)) + part + bytes(-len(part) % 4))


def _split_at_magic(payload: bytes) -> list[bytes]:
    """Cut at every magic number that stands at a multiple of 4 bytes, where a reader would take it for a record."""
    parts, start, found = [], 0, payload.find(MAGIC_BYTES)
    while found >= 0:
        if found % 4:
            found = payload.find(MAGIC_BYTES, found + 1)
            continue
        parts.append(payload[start:found])
        start = found + 4
        found = payload.find(MAGIC_BYTES, start)
    return [*parts, payload[start:]]
