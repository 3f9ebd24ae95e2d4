"""Images with one COCO annotation file, to samples."""

import json
from collections import defaultdict
from typing import Any

import numpy as np

from ssd_algo.data import images
from ssd_algo.data.files import File, Folder, ImageIndex, in_threads
from ssd_algo.data.findings import Findings, printable
from ssd_algo.data.labels import (
    Dataset,
    Label,
    Rules,
    check_objects,
    check_size,
    header_of,
    is_number,
    not_among,
    settle_unreadable,
    warn_of_unused,
)
from ssd_algo.data.progress import Progress, silent
from ssd_algo.data.samples import Sample


def read_coco(
    image_folder: Folder, file: File, class_names: list[str], findings: Findings, progress: Progress = silent
) -> Dataset:
    """Read images and their COCO annotations (`instances_*.json`); what breaks a rule is reported.

    Class ids count the categories in the order of their COCO ids, or the names of `class_names` where there are any. A
    box is `x, y, width, height` in pixels; crowds (`iscrowd`) become difficult objects, which scoring leaves out.
    """
    document = _document(file, findings)
    if document is None:
        return Dataset()
    categories = sorted(document["categories"], key=lambda category: category["id"])
    names = [printable(str(category.get("name", category["id"]))) for category in categories]
    known = class_names or names
    for name in sorted(set(names) - set(known)):
        findings.refuse("unknown class", file.name, f'it has the category "{name}", {not_among(known)}')
    for name in sorted({name for name in names if names.count(name) > 1}):
        findings.refuse("class named twice", file.name, f'two entries of "categories" are named "{name}"; keep one.')
    if findings.faults:
        return Dataset()
    class_ids: dict[int | None, int] = {
        category["id"]: known.index(name) for category, name in zip(categories, names, strict=True)
    }
    dataset = Dataset(class_names=dict(enumerate(known)))
    objects = defaultdict(list)
    for number, each in enumerate(document["annotations"]):
        objects[_identity(each, "image_id")].append((number, each))
    index = ImageIndex(image_folder.with_extension(*images.EXTENSIONS))
    reader = _Reader(file.name, image_folder, index, class_ids, objects)
    bad: list[tuple[str, str]] = []
    annotated: set[str] = set()
    samples: list[Sample] = []
    with progress(f"images of {image_folder.name}", len(document["images"])) as advance:
        for name, sample, found, unreadable in in_threads(reader.read, list(enumerate(document["images"]))):
            advance(1)
            findings.extend(found)
            bad += unreadable
            if name and name in annotated:
                text = f'two entries of "images" have the file_name {name}; keep one.'
                findings.refuse("image annotated twice", file.name, text)
            annotated.add(name)
            if sample:
                samples.append(sample)
    identities = {_identity(each, "id") for each in document["images"]}
    for identity, entries in objects.items():
        for number, each in entries if identity not in identities else []:
            findings.refuse(
                "annotation without image",
                f"{file.name}, annotation {number}",
                f"its image_id is {json.dumps(each.get('image_id'))}, which no entry of images has.",
            )
    dataset.samples = sorted(samples, key=lambda sample: sample.name)
    settle_unreadable(bad, Rules(None), findings)
    warn_of_unused(list(index.by_name.values()), annotated, image_folder.name, findings)
    return dataset


def _document(file: File, findings: Findings) -> dict[str, Any] | None:
    try:
        document = json.loads(file.read().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        findings.refuse("not JSON", file.name, f"the file is not JSON in UTF-8 ({error}).")
        return None
    for name in ("images", "annotations", "categories"):
        entries = document.get(name) if isinstance(document, dict) else None
        if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
            findings.refuse("missing property", file.name, f'a COCO file must have "{name}", a list of objects.')
            return None
    for name in ("images", "categories"):
        taken: set[int | None] = {None}
        for entry in document[name]:
            if _identity(entry, "id") in taken:
                text = (
                    f'each entry of "{name}" must have an integer id of its own; one has {json.dumps(entry.get("id"))}.'
                )
                findings.refuse("missing property", file.name, text)
                return None
            taken.add(_identity(entry, "id"))
    return dict(document)


def _identity(entry: dict[str, Any], name: str) -> int | None:
    """An id of COCO's, which is an integer; None where it is not."""
    value = entry.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


class _Reader:
    """Reads one image at a time; shared by threads, so nothing in it changes."""

    def __init__(
        self,
        file: str,
        folder: Folder,
        index: ImageIndex,
        class_ids: dict[int | None, int],
        objects: dict[Any, list[tuple[int, dict[str, Any]]]],
    ) -> None:
        self._file, self._folder, self._index = file, folder, index
        self._class_ids, self._objects = class_ids, objects

    def read(self, numbered: tuple[int, dict[str, Any]]) -> tuple[str, Sample | None, Findings, list[tuple[str, str]]]:
        """The image's name, its sample, what was found, and whether it is unreadable."""
        number, entry = numbered
        findings = Findings()
        bad: list[tuple[str, str]] = []
        where = f"{self._file}, image {number}"
        path = str(entry.get("file_name", ""))
        found, wrong = self._index.find(path)
        if not found:
            text = f'its file_name is "{path}", but {self._folder.location} {wrong}'
            findings.refuse("annotation without image", where, text)
            return "", None, findings, bad
        name = f"{self._folder.name}/{found}"
        file = self._index.by_name[found]
        header = header_of(name, file, bad)
        if header is None:
            return found, None, findings, bad
        width, height = entry.get("width"), entry.get("height")
        if is_number(width) and is_number(height):
            check_size((int(width), int(height)), name, header, where, findings)
        label = self._label(self._objects.get(entry["id"], []), (header.width, header.height), findings)
        objects = check_objects(label, Rules(None), findings)
        sample = Sample(
            name, file, -1, objects.boxes, objects.classes, objects.difficult, label.size, header.fingerprint
        )
        return found, sample, findings, bad

    def _label(self, objects: list[tuple[int, dict[str, Any]]], size: tuple[int, int], findings: Findings) -> Label:
        names, classes, boxes, crowds = [], [], [], []
        for number, each in objects:
            where = f"{self._file}, annotation {number}"
            box = each.get("bbox")
            category = self._class_ids.get(_identity(each, "category_id"))
            if category is None:
                text = f"its category_id is {json.dumps(each.get('category_id'))}, which no entry of categories has."
                findings.refuse("unknown class", where, text)
            elif not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
                text = f"its bbox is {json.dumps(box)}; it must be the numbers x, y, width, height."
                findings.refuse("property of the wrong type", where, text)
            else:
                names.append(where)
                classes.append(category)
                boxes.append(box)
                crowds.append(bool(each.get("iscrowd")))
        table = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        corners = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:]], axis=1)
        return Label(names, np.asarray(classes, dtype=np.float64), corners, np.asarray(crowds, dtype=bool), size)
