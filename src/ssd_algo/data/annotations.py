"""The label formats of a channel to samples: images with JSON annotations, and RecordIO."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ssd_algo.data import images, recordio
from ssd_algo.data.samples import Sample
from ssd_algo.errors import UserError

logger = logging.getLogger(__name__)


@dataclass
class Dataset:
    """The labelled images of a channel.

    Attributes
    ----------
    samples : list of Sample, in the order of their names (of their records for RecordIO)
    class_names : dict
        Class id to name, as far as the annotations give names.
    """

    samples: list[Sample]
    class_names: dict[int, str] = field(default_factory=dict)


def read_image_channel(image_directory: Path, annotation_directory: Path, num_classes: int) -> Dataset:
    """Read a channel of images and the channel with one JSON annotation an image.

    Raises
    ------
    UserError
        Naming the file and the rule it breaks.
    """
    channel = annotation_directory.name
    image_files = _files(image_directory, images.EXTENSIONS)
    annotation_files = _files(annotation_directory, (".json",))
    if not image_files:
        raise UserError(
            f"Channel {image_directory.name} ({image_directory}) holds no .jpg, .jpeg or .png file; "
            "check the S3 prefix of the channel."
        )
    if not annotation_files:
        raise UserError(
            f"Channel {channel} ({annotation_directory}) holds no .json file; it needs one annotation for each image."
        )
    by_path = {path.relative_to(image_directory).as_posix(): path for path in image_files}
    dataset = Dataset([])
    seen: dict[str, str] = {}
    for path in annotation_files:
        where = f"{channel}/{path.relative_to(annotation_directory).as_posix()}"
        document = _read_json(path, where)
        name = _image_of(document, where, by_path, image_directory.name)
        if name in seen:
            raise UserError(f"{where} and {seen[name]} both annotate {name}; keep one of them.")
        seen[name] = where
        dataset.samples.append(_image_sample(document, where, name, by_path[name], num_classes))
        _add_class_names(dataset.class_names, document, where)
    dataset.samples.sort(key=lambda sample: sample.name)
    unused = len(by_path) - len(seen)
    if unused:
        missing = min(set(by_path) - set(seen))
        logger.warning(
            "%d images of channel %s have no annotation and are left out, %s first.",
            unused,
            image_directory.name,
            missing,
        )
    return dataset


def read_record_channel(directory: Path, num_classes: int) -> Dataset:
    """Read a channel that holds one .rec file.

    Raises
    ------
    UserError
        Naming the record and the rule it breaks.
    """
    files = _files(directory, (".rec",))
    if len(files) != 1:
        found = ", ".join(path.name for path in files) or "none"
        raise UserError(f"Channel {directory.name} ({directory}) must hold one .rec file; found: {found}.")
    dataset = Dataset([])
    for number, (offset, payload) in enumerate(recordio.read_records(files[0])):
        name = f"{files[0].name}: record {number} at byte {offset}"
        record = recordio.unpack(payload, name)
        if len(record.classes) and (record.boxes.min() < -_TOLERANCE or record.boxes.max() > 1 + _TOLERANCE):
            raise UserError(
                f"{name} has a box {record.boxes[np.abs(record.boxes).max(axis=1).argmax()].tolist()} outside the "
                "image; RecordIO boxes are fractions of the image's width and height, not pixels."
            )
        dataset.samples.append(
            _sample(name, files[0], offset, record.boxes, record.classes, record.difficult, num_classes, name)
        )
    if not dataset.samples:
        raise UserError(f"{files[0].name} of channel {directory.name} holds no record.")
    return dataset


# How far a box may reach over the image's edge, as a fraction of its side, before it is refused and not clipped.
_TOLERANCE = 0.05

_LARGEST = 1e9


def _files(directory: Path, extensions: tuple[str, ...]) -> list[Path]:
    """Files below a directory with one of the extensions in any letter case, sorted; hidden ones left out."""
    return sorted(
        path
        for path in directory.rglob("*")
        if path.suffix.lower() in extensions
        and not any(part.startswith(".") for part in path.relative_to(directory).parts)
        and path.is_file()
    )


def _read_json(path: Path, where: str) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON in UTF-8 ({error}); correct or remove it.") from error
    if not isinstance(document, dict):
        raise UserError(f"{where} holds a {type(document).__name__}, not a JSON object; see the annotation format.")
    return document


def _image_of(document: dict[str, Any], where: str, by_path: dict[str, Path], channel: str) -> str:
    """Which image, by its path in the channel, an annotation speaks of: `file`, or the end of that path."""
    file = document.get("file")
    if not isinstance(file, str) or not file:
        raise UserError(f'{where}: property "file" must be the path of the image in channel {channel}.')
    parts = file.replace("\\", "/").split("/")
    for start in range(len(parts)):
        candidate = "/".join(parts[start:])
        if candidate in by_path:
            return candidate
    raise UserError(
        f'{where}: "file" is "{file}", but channel {channel} holds no such image; add it, or remove the annotation.'
    )


def _image_sample(document: dict[str, Any], where: str, name: str, path: Path, num_classes: int) -> Sample:
    width, height = _image_size(document, where)
    try:
        with path.open("rb") as file:
            actual = images.upright_size(file)
    except images.NotAnImage as error:
        raise UserError(f"{name}: {error}; replace the file.") from error
    if (width, height) != actual:
        raise UserError(
            f"{where}: image_size is {width} x {height}, but {name} is {actual[0]} x {actual[1]} pixels upright "
            "(EXIF orientation applied); correct one of them."
        )
    annotations = document.get("annotations")
    if not isinstance(annotations, list):
        raise UserError(f'{where}: property "annotations" must be a list; an empty one for an image without objects.')
    objects = [_numbers(entry, where, index) for index, entry in enumerate(annotations)]
    table = np.asarray(objects, dtype=np.float64).reshape(-1, 5)
    corners = np.concatenate([table[:, 1:3], table[:, 1:3] + table[:, 3:5]], axis=1)
    if len(table) and (table[:, 3:5] < 0).any():
        index = int((table[:, 3:5] < 0).any(axis=1).argmax())
        raise UserError(f"{where}: annotation {index} has a negative width or height; correct it.")
    boxes = (corners / (width, height, width, height)).astype(np.float32)
    if len(boxes) and (boxes.min() < -_TOLERANCE or boxes.max() > 1 + _TOLERANCE):
        index = int(((boxes < -_TOLERANCE) | (boxes > 1 + _TOLERANCE)).any(axis=1).argmax())
        raise UserError(
            f"{where}: annotation {index} (left, top, right, bottom {corners[index].tolist()}) lies outside the image "
            f"of {width} x {height} pixels; correct it."
        )
    difficult = np.zeros(len(boxes), dtype=bool)
    return _sample(name, path, -1, boxes, table[:, 0].astype(np.int64), difficult, num_classes, where)


def _sample(
    name: str,
    path: Path,
    offset: int,
    boxes: Any,
    classes: Any,
    difficult: Any,
    num_classes: int,
    where: str,
) -> Sample:
    """A sample whose boxes lie within the image; boxes without area are dropped and reported."""
    if len(classes) and (classes.min() < 0 or classes.max() >= num_classes):
        wrong = int(classes[(classes < 0) | (classes >= num_classes)][0])
        raise UserError(
            f"{where} has class {wrong}, but num_classes is {num_classes}: class ids go from 0 to {num_classes - 1}."
        )
    boxes = np.clip(boxes, 0, 1)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    if not kept.all():
        logger.warning("%s: %d of %d boxes have no area and are left out.", where, (~kept).sum(), len(kept))
    return Sample(name, path, offset, boxes[kept], classes[kept], difficult[kept])


def _image_size(document: dict[str, Any], where: str) -> tuple[int, int]:
    sizes = document.get("image_size")
    entry = sizes[0] if isinstance(sizes, list) and sizes else sizes
    if isinstance(entry, dict):
        width, height = entry.get("width"), entry.get("height")
        if _is_number(width) and _is_number(height) and width == int(width) > 0 and height == int(height) > 0:
            return int(width), int(height)
    raise UserError(f'{where}: property "image_size" must be [{{"width": ..., "height": ..., "depth": 3}}] in pixels.')


def _numbers(entry: Any, where: str, index: int) -> list[float]:
    keys = ("class_id", "left", "top", "width", "height")
    values: list[Any] = [entry.get(key) for key in keys] if isinstance(entry, dict) else [None]
    if not all(_is_number(value) for value in values):
        raise UserError(
            f"{where}: annotation {index} must have the numbers class_id, left, top, width and height; it is {entry}."
        )
    if values[0] != int(values[0]):
        raise UserError(f"{where}: annotation {index} has class_id {values[0]}, which is not an integer.")
    return values


def _is_number(value: Any) -> TypeGuard[float]:
    """A finite number that a box or a class id can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _add_class_names(names: dict[int, str], document: dict[str, Any], where: str) -> None:
    categories = document.get("categories") or []
    if not isinstance(categories, list):
        raise UserError(f'{where}: property "categories" must be a list of {{"class_id": ..., "name": ...}}.')
    for category in categories:
        if not isinstance(category, dict) or not _is_number(category.get("class_id")) or "name" not in category:
            raise UserError(f'{where}: an entry of "categories" must have class_id and name; it is {category}.')
        identity, name = int(category["class_id"]), str(category["name"])
        if names.setdefault(identity, name) != name:
            raise UserError(
                f'{where}: class {identity} is named "{name}", but "{names[identity]}" in another annotation; '
                "use one name."
            )
