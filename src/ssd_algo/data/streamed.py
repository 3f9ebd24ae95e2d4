"""Records that came through a pipe, to samples."""

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import images, recordio
from ssd_algo.data.annotations import Read, read_labels
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Rules, check_label_width
from ssd_algo.data.manifest import categories
from ssd_algo.data.records import objects_of
from ssd_algo.data.samples import Sample
from ssd_algo.data.spool import Spool
from ssd_algo.errors import UserError

IMAGES = (b"\xff\xd8", b"\x89PNG", b"BM", b"RIFF", b"II*\0", b"MM\0*", b"GIF8")  # what they begin with
_WARNINGS = 1000  # that are kept
_WITHOUT_LABEL = 100  # images without a label after which there is none at all


@dataclass(frozen=True)
class _Record:
    """A record: what to call it, where its payload lies in the spool, and the payload."""

    where: str
    place: int
    payload: bytes


@dataclass
class StreamedPass:
    """What a pass of a channel has shown so far.

    Attributes
    ----------
    name : str
        Of its FIFO.
    class_names : dict
        Those of the labels are added.
    warns : bool
        Whether warnings are kept: those of later passes are the same.
    findings : Findings
    unreadable : int
        Images.
    """

    channel: str
    name: str
    rules: Rules
    spool: Spool
    class_names: dict[int, str]
    warns: bool
    findings: Findings = field(default_factory=Findings)
    unreadable: int = 0
    _kind: str = ""
    _samples: int = 0
    _images: int = 0
    _without_label: int = 0
    _widest: int = 0
    _most: int = 0

    def samples(self, table: NDArray[np.int64]) -> list[Sample]:
        """The samples of records: number, offset in the stream, place in the spool and size, (N, 4).

        Raises
        ------
        UserError
            At the first fault.
        """
        records: Iterator[_Record] = (self._record(*row) for row in table.tolist())
        first = next(records)
        self._kind = self._kind or _kind(first.payload)
        if self._kind == "JSON":
            raise UserError(
                f"{first.where}: it holds JSON where an image should be; AttributeNames must have source-ref first, "
                "then the label."
            )
        if first.payload.startswith(recordio.MAGIC_BYTES):
            raise UserError(
                f"{first.where}: it holds a RecordIO file, not a record of one; RecordWrapperType must be None for "
                ".rec files."
            )
        records = itertools.chain([first], records)
        found = []
        for read in self._of_manifest(records) if self._kind == "image" else map(self._of_record, records):
            self._judge(read)
            if read.sample is not None:
                found.append(read.sample)
        self._samples += len(found)
        return found

    def finish(self) -> None:
        """The pass has ended.

        Raises
        ------
        UserError
            When there was no sample in it.
        """
        if self._images and self._without_label == self._images:
            raise UserError(_no_labels(self.name, self._images))
        if not self._samples:
            raise UserError(
                f"channel {self.channel}: {self.name} ended without a sample; check what the channel streams."
            )
        check_label_width(self._widest, self._most, self.channel, self.rules, self.findings)
        if self._without_label:
            self.findings.warn(
                "image without a label",
                self.name,
                f"{self._without_label} of {self._images} images have no label, as labelling failed or was not done; "
                "they are skipped.",
            )

    def _record(self, number: int, offset: int, place: int, size: int) -> _Record:
        where = f"{self.name}, record {number} at byte {offset}"
        return _Record(where, place, self.spool.file(where, place, size).read())

    def _judge(self, read: Read) -> None:
        """Keep count of what an image is, and refuse the stream at its first fault."""
        self._images += 1
        self.findings.faults += read.findings.faults
        if self.warns and len(self.findings.warnings) < _WARNINGS:
            self.findings.warnings += read.findings.warnings
        for where, reason in read.bad:
            self.unreadable += 1
            if self.unreadable > self.rules.max_bad_records:
                self.findings.refuse("unreadable image", where, f"{reason}; replace or remove the image.")
            else:
                self.findings.warn("unreadable image", where, f"{reason}; the image is skipped.")
        if self.findings.faults:
            raise UserError(str(self.findings.faults[0]))

    def _of_record(self, record: _Record) -> Read:
        read = Read(record.where)
        try:
            labelled = recordio.unpack(record.payload)
        except recordio.BadLabel as error:
            read.findings.refuse(error.rule, read.where, f"{error}; correct the label and pack the file again.")
            return read
        if labelled.label_width > self._widest:
            self._widest, self._most = labelled.label_width, len(labelled.classes)
        objects = objects_of(labelled, read.where, self.rules, read.findings)
        size, fingerprint = None, b""
        if self.rules.headers:
            try:
                header = images.read_header(io.BytesIO(labelled.image), len(labelled.image))
            except images.NotAnImage as error:
                read.bad.append((read.where, str(error)))
                return read
            size, fingerprint = (header.width, header.height), header.fingerprint
        before = len(record.payload) - len(labelled.image)
        file = self.spool.file(read.where, record.place + before, len(labelled.image))
        read.sample = Sample(read.where, file, -1, objects.boxes, objects.classes, objects.difficult, size, fingerprint)
        return read

    def _of_manifest(self, records: Iterator[_Record]) -> Iterator[Read]:
        """Of each image and the documents behind it; the first record is an image."""
        image = next(records)
        documents: list[Any] = []
        for record in records:
            if record.payload.startswith(IMAGES):
                yield self._of_image(image, documents)
                image, documents = record, []
            elif record.payload.strip():
                documents.append(_parsed(record))
        yield self._of_image(image, documents)

    def _of_image(self, image: _Record, documents: list[Any]) -> Read:
        """An image and what else its line of the manifest has."""
        read = Read(image.where)
        labels = [each for each in documents if isinstance(each, dict) and {"annotations", "image_size"} & each.keys()]
        if len(labels) > 1:
            read.findings.refuse(
                "several labels",
                read.where,
                f"{len(labels)} labels follow the image; AttributeNames must have source-ref and one label.",
            )
        if not labels:
            self._without_label += 1
            if self._without_label >= _WITHOUT_LABEL and self._without_label > self._images:
                raise UserError(_no_labels(read.where, self._without_label))
            return read
        named = [name for each in documents for name in categories(each)]
        document = labels[0] | {"categories": named}
        file = self.spool.file(read.where, image.place, len(image.payload))
        read_labels(document, read.where, file, self.rules, read)
        for identity, name in read.class_names.items():
            if self.class_names.setdefault(identity, name) != name:
                read.findings.refuse(
                    "conflicting categories",
                    read.where,
                    f'its class-map calls class {identity} "{name}", but others call it '
                    f'"{self.class_names[identity]}"; use one name.',
                )
        if read.sample is not None:
            self._most = max(self._most, len(read.sample.classes))
            self._widest = max(self._widest, 2 + 5 * self._most)
        return read


def _no_labels(where: str, count: int) -> str:
    return (
        f"{where}: none of the {count} images so far has a label; AttributeNames must have source-ref, then the label, "
        'an object with "image_size" and "annotations".'
    )


def _kind(payload: bytes) -> str:
    """What a record holds: `image`, `JSON`, or a `record` of a .rec file, which begins with a small number."""
    if payload.startswith(IMAGES):
        return "image"
    return "JSON" if payload.lstrip()[:1] in (b"{", b"[") else "record"


def _parsed(record: _Record) -> Any:
    try:
        return json.loads(record.payload)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{record.where}: it is neither an image nor JSON ({error}); AttributeNames must have source-ref and the "
            "label."
        ) from error
