"""Everything needed to go on as if nothing had happened, in files that are whole whenever they are looked at.

A checkpoint is one file in the format of safetensors: arrays by name, one of them the bytes of a JSON document, and in
its metadata a checksum. Random numbers need no state of their own: each draw comes from a generator that the seed, the
epoch and the sample's index make.

Files are numbered in the order in which they were written. A new one is written beside the two before it, then the
older of those is removed. They may be copied, or their names restored, at any moment.
"""

import errno
import json
import logging
import re
import struct
import tempfile
import time
import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from ssd_algo import whole_files
from ssd_algo.errors import UserError

logger = logging.getLogger(__name__)

FORMAT = 2  # of the document and the names of the arrays
_NAME = re.compile(r"checkpoint-(\d{8})\.safetensors")

_STATE = "state"  # the array with the document: a header of safetensors may have 100 MB at most
_TYPES = {"float32": "F32", "uint8": "U8"}

Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Checkpoint:
    """A training as it stands between two steps.

    Attributes
    ----------
    state : dict
        What JSON can hold.
    arrays : dict of float32 arrays by name
    """

    state: dict[str, Any]
    arrays: Arrays


def to_arrays(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """A checkpoint as arrays alone."""
    return {**checkpoint.arrays, _STATE: np.frombuffer(json.dumps(checkpoint.state).encode(), dtype=np.uint8)}


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    """A checkpoint from what `to_arrays` made."""
    others = {name: each for name, each in arrays.items() if name != _STATE}
    return Checkpoint(json.loads(arrays[_STATE].tobytes()), others)


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, whole or not at all.

    Raises
    ------
    UserError
        When the disk is full or not writable.
    """
    arrays = to_arrays(checkpoint)
    metadata = {"format": str(FORMAT), "checksum": _checksum(str(FORMAT), arrays)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole_files.replace(path, lambda temporary: _write(temporary, metadata, arrays))
    except OSError as error:
        kept = "what was saved before is kept"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = sum(each.nbytes for each in arrays.values())
            raise UserError(
                f"{path} cannot be written (the disk is full; {size} bytes are needed); {kept}. Use an instance with a "
                "larger volume."
            ) from error
        raise UserError(f"{path} cannot be written ({error}); {kept}. Check the folder and its permissions.") from error


def _write(path: Path, metadata: dict[str, str], arrays: Mapping[str, NDArray[Any]]) -> None:
    """The format of safetensors: the header's length in 8 bytes, the header, the arrays one behind the other.

    Its own writer leaves files of random names behind when it is killed.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _TYPES[array.dtype.name], "shape": array.shape, "data_offsets": (begin, end)}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    ValueError
        When it is damaged.
    UserError
        When another version wrote it.
    """
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(str(error)) from error
    if not {"format", "checksum"} <= metadata.keys() or _STATE not in arrays:
        raise ValueError("it is no checkpoint")
    if metadata["checksum"] != _checksum(metadata["format"], arrays):
        raise ValueError("its checksum is another one")
    if metadata["format"] != str(FORMAT):
        raise UserError(
            f"{path} has format {metadata['format']}, but this version of ssd-algo reads {FORMAT}; use the version "
            "that wrote it, or an empty folder for checkpoints."
        )
    return from_arrays(arrays)


def _checksum(version: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    value = zlib.crc32(version.encode())
    for name, array in sorted(arrays.items()):
        value = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), value)
        value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return f"{value:08x}"


def numbered(directory: Path) -> list[Path]:
    """The checkpoints of a folder, newest first."""
    found = [path for path in directory.iterdir() if _NAME.fullmatch(path.name)] if directory.is_dir() else []
    return sorted(found, key=lambda path: path.name, reverse=True)


class Checkpoints:
    """The folder of a job's checkpoints; use as a context manager. Without a folder nothing is kept.

    A checkpoint is written by a thread while training goes on.

    Parameters
    ----------
    directory : Path or None
    minutes : float
        From one checkpoint to the next within an epoch.
    """

    def __init__(self, directory: Path | None, minutes: float) -> None:
        self._directory, self._seconds = directory, 60 * minutes
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._written: Future[None] | None = None
        self._kept: Path | None = None  # the newest one that is sound
        self._last = time.monotonic()

    def __enter__(self) -> "Checkpoints":
        """See that the folder can be written.

        Raises
        ------
        UserError
            When it cannot.
        """
        if self._directory is not None:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                whole_files.forget_unfinished(self._directory)
                with tempfile.TemporaryFile(dir=self._directory):
                    pass
            except OSError as error:
                raise UserError(
                    f"The folder for checkpoints cannot be written ({error}); check it and its permissions."
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown()

    @property
    def enabled(self) -> bool:
        """Whether there is a folder."""
        return self._directory is not None

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that is not damaged; a warning names each that is.

        Raises
        ------
        UserError
            When another version wrote it.
        """
        if self._directory is None:
            return None
        for path in numbered(self._directory):
            try:
                checkpoint = load(path)
            except ValueError as error:
                logger.warning("%s is damaged (%s); the checkpoint before it is used, if there is one.", path, error)
                continue
            self._kept = path
            logger.info('Loaded checkpoint from "%s".', path)
            return checkpoint
        logger.info("There is no checkpoint to go on from: training begins.")
        return None

    def due(self) -> bool:
        """Whether the last checkpoint is so old that there should be one within the epoch."""
        return self.enabled and time.monotonic() - self._last >= self._seconds

    def keep(self, checkpoint: Checkpoint) -> None:
        """Begin to write a checkpoint, whose arrays must not change any more.

        Raises
        ------
        UserError
            When the one before could not be written.
        """
        self.finish()
        self._last = time.monotonic()
        self._written = self._writer.submit(self._write, checkpoint)

    def finish(self) -> None:
        """Wait until what was kept is on the disk.

        Raises
        ------
        UserError
            When it could not be written.
        """
        if self._written is not None:
            self._written.result()

    def _write(self, checkpoint: Checkpoint) -> None:
        assert self._directory is not None
        for name, array in checkpoint.arrays.items():
            if not np.isfinite(array).all():
                logger.warning("No checkpoint is written: %s is not finite.", name)
                return
        before = numbered(self._directory)
        number = int(before[0].stem.removeprefix("checkpoint-")) + 1 if before else 0
        path = self._directory / f"checkpoint-{number:08d}.safetensors"
        save(path, checkpoint)
        for each in before:
            if each != self._kept:
                each.unlink(missing_ok=True)
        self._kept = path
