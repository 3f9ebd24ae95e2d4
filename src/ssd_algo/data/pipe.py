"""Channels in Pipe mode: a FIFO for each pass, read ahead into a spool, record by record.

The FIFOs of a channel are `CHANNEL_0`, `CHANNEL_1`, ... Through them come RecordIO records: the bytes of .rec files one
behind the other; or, of an augmented manifest, a record with an image and then one or more with JSON, the values of its
other attributes. Either may be compressed by gzip. What the records hold is looked at when they are taken (`streamed`):
until then a record costs 32 bytes of memory, so that small ones take no more of it than the spool takes of the disk.
"""

import contextlib
import gzip
import io
import logging
import os
import queue
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import recordio
from ssd_algo.data.labels import Dataset, Rules
from ssd_algo.data.samples import Sample
from ssd_algo.data.spool import Spool
from ssd_algo.data.streamed import IMAGES, StreamedPass
from ssd_algo.errors import UserError

logger = logging.getLogger(__name__)

_BUFFER = 1 << 20
_SAY_AGAIN = 60.0  # seconds
_BLOCK = 1000  # images that are handed over, and shuffled, together; fewer where they have more bytes than
_BLOCK_BYTES = 64 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Block:
    """Samples of a FIFO that follow each other, and up to where the spool is needed for them."""

    fifo: str
    samples: list[Sample]
    mark: int


@dataclass(frozen=True)
class _Records:
    """Records that follow each other: int64 (N, 4) number, offset in the stream, place in the spool and size."""

    table: NDArray[np.int64]
    mark: int


class Passes:
    """Reads the passes of a channel ahead, as far as the spool has room, in a thread of its own.

    Parameters
    ----------
    channel : str
    location : str
        What the paths of its FIFOs begin with.
    rules : Rules
    spool : Spool
    class_names : dict
        Those of the labels are added as they come.
    first, every : int
        Of a pass it takes every so-manieth image from the `first` on.
    """

    def __init__(
        self,
        channel: str,
        location: str,
        rules: Rules,
        spool: Spool,
        class_names: dict[int, str],
        first: int = 0,
        every: int = 1,
    ) -> None:
        self._channel, self._location, self._rules, self._spool = channel, location, rules, spool
        self._first, self._every = first, every
        self._ready: queue.SimpleQueue[_Records | Exception | None] = queue.SimpleQueue()
        self._class_names = class_names
        self._opening = self._unwanted = -1  # the pass whose FIFO is looked for; the last of which nothing is wanted
        self._opened = ""
        self._heard = time.monotonic()
        self._taken = 0  # passes
        self._pass = self._new_pass()
        self.unreadable = 0  # images of the last pass

    def start(self, count: int) -> None:
        """Begin to read so many passes."""
        threading.Thread(target=self._read, args=(count,), name=f"pipe {self._channel}", daemon=True).start()

    def take(self, seconds: float) -> Block | None:
        """The next block; None at the end of a pass.

        Raises
        ------
        queue.Empty
            When there is none for so long.
        UserError
            When the stream breaks a rule.
        """
        found = self._ready.get(timeout=seconds)
        if isinstance(found, Exception):
            raise found
        if found is not None:
            return Block(self._pass.name, self._pass.samples(found.table), found.mark)
        self._pass.finish()
        self._end_pass()
        return None

    def leave(self) -> bool:
        """Take nothing more of the pass, whose FIFO is closed; returns whether there was more.

        Raises
        ------
        UserError
            When the stream breaks a rule.
        """
        self._unwanted = self._taken
        more = False
        while True:
            try:
                found = self._ready.get(timeout=_SAY_AGAIN)
            except queue.Empty:
                logger.info(self.waiting())
                continue
            if isinstance(found, Exception):
                raise found
            if found is None:
                self._end_pass()
                return more
            more = True
            self._spool.free(found.mark)

    def waiting(self) -> str:
        """A line for the log of who waits."""
        name = f"{self._channel}_{max(self._opening, 0)}"
        if self._opened != name:
            return f"Waiting for {name}, which is not there yet."
        return f"Waiting for {name}: its last record came {time.monotonic() - self._heard:.0f} s ago."

    def _end_pass(self) -> None:
        for sentence in self._pass.findings.short_warnings():
            logger.warning(sentence)
        self._taken += 1
        self.unreadable = self._pass.unreadable
        self._pass = self._new_pass()

    @property
    def waits_for_room(self) -> bool:
        """Whether the spool is full."""
        return self._spool.waits

    def done(self, block: Block) -> None:
        """A block's images are not needed any more."""
        self._spool.free(block.mark)

    def _new_pass(self) -> StreamedPass:
        name = f"{self._channel}_{self._taken}"
        return StreamedPass(self._channel, name, self._rules, self._spool, self._class_names, warns=self._taken == 0)

    def _read(self, count: int) -> None:
        try:
            for number in range(count):
                self._opening = number
                with _open(f"{self._location}_{number}") as stream:
                    self._opened, self._heard = f"{self._channel}_{number}", time.monotonic()
                    self._read_pass(stream)
                self._ready.put(None)
        except Exception as error:
            self._ready.put(error)

    def _read_pass(self, stream: "io.BufferedReader[Any]") -> None:
        """Put records into the spool, in blocks that end where an image does."""
        limit = min(_BLOCK_BYTES, self._spool.budget // 4 or _BLOCK_BYTES)
        table: list[tuple[int, int, int, int]] = []
        number = images = kept = size = mark = 0
        where = ""
        pictures = False
        try:
            for number, (offset, payload) in enumerate(recordio.read_stream(stream)):
                if self._unwanted >= self._opening:
                    return
                self._heard = time.monotonic()
                where = f"{self._opened}, record {number} at byte {offset}"
                pictures = pictures or (number == 0 and payload.startswith(IMAGES))
                if not pictures or payload.startswith(IMAGES):
                    images += 1
                    if kept >= _BLOCK or size >= limit:
                        self._ready.put(_Records(np.asarray(table), mark))
                        table, kept, size = [], 0, 0
                    kept += (images - 1) % self._every == self._first
                if (images - 1) % self._every == self._first:
                    place, mark = self._spool.put(payload)
                    table.append((number, offset, place, len(payload)))
                    size += len(payload)
        except recordio.BrokenRecord as error:
            raise UserError(
                f"{self._opened}, record {error.number} at byte {error.offset}: it {error}; check what the channel "
                "streams, and that RecordWrapperType is RecordIO for a manifest, and none for .rec files."
            ) from error
        except ValueError as error:
            raise UserError(f"{where}: {error}; raise spool_mb.") from error
        finally:
            if table:
                self._ready.put(_Records(np.asarray(table), mark))


@contextlib.contextmanager
def _open(path: str) -> Iterator["io.BufferedReader[Any]"]:
    """What comes through a FIFO, which may not be there yet."""
    while not os.path.exists(path):
        time.sleep(0.05)
    with io.BufferedReader(io.FileIO(path), _BUFFER) as stream:
        if stream.peek(2)[:2] != _GZIP:
            yield stream
            return
        with io.BufferedReader(_Unzipped(stream), _BUFFER) as unzipped:
            yield unzipped


class _Unzipped(io.RawIOBase):
    """A stream that is unpacked as it comes, with sentences of our own where it is damaged."""

    def __init__(self, stream: "io.BufferedReader[Any]") -> None:
        self._file = gzip.GzipFile(fileobj=stream)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            found = self._file.read1(len(buffer))
        except EOFError as error:
            raise ValueError("is cut off: the compressed stream ends within it") from error
        except (OSError, zlib.error) as error:
            raise ValueError(f"cannot be unpacked: the compressed stream is damaged ({error})") from error
        buffer[: len(found)] = found
        return len(found)


def read_all(channel: str, location: str, rules: Rules) -> Dataset:
    """The first pass of a channel, kept on scratch disk.

    Raises
    ------
    UserError
        At the first fault.
    """
    names: dict[int, str] = {}
    passes = Passes(channel, location, rules, Spool(), names)
    passes.start(1)
    samples: list[Sample] = []
    while True:
        try:
            block = passes.take(_SAY_AGAIN)
        except queue.Empty:
            logger.info(passes.waiting())
            continue
        if block is None:
            return Dataset(samples, names, passes.unreadable)
        samples += block.samples
