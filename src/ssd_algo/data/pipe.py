"""Channels in Pipe mode: a FIFO for each pass, of RecordIO records, to samples.

The FIFOs of a channel are `CHANNEL_0`, `CHANNEL_1`, ... Through them come the bytes of .rec files one behind the other;
or, of an augmented manifest, a record with an image and then one or more with JSON, the values of its other attributes.
Either may be compressed by gzip.
"""

import contextlib
import gzip
import io
import itertools
import json
import logging
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from ssd_algo.data import images, recordio
from ssd_algo.data.annotations import Read, read_labels
from ssd_algo.data.files import File
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Rules, check_label_width
from ssd_algo.data.manifest import categories
from ssd_algo.data.records import objects_of
from ssd_algo.data.samples import Sample
from ssd_algo.data.spool import Spool
from ssd_algo.errors import UserError

logger = logging.getLogger(__name__)

_BUFFER = 1 << 20
_SAY_AGAIN = 60.0  # seconds
_BLOCK = 1000  # samples that are handed over, and shuffled, together
_GZIP = b"\x1f\x8b"
_IMAGES = (b"\xff\xd8", b"\x89PNG", b"BM", b"RIFF", b"II*\0", b"MM\0*")  # what they begin with
_WITHOUT_LABEL = 100  # images without a label after which there is none at all


@dataclass(frozen=True)
class Block:
    """Samples of a FIFO that follow each other, and up to where the spool is needed for them."""

    fifo: str
    samples: list[Sample]
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
        Of a pass it takes every so-manieth sample from the `first` on.

    Attributes
    ----------
    class_names : dict
        As far as labels have had them so far.
    """

    def __init__(self, channel: str, location: str, rules: Rules, spool: Spool, first: int = 0, every: int = 1) -> None:
        self._channel, self._location, self._rules, self._spool = channel, location, rules, spool
        self._first, self._every = first, every
        self._ready: queue.SimpleQueue[Block | Exception | None] = queue.SimpleQueue()
        self.class_names: dict[int, str] = {}
        self.opened = ""  # the FIFO that is read now

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
        return found

    @property
    def waits_for_room(self) -> bool:
        """Whether the spool is full."""
        return self._spool.waits

    def done(self, block: Block) -> None:
        """A block's images are not needed any more."""
        self._spool.free(block.mark)

    def _read(self, count: int) -> None:
        try:
            for number in range(count):
                self._read_pass(number)
                self._ready.put(None)
        except Exception as error:
            self._ready.put(error)

    def _read_pass(self, number: int) -> None:
        path = f"{self._location}_{number}"
        self.opened = path.rsplit("/", 1)[-1]
        limit = self._spool.budget // 4 or None
        block: list[Sample] = []
        size = seen = 0
        with _open(path) as stream:
            reader = _Pass(self._channel, self.opened, self._rules, self._spool, self.class_names)
            for sample in reader.read(stream):
                if seen % self._every == self._first:
                    block.append(sample)
                    size += sample.file.size
                seen += 1
                if len(block) >= _BLOCK or (limit and size >= limit):
                    self._ready.put(Block(self.opened, block, reader.mark))
                    block, size = [], 0
        if not seen:
            raise UserError(
                f"channel {self._channel}: {self.opened} ended without a sample; check what the channel streams."
            )
        if block:
            self._ready.put(Block(self.opened, block, reader.mark))


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


@dataclass
class _Pass:
    """Reads one pass; `mark` is up to where it has filled the spool."""

    channel: str
    name: str
    rules: Rules
    spool: Spool
    class_names: dict[int, str]
    mark: int = 0
    findings: Findings = field(default_factory=Findings)
    bad: int = 0
    images: int = 0
    without_label: int = 0
    widest: int = 0
    most: int = 0

    def read(self, stream: "io.BufferedReader[Any]") -> Iterator[Sample]:
        """The samples of the stream.

        Raises
        ------
        UserError
            At the first fault.
        """
        records = self._records(stream)
        first = next(records, None)
        if first is None:
            return
        records = itertools.chain([first], records)
        kind = _kind(first[1])
        if kind == "JSON":
            raise UserError(
                f"{first[0]}: it holds JSON where an image should be; AttributeNames must have source-ref first, then "
                "the label."
            )
        for read in self._of_manifest(records) if kind == "image" else map(self._of_record, records):
            self._judge(read)
            if read.sample is not None:
                yield read.sample
        most = self.most if kind == "image" else (self.widest - 2) // 5
        check_label_width(self.widest, most, self.channel, self.rules, self.findings)
        if self.without_label:
            self.findings.warn(
                "image without a label",
                self.name,
                f"{self.without_label} of {self.images} images have no label, as labelling failed or was not done; "
                "they are skipped.",
            )

    def _records(self, stream: "io.BufferedReader[Any]") -> Iterator[tuple[str, bytes]]:
        """What to call each record, and its payload."""
        number = 0
        try:
            for number, (offset, payload) in enumerate(recordio.read_stream(stream)):
                yield f"{self.name}, record {number} at byte {offset}", payload
        except recordio.BrokenRecord as error:
            raise UserError(
                f"{self.name}, record {error.number} at byte {error.offset}: it {error}; check what the channel "
                "streams, and that RecordWrapperType is RecordIO for a manifest, and none for .rec files."
            ) from error

    def _judge(self, read: Read) -> None:
        """Keep count of what an image is, and refuse the stream at its first fault."""
        self.images += 1
        self.findings.extend(read.findings)
        for where, reason in read.bad:
            self.bad += 1
            if self.bad > self.rules.max_bad_records:
                self.findings.refuse("unreadable image", where, f"{reason}; replace or remove the image.")
            else:
                self.findings.warn("unreadable image", where, f"{reason}; the image is skipped.")
        self.findings.raise_faults()

    def _of_record(self, record: tuple[str, bytes]) -> Read:
        where, payload = record
        read = Read(where)
        try:
            labelled = recordio.unpack(payload)
        except recordio.BadLabel as error:
            read.findings.refuse(error.rule, where, f"{error}; correct the label and pack the file again.")
            return read
        self.widest = max(self.widest, labelled.label_width)
        objects = objects_of(labelled, where, self.rules, read.findings)
        size, fingerprint = None, b""
        if self.rules.headers:
            try:
                header = images.read_header(io.BytesIO(labelled.image), len(labelled.image))
            except images.NotAnImage as error:
                read.bad.append((where, str(error)))
                return read
            size, fingerprint = (header.width, header.height), header.fingerprint
        file = self._keep(where, labelled.image)
        read.sample = Sample(where, file, -1, objects.boxes, objects.classes, objects.difficult, size, fingerprint)
        return read

    def _of_manifest(self, records: Iterator[tuple[str, bytes]]) -> Iterator[Read]:
        where, image, documents = "", b"", list[Any]()
        for at, payload in records:
            if _kind(payload) == "image":
                if image:
                    yield self._of_image(where, image, documents)
                where, image, documents = at, payload, []
            elif payload.strip():
                documents.append(_parsed(at, payload))
        yield self._of_image(where, image, documents)

    def _of_image(self, where: str, image: bytes, documents: list[Any]) -> Read:
        """An image and what else its line of the manifest has."""
        read = Read(where)
        labels = [each for each in documents if isinstance(each, dict) and "annotations" in each]
        if len(labels) > 1:
            read.findings.refuse(
                "several labels",
                where,
                f"{len(labels)} labels follow the image; AttributeNames must have source-ref and one label.",
            )
        if not labels:
            self.without_label += 1
            if self.without_label >= _WITHOUT_LABEL and self.without_label > self.images:
                read.findings.refuse(
                    "manifest without labels",
                    where,
                    f"none of the first {self.without_label} images has a label; AttributeNames must have source-ref, "
                    'then the label, an object with "image_size" and "annotations".',
                )
            return read
        named = [name for each in documents for name in categories(each)]
        document = labels[0] | {"categories": named}
        read_labels(document, where, self._keep(where, image), self.rules, read)
        for identity, name in read.class_names.items():
            if self.class_names.setdefault(identity, name) != name:
                read.findings.refuse(
                    "conflicting categories",
                    where,
                    f'its class-map calls class {identity} "{name}", but others call it '
                    f'"{self.class_names[identity]}"; use one name.',
                )
        if read.sample is not None:
            self.most = max(self.most, len(read.sample.classes))
            self.widest = max(self.widest, 2 + 5 * self.most)
        return read

    def _keep(self, where: str, image: bytes) -> File:
        try:
            file, self.mark = self.spool.put(where, image)
        except ValueError as error:
            raise UserError(f"{where}: {error}; raise spool_mb.") from error
        return file


def _kind(payload: bytes) -> str:
    """What a record holds: `image`, `JSON`, or a `record` of a .rec file, which begins with a small number."""
    if payload.startswith(_IMAGES):
        return "image"
    return "JSON" if payload.lstrip()[:1] in (b"{", b"[") else "record"


def _parsed(where: str, payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: it is neither an image nor JSON ({error}); AttributeNames must have source-ref and the label."
        ) from error
