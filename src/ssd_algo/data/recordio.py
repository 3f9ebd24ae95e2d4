"""RecordIO files with packed detection labels, read and written from the format (dmlc-core recordio, MXNet im2rec).

A record is `magic, flag and length, payload, padding to 4 bytes`. A payload that holds the magic number itself is split
there into several records, flagged first, middle and last. The payload is a header (`flag, label, id, id2`), `flag`
label values in float32, and the encoded image. The label is `A, B, extras (A - 2), objects of B values each`; an object
is `class, xmin, ymin, xmax, ymax, [difficult]`, corners as fractions of the image.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.boxes import Boxes
from ssd_algo.errors import UserError

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_WHOLE, _FIRST, _MIDDLE, _LAST = range(4)
_LENGTH_BITS = 29
_HEADER = struct.Struct("<IfQQ")


@dataclass(frozen=True)
class LabelledImage:
    """What a record holds: boxes float32 (R, 4) as fractions, classes int64 (R,), difficult bool (R,)."""

    boxes: Boxes
    classes: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    image: bytes


def read_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and payload of each record of a file.

    Raises
    ------
    UserError
        Naming the record and its offset where the file is not RecordIO or ends within a record.
    """
    with path.open("rb") as file:
        number = 0
        while file.peek(1):
            offset = file.tell()
            try:
                payload = read_record(file)
            except ValueError as error:
                raise UserError(
                    f"{path.name}: record {number} at byte {offset} {error}; write the file again with im2rec."
                ) from error
            yield offset, payload
            number += 1


def read_record(file: IO[bytes]) -> bytes:
    """The payload of the record that starts at the file's position.

    Raises
    ------
    ValueError
        Saying what is wrong with the record.
    """
    parts: list[bytes] = []
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise ValueError("is cut off: the file ends within its header")
        magic, flag_and_length = struct.unpack("<II", head)
        if magic != MAGIC:
            raise ValueError(f"does not start with the RecordIO magic number 0x{MAGIC:x}")
        flag, length = flag_and_length >> _LENGTH_BITS, flag_and_length & ((1 << _LENGTH_BITS) - 1)
        if flag not in ((_WHOLE, _FIRST) if not parts else (_MIDDLE, _LAST)):
            raise ValueError(f"has the continuation flag {flag} where none of that kind may be")
        data = file.read(length)
        if len(data) < length:
            raise ValueError(f"is cut off: {length} bytes announced, {len(data)} there")
        file.read(-length % 4)
        parts.append(data)
        if flag in (_WHOLE, _LAST):
            return _MAGIC_BYTES.join(parts)


def unpack(payload: bytes, name: str) -> LabelledImage:
    """A record's payload to labels and image.

    Raises
    ------
    UserError
        Naming the record (`name`) and the rule its label breaks.
    """
    if len(payload) < _HEADER.size:
        raise UserError(f"{name} has {len(payload)} bytes, fewer than a header's {_HEADER.size}; write it with im2rec.")
    count, _, _, _ = _HEADER.unpack_from(payload)
    image_start = _HEADER.size + 4 * count
    if count < 2 or image_start > len(payload):
        raise UserError(
            f"{name} holds no packed detection label ({count} label values in {len(payload)} bytes); "
            "write the file with im2rec --pack-label."
        )
    label = np.frombuffer(payload, dtype="<f4", count=count, offset=_HEADER.size)
    header_width, object_width = label[:2].astype(np.int64) if np.isfinite(label[:2]).all() else (0, 0)
    if header_width < 2 or object_width < 5 or (count - header_width) % object_width or count < header_width:
        raise UserError(
            f"{name}: {count} label values do not make a header of {label[0]:g} (at least 2) and objects of "
            f"{label[1]:g} (at least 5: class, xmin, ymin, xmax, ymax); pack the label as im2rec documents."
        )
    objects = label[header_width:].reshape(-1, object_width)
    if not np.isfinite(objects).all():
        raise UserError(f"{name}: a label value is not a finite number; correct the label and pack the file again.")
    return LabelledImage(
        boxes=objects[:, 1:5].astype(np.float32),
        classes=objects[:, 0].astype(np.int64),
        difficult=objects[:, 5] > 0 if object_width > 5 else np.zeros(len(objects), dtype=bool),
        image=payload[image_start:],
    )


def pack(number: int, boxes: Boxes, classes: NDArray[np.int64], image: bytes) -> bytes:
    """Labels (boxes as fractions) and an encoded image to a record's payload; `number` becomes its id."""
    objects = np.concatenate([classes[:, None].astype("<f4"), boxes.astype("<f4")], axis=1)
    label = np.concatenate([np.asarray([2, 5], dtype="<f4"), objects.reshape(-1)])
    return _HEADER.pack(len(label), 0.0, number, 0) + label.tobytes() + image


def write_records(path: Path, payloads: Iterator[bytes]) -> None:
    """Write payloads as a RecordIO file."""
    with path.open("wb") as file:
        for payload in payloads:
            _write_record(file, payload)


def _write_record(file: IO[bytes], payload: bytes) -> None:
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
    parts, start, found = [], 0, payload.find(_MAGIC_BYTES)
    while found >= 0:
        if found % 4:
            found = payload.find(_MAGIC_BYTES, found + 1)
            continue
        parts.append(payload[start:found])
        start = found + 4
        found = payload.find(_MAGIC_BYTES, start)
    return [*parts, payload[start:]]
