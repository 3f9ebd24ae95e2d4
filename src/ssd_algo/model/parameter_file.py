"""MXNet's file of named arrays, read and written from the format.

`mx.nd.load` takes as much memory as a file says that it needs; of a damaged one that may be more than the machine has,
and the system ends the process. Here every length is compared with the file's first. `mx.nd.save` waits for all that
MXNet has been asked to do before, as the steps of a training, and does not tell a full disk from other errors.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

_FILE, _ARRAY = 0x112, 0xF993FAC9  # magic numbers; the array's is what MXNet writes since 1.0
_DENSE, _FLOAT32, _CPU = 0, 0, 1
_MOST_AXES = 8


def read(path: Path) -> dict[str, NDArray[np.float32]]:
    """All arrays of a file by name, as `mx.nd.save` wrote them.

    Raises
    ------
    ValueError
        When the file is damaged, or holds anything but dense float32 arrays with names.
    """
    with path.open("rb") as file:
        return _Reader(file, path.stat().st_size).arrays()


def write(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write arrays by name, as `mx.nd.save` does: the same bytes."""
    with path.open("wb") as file:
        file.write(struct.pack("<QQQ", _FILE, 0, len(arrays)))
        for array in arrays.values():
            file.write(struct.pack(f"<IiI{array.ndim}q", _ARRAY, _DENSE, array.ndim, *array.shape))
            file.write(struct.pack("<iii", _CPU, 0, _FLOAT32))
            file.write(np.ascontiguousarray(array, dtype="<f4").data)
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            file.write(struct.pack("<Q", len(name.encode())) + name.encode())


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._left = file, size

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        magic, _, count = self._numbers("<QQQ")
        if magic != _FILE:
            raise ValueError("it is no file of arrays")
        arrays = [self._array() for _ in range(count)]
        (names,) = self._numbers("<Q")
        if names != count:
            raise ValueError(f"it has {count} arrays and {names} names")
        named = {self._name(): array for array in arrays}
        if self._left or len(named) != count:
            raise ValueError("it goes on behind its end, or has a name twice")
        return named

    def _array(self) -> NDArray[np.float32]:
        magic, storage, axes = self._numbers("<IiI")
        if (magic, storage) != (_ARRAY, _DENSE) or not 0 < axes <= _MOST_AXES:
            raise ValueError("an array is not dense, or of an unknown format")
        *shape, _device, _number, kind = self._numbers(f"<{axes}qiii")
        if kind != _FLOAT32 or min(shape) < 1:
            raise ValueError("an array is not of float32, or empty")
        count = math.prod(shape)
        self._take(4 * count)
        return np.fromfile(self._file, dtype="<f4", count=count).reshape(shape)

    def _name(self) -> str:
        (length,) = self._numbers("<Q")
        self._take(length)
        return self._file.read(length).decode()

    def _numbers(self, layout: str) -> tuple[int, ...]:
        size = struct.calcsize(layout)
        self._take(size)
        return struct.unpack(layout, self._file.read(size))

    def _take(self, size: int) -> None:
        """Go on only if the file still has so many bytes."""
        self._left -= size
        if self._left < 0:
            raise ValueError("it ends early")
