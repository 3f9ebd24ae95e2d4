"""Folders of labelled images to a RecordIO file."""

import os
from pathlib import Path

from ssd_algo.data import coco, recordio, voc
from ssd_algo.data.annotations import read_image_channel
from ssd_algo.data.files import File, Folder, in_threads
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Rules
from ssd_algo.data.progress import Progress, silent
from ssd_algo.data.samples import Sample


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
        For PASCAL VOC: names in the order of their ids.
    """
    if isinstance(annotations, File):
        return coco.read_coco(image_folder, annotations, findings, progress)
    if annotations.with_extension(".xml"):
        return voc.read_voc(image_folder, annotations, class_names, findings, progress)
    return read_image_channel(image_folder, annotations, Rules(None), findings, progress)


def write(samples: list[Sample], path: Path, progress: Progress = silent) -> None:
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


def _payload(numbered: tuple[int, Sample]) -> bytes:
    number, sample = numbered
    return recordio.pack(number, sample.boxes, sample.classes, sample.difficult, sample.encoded())
