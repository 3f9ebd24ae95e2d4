"""Images with one PASCAL VOC annotation (XML) each, to samples."""

from dataclasses import dataclass, field
from xml.etree import ElementTree

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
    not_among,
    settle_unreadable,
    warn_of_unused,
)
from ssd_algo.data.progress import Progress, silent
from ssd_algo.data.samples import Sample

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    image_folder: Folder,
    annotation_folder: Folder,
    class_names: list[str],
    findings: Findings,
    progress: Progress = silent,
) -> Dataset:
    """Read images and their VOC annotations; what breaks a rule is reported.

    Corners are VOC's: the first pixel is 1, and xmax and ymax belong to the box (Everingham et al., VOC development
    kit). So a box from 1 to the width is the whole image.

    Parameters
    ----------
    class_names : list of str
        In the order of their ids; empty to give ids in alphabetical order.
    """
    files = annotation_folder.with_extension(".xml")
    index = ImageIndex(image_folder.with_extension(*images.EXTENSIONS))
    parsed = list(in_threads(lambda file: _parse(file, annotation_folder.name), files))
    known = class_names or sorted({name for each in parsed for name in each.classes})
    reader = _Reader(image_folder, index, known)
    dataset = Dataset(class_names={number: printable(name) for number, name in enumerate(known)})
    annotated: set[str] = set()
    samples: list[Sample] = []
    bad: list[tuple[str, str]] = []
    with progress(f"images of {image_folder.name}", len(parsed)) as advance:
        for each, sample in zip(parsed, in_threads(reader.read, parsed), strict=True):
            advance(1)
            findings.extend(each.findings)
            bad += each.bad
            if each.name and each.name in annotated:
                text = f"annotates {each.name}, as another annotation does; keep one of them."
                findings.refuse("image annotated twice", each.where, text)
            annotated.add(each.name)
            if sample:
                samples.append(sample)
    dataset.samples = sorted(samples, key=lambda sample: sample.name)
    settle_unreadable(bad, Rules(None), findings)
    warn_of_unused(list(index.by_name.values()), annotated, image_folder.name, findings)
    return dataset


@dataclass
class _Annotation:
    """What an XML file holds: corners as written there, one row an object; `name` is that of its image."""

    where: str
    image: str = ""
    size: tuple[int, int] | None = None
    classes: list[str] = field(default_factory=list)
    corners: list[list[float]] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    name: str = ""
    bad: list[tuple[str, str]] = field(default_factory=list)


def _parse(file: File, channel: str) -> _Annotation:
    read = _Annotation(f"{channel}/{file.name}")
    try:
        root = ElementTree.fromstring(file.read())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        read.findings.refuse("not XML", read.where, f"the file is not XML ({error}); correct or remove it.")
        return read
    if root.tag != "annotation":
        text = f"its outermost element is <{root.tag}>, not VOC's <annotation>; give a folder of PASCAL VOC files."
        read.findings.refuse("not PASCAL VOC", read.where, text)
        return read
    stem = file.name.rsplit(".", 1)[0]
    read.image = (root.findtext("filename") or "").strip() or stem
    width, height = _number(root.findtext("size/width")), _number(root.findtext("size/height"))
    if width and height:  # some tools leave 0
        read.size = int(width), int(height)
    for number, node in enumerate(root.iter("object")):
        where = f"{read.where}, object {number}"
        name = (node.findtext("name") or "").strip()
        corners = [_number(node.findtext(f"bndbox/{corner}")) for corner in _CORNERS]
        if not name:
            read.findings.refuse("missing property", where, "it has no <name>; give its class.")
        elif None in corners:
            text = f"its <bndbox> must have the numbers {', '.join(_CORNERS)}."
            read.findings.refuse("missing property", where, text)
        else:
            read.classes.append(name)
            read.corners.append([corner for corner in corners if corner is not None])
            read.difficult.append(bool(_number(node.findtext("difficult"))))
    return read


def _number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) else None


@dataclass(frozen=True)
class _Reader:
    """Looks at the image of one annotation at a time; shared by threads, so nothing in it changes."""

    folder: Folder
    index: ImageIndex
    known: list[str]

    def read(self, read: _Annotation) -> Sample | None:
        """The sample; without one, the annotation's findings or `bad` say why."""
        if read.findings.faults:
            return None
        read.name = self._image_of(read)
        if not read.name:
            return None
        name, file = f"{self.folder.name}/{read.name}", self.index.by_name[read.name]
        header = header_of(name, file, read.bad)
        if header is None:
            return None
        if read.size:
            check_size(read.size, name, header, read.where, read.findings)
        unknown = sorted(set(read.classes) - set(self.known))
        if unknown:
            text = f'it has the class "{unknown[0]}", {not_among(self.known)}'
            read.findings.refuse("unknown class", read.where, text)
            return None
        corners = np.asarray(read.corners, dtype=np.float64).reshape(-1, 4) - (1, 1, 0, 0)
        label = Label(
            names=[f"{read.where}, object {number}" for number in range(len(corners))],
            classes=np.asarray([self.known.index(each) for each in read.classes], dtype=np.float64),
            corners=corners,
            difficult=np.asarray(read.difficult, dtype=bool),
            size=(header.width, header.height),
        )
        objects = check_objects(label, Rules(None), read.findings)
        return Sample(name, file, -1, objects.boxes, objects.classes, objects.difficult, label.size, header.fingerprint)

    def _image_of(self, read: _Annotation) -> str:
        """The image's name: by <filename>, which many tools write carelessly, else the one called as the annotation."""
        own = read.where.split("/", 1)[1].rsplit(".", 1)[0]
        found, wrong = self.index.find(read.image, own)
        if not found and own not in self.index.by_stem:
            text = f'its <filename> is "{read.image}", but {self.folder.location} {wrong}'
            read.findings.refuse("annotation without image", read.where, text)
        return found or self.index.by_stem.get(own, "")
