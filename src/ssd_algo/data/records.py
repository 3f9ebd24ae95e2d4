"""A channel that holds RecordIO files, to samples."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ssd_algo.data import images, recordio
from ssd_algo.data.files import File, Folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Label, Objects, Rules, check_label_width, check_objects, settle_unreadable
from ssd_algo.data.progress import Progress, silent
from ssd_algo.data.samples import Sample
from ssd_algo.data.table import SampleTable


def read_record_channel(folder: Folder, rules: Rules, findings: Findings, progress: Progress = silent) -> Dataset:
    """Read a channel that holds .rec files, one after the other by name; what breaks a rule is reported."""
    files = folder.with_extension(".rec")
    if not files:
        findings.refuse(
            "empty channel",
            f"channel {folder.name}",
            f"{folder.location} holds no .rec file; check the path or S3 prefix.",
        )
        return Dataset()
    pictures = folder.with_extension(*images.EXTENSIONS)
    if pictures:
        read = f"{folder.name}/{files[0].name} is" if len(files) == 1 else f"the {len(files)} .rec files are"
        text = f"it also holds {len(pictures)} images ({pictures[0].name}, ...), which are not read: {read}."
        findings.warn("files without use", f"channel {folder.name}", text)
    reader = _Reader(f"{folder.name}/", rules, findings, SampleTable(f"{folder.name}/", folder.file))
    with progress(f"channel {folder.name}", sum(file.size for file in files)) as advance:
        for file in files:
            reader.read(file, advance)
    dataset = Dataset(reader.table, _class_names(folder, files, findings), len(reader.bad))
    settle_unreadable(reader.bad, rules, findings)
    check_label_width(reader.widest, reader.most, folder.name, rules, findings)
    return dataset


@dataclass
class _Reader:
    """Reads the .rec files of a channel into a table; `bad` are unreadable images, `widest` is the widest label."""

    prefix: str
    rules: Rules
    findings: Findings
    table: SampleTable
    bad: list[tuple[str, str]] = field(default_factory=list)
    widest: int = 0
    most: int = 0

    def read(self, file: File, advance: Callable[[int], None]) -> None:
        name = f"{self.prefix}{file.name}"
        self.table.begin(file)
        if file.size == 0:
            self.findings.refuse("empty channel", name, "the file is empty; check how it was packed and uploaded.")
        with file.open() as opened:
            done = 0
            try:
                for number, (offset, payload) in enumerate(recordio.read_records(opened, file.size)):
                    advance(opened.tell() - done)
                    done = opened.tell()
                    sample = self._sample(f"{name}, record {number} at byte {offset}", file, offset, payload)
                    if sample:
                        self.table.append(sample)
                    else:
                        self.table.leave_out()
            except recordio.BrokenRecord as error:
                self.findings.refuse(
                    "broken record",
                    f"{name}, record {error.number} at byte {error.offset}",
                    f"it {error}; it and what follows cannot be read: write the file again with im2rec or ssd-algo "
                    "pack.",
                )

    def _sample(self, where: str, file: File, offset: int, payload: bytes) -> Sample | None:
        try:
            record = recordio.unpack(payload)
        except recordio.BadLabel as error:
            self.findings.refuse(error.rule, where, f"{error}; correct the label and pack the file again.")
            return None
        if record.label_width > self.widest:
            self.widest, self.most = record.label_width, len(record.classes)
        objects = objects_of(record, where, self.rules, self.findings)
        size, fingerprint = None, b""
        if self.rules.headers:
            try:
                header = images.read_header(io.BytesIO(record.image), len(record.image))
            except images.NotAnImage as error:
                self.bad.append((where, str(error)))
                return None
            size, fingerprint = (header.width, header.height), header.fingerprint
        return Sample(where, file, offset, objects.boxes, objects.classes, objects.difficult, size, fingerprint)


def objects_of(record: recordio.LabelledImage, where: str, rules: Rules, findings: Findings) -> Objects:
    """The objects of a record that break no rule; rows of -1 pad a label, and are none."""
    padding = (record.classes == -1) & (record.boxes == -1).all(axis=1)
    names = [f"{where}, object {index}" for index in np.flatnonzero(~padding)]
    label = Label(
        names,
        record.classes[~padding].astype(np.float64),
        record.boxes[~padding].astype(np.float64),
        record.difficult[~padding],
        None,
    )
    return check_objects(label, rules, findings)


def _class_names(folder: Folder, records: Sequence[File], findings: Findings) -> dict[int, str]:
    """Class names from the files that `ssd-algo pack` leaves beside the records, as far as they are there."""
    found: dict[int, str] = {}
    wanted = {file.name[: -len(".rec")] + ".classes.txt" for file in records}
    for file in folder.files:
        if file.name in wanted:
            for identity, name in enumerate(file.read().decode("utf-8", "replace").splitlines()):
                if found.setdefault(identity, name) != name:
                    findings.refuse(
                        "conflicting categories",
                        f"{folder.name}/{file.name}",
                        f'it calls class {identity} "{name}", but others call it "{found[identity]}"; use one name.',
                    )
    return found
