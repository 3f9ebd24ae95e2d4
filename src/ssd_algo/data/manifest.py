"""Labels of SageMaker Ground Truth: a manifest with a JSON object a line, beside the images of its channel.

A line holds `source-ref`, the image's address; the label under the name that the labelling job gave it; and what is
known of it under that name with `-metadata`:

    {"source-ref": "s3://bucket/a.jpg",
     "boxes": {"image_size": [{"width": 500, "height": 400, "depth": 3}],
               "annotations": [{"class_id": 0, "left": 111, "top": 134, "width": 61, "height": 128}]},
     "boxes-metadata": {"class-map": {"0": "dog"}, ...}}
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from ssd_algo.data import images
from ssd_algo.data.annotations import Read, Reader, collect
from ssd_algo.data.files import File, Folder, ImageIndex, in_threads
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Rules
from ssd_algo.data.progress import Progress, silent

EXTENSIONS = (".manifest", ".jsonl")
_SOURCE, _METADATA = "source-ref", "-metadata"


def has_manifest(folder: Folder) -> bool:
    """Whether a channel holds a manifest and images, and no .rec file, which would have labels of its own."""
    return bool(folder.with_extension(*EXTENSIONS) and folder.with_extension(*images.EXTENSIONS)) and not (
        folder.with_extension(".rec")
    )


def read_manifest_channel(folder: Folder, rules: Rules, findings: Findings, progress: Progress = silent) -> Dataset:
    """Read a channel that holds images and one manifest; what breaks a rule is reported."""
    manifests, pictures = folder.with_extension(*EXTENSIONS), folder.with_extension(*images.EXTENSIONS)
    if len(manifests) > 1:
        findings.refuse(
            "several manifests",
            f"channel {folder.name}",
            f"it holds {len(manifests)} manifests ({manifests[0].name}, {manifests[1].name}, ...); put all lines into "
            "one.",
        )
        return Dataset()
    where = f"{folder.name}/{manifests[0].name}"
    lines = dict(_lines(manifests[0], where, findings))
    label = _label_attribute(lines, where, findings)
    if not label:
        return Dataset()
    labelled = {number: line for number, line in lines.items() if isinstance(line.get(label), dict)}
    if len(labelled) < len(lines):
        findings.warn(
            "image without a label",
            where,
            f"{len(lines) - len(labelled)} of {len(lines)} lines have no {label}, as labelling failed or was not done; "
            "they are skipped.",
        )
    reader = Reader(folder.name, folder.name, ImageIndex(pictures, rules.sharded), rules, _SOURCE)

    def read(item: tuple[int, dict[str, Any]]) -> Read:
        number, line = item
        found = Read(f"{where}, line {number}")
        document = _document(line, label, found)
        if document is not None:
            reader.read_document(document, document["file"].rsplit(".", 1)[0], found)
        return found

    reads = in_threads(read, list(labelled.items()))
    return collect(folder, pictures, reads, len(labelled), rules, findings, progress)


def _lines(file: File, where: str, findings: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and object of each line that holds one; the others are reported."""
    try:
        text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = ""
        findings.refuse(
            "not UTF-8",
            where,
            f"the file is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; save it as UTF-8.",
        )
    else:
        if not text.strip():
            findings.refuse("empty channel", where, "the file is empty; there must be a line for each image.")
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            findings.refuse(
                "not JSON", f"{where}, line {number}", f"the line is not JSON ({error}); correct or remove it."
            )
            continue
        if not isinstance(value, dict):
            findings.refuse(
                "not a JSON object",
                f"{where}, line {number}",
                f"the line holds {type(value).__name__}, not an object with {_SOURCE} and a label.",
            )
            continue
        yield number, value


def _label_attribute(lines: dict[int, dict[str, Any]], where: str, findings: Findings) -> str:
    """The name under which labels stand; empty, and reported, when there is none or more than one."""
    found: dict[str, int] = {}
    for number, line in lines.items():
        for name, value in line.items():
            if isinstance(value, dict) and "annotations" in value and not name.endswith(_METADATA):
                found.setdefault(name, number)
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        findings.refuse(
            "several labels",
            where,
            f"labels stand under {one} (line {first}) and under {other} (line {second}); leave those of one labelling "
            "job.",
        )
    elif not found and lines:
        findings.refuse(
            "manifest without labels",
            where,
            'no line has a label of Ground Truth\'s bounding boxes: an object with "image_size" and "annotations".',
        )
    return next(iter(found)) if len(found) == 1 else ""


def _document(line: dict[str, Any], label: str, read: Read) -> dict[str, Any] | None:
    """A line as the content of an annotation file; None, and reported, when it names no image."""
    source = line.get(_SOURCE)
    if not isinstance(source, str) or not source:
        read.findings.refuse(
            "missing property", read.where, f'the property "{_SOURCE}" is missing; it must be the address of the image.'
        )
        return None
    return line[label] | {"file": path_of(source), "categories": categories(line.get(f"{label}{_METADATA}"))}


def path_of(source: str) -> str:
    """The path of an image in its bucket or on its server; a path as it is."""
    scheme, separator, rest = source.partition("://")
    if not separator:
        return source
    path = rest.partition("/")[2]
    return unquote(urlsplit(source).path).lstrip("/") if scheme in ("http", "https") else path  # keys are not quoted


def categories(metadata: Any) -> list[dict[str, Any]]:
    """Class names from a label's metadata, as an annotation file has them; none where there are none."""
    names = metadata.get("class-map") if isinstance(metadata, dict) else None
    if not isinstance(names, dict):
        return []
    numbered = {int(each): name for each, name in names.items() if each.isdecimal() and len(each) < 10}
    return [{"class_id": each, "name": str(name)} for each, name in numbered.items()]
