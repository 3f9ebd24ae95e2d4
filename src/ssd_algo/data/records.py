"""A channel that holds one RecordIO file, to samples."""

import io

import numpy as np

from ssd_algo.data import images, recordio
from ssd_algo.data.files import File, Folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Label, Rules, check_label_width, check_objects, settle_unreadable
from ssd_algo.data.progress import Progress, silent
from ssd_algo.data.samples import Sample
from ssd_algo.data.table import SampleTable


def read_record_channel(folder: Folder, rules: Rules, findings: Findings, progress: Progress = silent) -> Dataset:
    """Read a channel that holds one .rec file; what breaks a rule is reported."""
    files = folder.with_extension(".rec")
    if len(files) != 1:
        found = ", ".join(file.name for file in files[:5]) + (", ..." if len(files) > 5 else "")
        findings.refuse(
            "one .rec file a channel",
            f"channel {folder.name}",
            f"{folder.location} must hold one .rec file; it holds {len(files) or 'none'}"
            + (f" ({found}); pack them into one." if files else "; check the path or S3 prefix."),
        )
        return Dataset()
    name = f"{folder.name}/{files[0].name}"
    table = SampleTable(name, files[0])
    dataset = Dataset(table, _class_names(folder, files[0]))
    pictures = folder.with_extension(*images.EXTENSIONS)
    if pictures:
        text = f"it also holds {len(pictures)} images ({pictures[0].name}, ...), which are not read: {name} is."
        findings.warn("files without use", f"channel {folder.name}", text)
    bad: list[tuple[str, str]] = []
    widest = most = 0
    with progress(f"channel {folder.name}", files[0].size) as advance, files[0].open() as file:
        done = 0
        try:
            for number, (offset, payload) in enumerate(recordio.read_records(file, files[0].size, rules.headers)):
                advance(file.tell() - done)
                done = file.tell()
                where = f"{name}, record {number} at byte {offset}"
                try:
                    record = recordio.unpack(payload)
                except recordio.BadLabel as error:
                    findings.refuse(error.rule, where, f"{error}; correct the label and pack the file again.")
                    table.leave_out()
                    continue
                if record.label_width > widest:
                    widest, most = record.label_width, len(record.classes)
                sample = _sample(where, files[0], offset, record, rules, findings, bad)
                if sample:
                    table.append(sample)
                else:
                    table.leave_out()
        except recordio.BrokenRecord as error:
            findings.refuse(
                "broken record",
                f"{name}, record {error.number} at byte {error.offset}",
                f"it {error}; it and what follows cannot be read: write the file again with im2rec or ssd-algo pack.",
            )
    if files[0].size == 0:
        findings.refuse("empty channel", name, "the file is empty; check how it was packed and uploaded.")
    dataset.skipped = len(bad)
    settle_unreadable(bad, rules, findings)
    check_label_width(widest, most, folder.name, rules, findings)
    return dataset


def _class_names(folder: Folder, records: File) -> dict[int, str]:
    """Class names from the file that `ssd-algo pack` leaves beside the records, if it is there."""
    wanted = records.name[: -len(".rec")] + ".classes.txt"
    for file in folder.files:
        if file.name == wanted:
            return dict(enumerate(file.read().decode("utf-8", "replace").splitlines()))
    return {}


def _sample(
    where: str,
    file: File,
    offset: int,
    record: recordio.LabelledImage,
    rules: Rules,
    findings: Findings,
    bad: list[tuple[str, str]],
) -> Sample | None:
    padding = (record.classes == -1) & (record.boxes == -1).all(axis=1)
    names = [f"{where}, object {index}" for index in np.flatnonzero(~padding)]
    label = Label(
        names,
        record.classes[~padding].astype(np.float64),
        record.boxes[~padding].astype(np.float64),
        record.difficult[~padding],
        None,
    )
    objects = check_objects(label, rules, findings)
    size, fingerprint = None, b""
    if rules.headers:
        try:
            header = images.read_header(io.BytesIO(record.image), len(record.image))
        except images.NotAnImage as error:
            bad.append((where, str(error)))
            return None
        size, fingerprint = (header.width, header.height), header.fingerprint
    return Sample(where, file, offset, objects.boxes, objects.classes, objects.difficult, size, fingerprint)
