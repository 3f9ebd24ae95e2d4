"""Channels of images with one SageMaker JSON annotation each, to samples."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

from ssd_algo.data import images
from ssd_algo.data.files import File, Folder, ImageIndex, in_threads
from ssd_algo.data.findings import Findings, printable
from ssd_algo.data.labels import (
    Dataset,
    Label,
    Rules,
    check_label_width,
    check_objects,
    check_size,
    header_of,
    is_number,
    settle_unreadable,
    warn_of_unused,
)
from ssd_algo.data.progress import Progress, silent
from ssd_algo.data.samples import Sample
from ssd_algo.data.table import SampleTable

_KEYS = ("class_id", "left", "top", "width", "height")


def read_image_channel(
    image_folder: Folder, annotation_folder: Folder, rules: Rules, findings: Findings, progress: Progress = silent
) -> Dataset:
    """Read a channel of images and the channel with one JSON annotation an image; what breaks a rule is reported."""
    image_files = image_folder.with_extension(*images.EXTENSIONS)
    annotation_files = annotation_folder.with_extension(".json")
    if not image_files:
        findings.refuse(
            "empty channel",
            f"channel {image_folder.name}",
            f"{image_folder.location} holds no .jpg, .jpeg or .png file; check the path or S3 prefix.",
        )
    if not annotation_files:
        xml = annotation_folder.with_extension(".xml")
        findings.refuse(
            "empty channel",
            f"channel {annotation_folder.name}",
            f"{annotation_folder.location} holds no .json file; there must be one annotation for each image"
            + ("; for PASCAL VOC's .xml files, make a .rec file with ssd-algo pack." if xml else "."),
        )
    if not (image_files and annotation_files):
        return Dataset()
    records = image_folder.with_extension(".rec")
    if records:
        text = f"it also holds {records[0].name}, which is not read: its images are."
        findings.warn("files without use", f"channel {image_folder.name}", text)
    reader = Reader(image_folder.name, annotation_folder.name, ImageIndex(image_files, rules.sharded), rules)
    reads = in_threads(reader.read_file, annotation_files)
    return collect(image_folder, image_files, reads, len(annotation_files), rules, findings, progress)


def collect(
    image_folder: Folder,
    image_files: list[File],
    reads: Iterable["Read"],
    count: int,
    rules: Rules,
    findings: Findings,
    progress: Progress,
) -> Dataset:
    """What `count` annotations gave as a data set, with what only shows when they are put together."""
    dataset = Dataset()
    table = SampleTable(f"{image_folder.name}/", image_folder.file)
    annotated: dict[str, str] = {}
    bad: list[tuple[str, str]] = []
    with progress(f"channel {image_folder.name}", count) as advance:
        for read in reads:
            advance(1)
            findings.extend(read.findings)
            bad += read.bad
            if read.image and read.image in annotated:
                findings.refuse(
                    "image annotated twice",
                    read.where,
                    f"annotates {read.image}, as {annotated[read.image]} does; keep one of them.",
                )
                continue
            annotated[read.image] = read.where
            _add_class_names(dataset.class_names, read.class_names, read.where, findings)
            if read.sample:
                table.append(read.sample)
    dataset.samples = table.sorted()
    dataset.skipped = len(bad)
    settle_unreadable(bad, rules, findings)
    warn_of_unused(image_files, set(annotated), image_folder.name, findings)
    most = int(table.object_counts().max(initial=0))
    check_label_width(2 + 5 * most, most, image_folder.name, rules, findings)
    return dataset


@dataclass
class Read:
    """What one annotation gave; `image` is the name of the image that it annotates, empty if there is none."""

    where: str
    image: str = ""
    sample: Sample | None = None
    class_names: dict[int, str] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    bad: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Reader:
    """Reads one annotation at a time; shared by threads, so nothing in it changes.

    `path_name` is what users know the path of an image by.
    """

    image_channel: str
    annotation_channel: str
    index: ImageIndex
    rules: Rules
    path_name: str = "file"

    def read_file(self, file: File) -> Read:
        """An annotation file."""
        read = Read(f"{self.annotation_channel}/{file.name}")
        document = _parse(file, read)
        if document is None:
            return read
        if "file" not in document and isinstance(document.get("images"), list):
            text = "the file is in COCO's format, which is not read directly; make a .rec file with ssd-algo pack."
            read.findings.refuse("COCO file", read.where, text)
            return read
        self.read_document(document, file.name.rsplit(".", 1)[0], read)
        return read

    def read_document(self, document: dict[str, Any], own: str, read: Read) -> None:
        """The content of an annotation file called `own`, without extension."""
        read.image = self._image_of(document, own, read)
        file = self.index.by_name[read.image] if read.image else None
        read_labels(document, f"{self.image_channel}/{read.image}", file, self.rules, read)

    def _image_of(self, document: dict[str, Any], own: str, read: Read) -> str:
        """Which image an annotation speaks of, by its name; empty when none."""
        path = _property(document, "file", str, "the path of the image below its channel", read)
        if path is None:
            return ""
        if ".." in path.replace("\\", "/").split("/"):
            read.findings.refuse(
                "file outside the channel",
                read.where,
                f'"{self.path_name}" is "{path}", which leads out of channel {self.image_channel}; give the path below '
                "it.",
            )
            return ""
        found, wrong = self.index.find(path, own)
        if not found and not wrong:
            return ""
        if not found:
            text = f'"{self.path_name}" is "{path}", but channel {self.image_channel} {wrong}'
            read.findings.refuse("annotation without image", read.where, text)
            return ""
        if own in self.index.by_stem and found.rsplit("/", 1)[-1].rsplit(".", 1)[0] != own.rsplit("/", 1)[-1]:
            read.findings.refuse(
                "file that names another image",
                read.where,
                f'"{self.path_name}" is "{path}", but channel {self.image_channel} holds an image named {own}, as the '
                "annotation is; name that one, or rename the annotation.",
            )
            return ""
        return found


def read_labels(document: dict[str, Any], name: str, file: File | None, rules: Rules, read: Read) -> None:
    """Make a sample called `name` of an annotation and its image; None where there is no image, or it is unreadable."""
    _read_class_names(document, read)
    said, header = _image_size(document, read), None
    if file is not None and rules.headers:
        header = header_of(name, file, read.bad)
    if said and header:
        check_size(said, name, header, read.where, read.findings)
    # Where the two contradict each other, boxes may be right for either: that is one fault, not many.
    sizes = [size for size in (said, header and (header.width, header.height)) if size]
    size = (max(width for width, _ in sizes), max(height for _, height in sizes)) if sizes else None
    label = _label(document, size, read)
    if label is None:
        return
    objects = check_objects(label, rules, read.findings)
    if file is not None and not read.bad:
        fingerprint = header.fingerprint if header else b""
        read.sample = Sample(name, file, -1, objects.boxes, objects.classes, objects.difficult, label.size, fingerprint)


def _parse(file: File, read: Read) -> dict[str, Any] | None:
    """The JSON object of an annotation file; None when there is none."""
    try:
        document = json.loads(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        read.findings.refuse(
            "not UTF-8",
            read.where,
            f"the file is not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}; save it as UTF-8.",
        )
    except (ValueError, RecursionError) as error:
        read.findings.refuse("not JSON", read.where, f"the file is not JSON ({error}); correct or remove it.")
    except OSError as error:
        reason = error.strerror or error
        read.findings.refuse("file that cannot be read", read.where, f"the file cannot be read ({reason}).")
    else:
        if isinstance(document, dict):
            return document
        read.findings.refuse(
            "not a JSON object",
            read.where,
            f"the file holds {_kind(document)}, not an object with file, image_size and annotations.",
        )
    return None


def _property(owner: dict[str, Any], name: str, kind: type, meaning: str, read: Read) -> Any:
    """A property of the right type, or None and a fault."""
    value = owner.get(name)
    if isinstance(value, kind) and (value or kind is list):
        return value
    if name not in owner:
        read.findings.refuse("missing property", read.where, f'the property "{name}" is missing; it must be {meaning}.')
    else:
        read.findings.refuse(
            "property of the wrong type", read.where, f'"{name}" is {_shown(value)}; it must be {meaning}.'
        )
    return None


def _image_size(document: dict[str, Any], read: Read) -> tuple[int, int] | None:
    meaning = '[{"width": ..., "height": ..., "depth": 3}] in pixels'
    sizes = document.get("image_size")
    if isinstance(sizes, dict):
        document = {"image_size": [sizes]}  # without the list it is as clear
    entries = _property(document, "image_size", list, meaning, read)
    if entries is None:
        return None
    entry = entries[0] if entries else None
    if isinstance(entry, dict):
        width, height, depth = entry.get("width"), entry.get("height"), entry.get("depth", 3)
        if _is_size(width) and _is_size(height):
            if depth not in (1, 3, 4):
                text = f"image_size has the depth {_shown(depth)}, which no image here has; it is not used."
                read.findings.warn("odd depth", read.where, text)
            return int(width), int(height)
    read.findings.refuse(
        "property of the wrong type", read.where, f'"image_size" is {_shown(entries)}; it must be {meaning}.'
    )
    return None


def _label(document: dict[str, Any], size: tuple[int, int] | None, read: Read) -> Label | None:
    """Class and corners of each object; objects that are not made of numbers are reported."""
    meaning = "a list of objects, an empty one for an image without any"
    entries = _property(document, "annotations", list, meaning, read)
    if entries is None or size is None:
        return None
    rows = {
        index: _numbers(entry, f"{read.where}, annotation {index}", read.findings)
        for index, entry in enumerate(entries)
    }
    rows = {index: row for index, row in rows.items() if row is not None}
    table = np.asarray(list(rows.values()), dtype=np.float64).reshape(-1, 5)
    corners = np.concatenate([table[:, 1:3], table[:, 1:3] + table[:, 3:5]], axis=1)
    names = [f"{read.where}, annotation {index}" for index in rows]
    return Label(names, table[:, 0], corners, np.zeros(len(table), dtype=bool), size)


def _numbers(entry: Any, where: str, findings: Findings) -> list[float] | None:
    if not isinstance(entry, dict):
        findings.refuse(
            "property of the wrong type", where, f"it is {_shown(entry)}, not an object with {', '.join(_KEYS)}."
        )
        return None
    missing = [key for key in _KEYS if key not in entry]
    if missing:
        findings.refuse(
            "missing property", where, f"{' and '.join(missing)} missing; it must have the numbers {', '.join(_KEYS)}."
        )
        return None
    for key in _KEYS:
        value = entry[key]
        if isinstance(value, float) and not np.isfinite(value):
            findings.refuse("number that is not finite", where, f"{key} is {value}, which is not a finite number.")
            return None
        if not is_number(value):
            findings.refuse("property of the wrong type", where, f"{key} is {_shown(value)}; it must be a number.")
            return None
    return [entry[key] for key in _KEYS]


def _is_size(value: Any) -> TypeGuard[float]:
    return is_number(value) and value == int(value) > 0


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a truth value"}
    return names.get(type(value), "null")


def _shown(value: Any) -> str:
    """A value as JSON, short enough for a message."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _read_class_names(document: dict[str, Any], read: Read) -> None:
    categories = document.get("categories")
    if categories is None:
        return
    meaning = '{"class_id": ..., "name": ...}'
    if not isinstance(categories, list):
        read.findings.refuse(
            "property of the wrong type",
            read.where,
            f'"categories" is {_shown(categories)}; it must be a list of {meaning}.',
        )
        return
    for category in categories:
        identity = category.get("class_id") if isinstance(category, dict) else None
        name = category.get("name") if isinstance(category, dict) else None
        if not is_number(identity) or identity != int(identity) or not isinstance(name, str | int):
            text = f'an entry of "categories" is {_shown(category)}; it must be {meaning}.'
            read.findings.refuse("property of the wrong type", read.where, text)
            continue
        _add_class_names(read.class_names, {int(identity): printable(str(name))}, read.where, read.findings)


def _add_class_names(known: dict[int, str], more: dict[int, str], where: str, findings: Findings) -> None:
    for identity, name in more.items():
        if known.setdefault(identity, name) != name:
            findings.refuse(
                "conflicting categories",
                where,
                f'"categories" calls class {identity} "{name}", but others call it "{known[identity]}"; use one name.',
            )
