"""Folders of labelled images to a RecordIO file."""

import os
from collections.abc import Sequence
from pathlib import Path

from ssd_algo.data import coco, recordio, voc
from ssd_algo.data.annotations import read_image_channel
from ssd_algo.data.files import File, Folder, in_threads
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Rules
from ssd_algo.data.progress import Progress, silent
from ssd_algo.data.samples import Sample
from ssd_algo.errors import UserError


def read(
    image_folder: Folder,
    annotations: Folder | File,
    class_names: list[str],
    findings: Findings,
    progress: Progress = silent,
) -> Dataset:
    """Read labelled images of any format; what breaks a rule is reported.

    Parameters
    ----------
    annotations : Folder or File
        A folder of SageMaker JSON or of PASCAL VOC XML, one file an image, or a COCO file.
    class_names : list of str
        For PASCAL VOC and COCO: names in the order of their ids; empty to number the classes that are there.
    """
    if isinstance(annotations, File):
        return coco.read_coco(image_folder, annotations, class_names, findings, progress)
    voc_files, json_files = annotations.with_extension(".xml"), annotations.with_extension(".json")
    where = f"folder {annotations.name}"
    if voc_files and json_files:
        text = (
            f"it holds {len(voc_files)} .xml and {len(json_files)} .json files; give a folder with one of the formats."
        )
        findings.refuse("annotations of two formats", where, text)
    elif voc_files:
        return voc.read_voc(image_folder, annotations, class_names, findings, progress)
    elif not json_files:
        text = (
            f"{annotations.location} holds no .json and no .xml file; give the folder of annotations, or a COCO file."
        )
        findings.refuse("no annotations", where, text)
    elif class_names:
        text = "class names given with --classes have no use: SageMaker annotations hold the class ids themselves."
        findings.refuse("class names without use", where, text)
    else:
        return read_image_channel(image_folder, annotations, Rules(None), findings, progress)
    return Dataset()


def write(samples: Sequence[Sample], path: Path, progress: Progress = silent) -> None:
    """Write samples as a RecordIO file and its index (`.idx`: number and offset of each record).

    Encoded images go into it as they are, images without objects too. The same samples make the same bytes. Both files
    appear when they are complete.
    """
    index_path = path.with_suffix(".idx")
    unfinished = [each.with_name(each.name + ".part") for each in (path, index_path)]
    with (
        unfinished[0].open("wb") as records,
        unfinished[1].open("w") as index,
        progress(f"packing {path.name}", len(samples)) as advance,
    ):
        for number, payload in enumerate(in_threads(_payload, list(enumerate(samples)))):
            index.write(f"{number}\t{records.tell()}\n")
            recordio.write_record(records, payload)
            advance(1)
    for part, whole in zip(unfinished, (path, index_path), strict=True):
        os.replace(part, whole)


def read_class_names(path: Path) -> list[str]:
    """Names in the order of their ids from a file with one a line, as `ssd-algo pack` leaves it.

    Raises
    ------
    UserError
        When it is not UTF-8, a line is empty, or a name stands there twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); save it as UTF-8.") from error
    for number, name in enumerate(names):
        if not name or name in names[:number]:
            what = f'"{name}" again' if name else "empty"
            raise UserError(f"{path}, line {number + 1}: it is {what}; each line must have a name of its own.")
    return names


def _payload(numbered: tuple[int, Sample]) -> bytes:
    number, sample = numbered
    return recordio.pack(number, sample.boxes, sample.classes, sample.difficult, sample.encoded())
