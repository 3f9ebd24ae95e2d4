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
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import recordio
from ssd_algo.data.labels import Rules
from ssd_algo.data.samples import Sample
from ssd_algo.data.spool import Spool
from ssd_algo.data.streamed import IMAGES, StreamedPass
from ssd_algo.errors import UserError

logger = logging.getLogger(__name__)

_BUFFER = 1 << 20
_SAY_AGAIN = 60.0  # seconds
_BLOCK = 1000  # images that are handed over, and shuffled, together
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
    first, every : int
        Of a pass it takes every so-manieth image from the `first` on.

    Attributes
    ----------
    class_names : dict
        As far as labels have had them so far.
    opened : str
        The FIFO that is read now.
    """

    def __init__(self, channel: str, location: str, rules: Rules, spool: Spool, first: int = 0, every: int = 1) -> None:
        self._channel, self._location, self._rules, self._spool = channel, location, rules, spool
        self._first, self._every = first, every
        self._ready: queue.SimpleQueue[_Records | Exception | None] = queue.SimpleQueue()
        self.class_names: dict[int, str] = {}
        self.opened = ""
        self._taken = 0  # passes
        self._pass = self._new_pass()

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
        if self._taken == 0:  # those of the others are the same
            for sentence in self._pass.findings.short_warnings():
                logger.warning(sentence)
        self._taken += 1
        self._pass = self._new_pass()
        return None

    @property
    def waits_for_room(self) -> bool:
        """Whether the spool is full."""
        return self._spool.waits

    def done(self, block: Block) -> None:
        """A block's images are not needed any more."""
        self._spool.free(block.mark)

    def _new_pass(self) -> StreamedPass:
        name = f"{self._channel}_{self._taken}"
        return StreamedPass(self._channel, name, self._rules, self._spool, self.class_names)

    def _read(self, count: int) -> None:
        try:
            for number in range(count):
                self.opened = f"{self._channel}_{number}"
                with _open(f"{self._location}_{number}") as stream:
                    self._read_pass(stream)
                self._ready.put(None)
        except Exception as error:
            self._ready.put(error)

    def _read_pass(self, stream: "io.BufferedReader[Any]") -> None:
        """Put records into the spool, in blocks that end where an image does."""
        limit = self._spool.budget // 4 or None
        table: list[tuple[int, int, int, int]] = []
        number = images = kept = size = mark = 0
        where = ""
        pictures = False
        try:
            for number, (offset, payload) in enumerate(recordio.read_stream(stream)):
                where = f"{self.opened}, record {number} at byte {offset}"
                pictures = pictures or (number == 0 and payload.startswith(IMAGES))
                if not pictures or payload.startswith(IMAGES):
                    images += 1
                    if kept >= _BLOCK or (limit and size >= limit):
                        self._ready.put(_Records(np.asarray(table), mark))
                        table, kept, size = [], 0, 0
                    kept += (images - 1) % self._every == self._first
                if (images - 1) % self._every == self._first:
                    place, mark = self._spool.put(payload)
                    table.append((number, offset, place, len(payload)))
                    size += len(payload)
        except recordio.BrokenRecord as error:
            raise UserError(
                f"{self.opened}, record {error.number} at byte {error.offset}: it {error}; check what the channel "
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
        with io.BufferedReader(cast("io.RawIOBase", gzip.GzipFile(fileobj=stream)), _BUFFER) as unzipped:
            yield unzipped


def read_all(channel: str, location: str, rules: Rules) -> tuple[list[Sample], dict[int, str]]:
    """All samples of the first pass of a channel, kept on scratch disk, and the class names.

    Raises
    ------
    UserError
    """
    passes = Passes(channel, location, rules, Spool())
    passes.start(1)
    samples: list[Sample] = []
    waited = 0.0
    while True:
        try:
            block = passes.take(_SAY_AGAIN)
        except queue.Empty:
            waited += _SAY_AGAIN
            logger.info("Waiting for %s: nothing came for %.0f s.", passes.opened, waited)
            continue
        waited = 0.0
        if block is None:
            return samples, passes.class_names
        samples += block.samples
