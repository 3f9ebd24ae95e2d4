"""Manifests of SageMaker Ground Truth, as files beside their images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import SMALL, read_images, train

from ssd_algo.cli import main
from ssd_algo.data.files import list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Rules
from ssd_algo.data.manifest import read_manifest_channel

Line = dict[str, Any]


def lines_of(data: Path, channel: str, source: Callable[[str], str] = str) -> list[Line]:
    """A manifest for a channel with JSON annotations."""
    lines = []
    for path in sorted((data / f"{channel}_annotation").iterdir()):
        document = json.loads(path.read_text())
        names = {str(each["class_id"]): each["name"] for each in document["categories"]}
        present = {str(each["class_id"]) for each in document["annotations"]}
        # Other orders of properties than in the other format, and metadata as Ground Truth has them.
        lines.append(
            {
                "boxes-metadata": {
                    "job-name": "labeling-job/boxes",
                    "class-map": {each: names[each] for each in present},
                    "human-annotated": "yes",
                    "objects": [{"confidence": 0.09} for _ in document["annotations"]],
                    "creation-date": "2020-10-17T23:46:21.480632",
                    "type": "groundtruth/object-detection",
                },
                "boxes": {"annotations": document["annotations"], "image_size": document["image_size"]},
                "source-ref": source(document["file"]),
            }
        )
    return lines


def write(path: Path, lines: list[Any]) -> None:
    path.write_text("\n".join(json.dumps(line) if isinstance(line, dict) else str(line) for line in lines))


def read(folder: Path) -> tuple[Dataset, Findings]:
    findings = Findings()
    return read_manifest_channel(list_folder("train", folder), Rules(num_classes=3), findings), findings


@pytest.fixture
def data(tmp_path: Path, shapes: Path) -> Path:
    """The shapes' two channels, with manifests in place of annotations."""
    sources: dict[str, Callable[[str], str]] = {
        "train": lambda file: f"s3://bucket/some/prefix/{file}",
        "validation": lambda file: file,
    }
    for channel, source in sources.items():
        shutil.copytree(shapes / channel, tmp_path / "data" / channel)
        write(tmp_path / "data" / channel / "output.manifest", lines_of(shapes, channel, source))
    return tmp_path / "data"


@pytest.mark.parametrize("channel", ["train", "validation"])
def test_it_is_the_same_data(data: Path, shapes: Path, channel: str) -> None:
    findings = Findings()
    dataset = read_manifest_channel(list_folder(channel, data / channel), Rules(num_classes=3), findings)
    assert not findings.faults
    assert not findings.warnings
    expected = read_images(shapes, channel)
    assert dataset.class_names == expected.class_names
    for one, two in zip(dataset.samples, expected.samples, strict=True):
        assert (one.name, one.size) == (two.name, two.size)
        np.testing.assert_array_equal(one.boxes, two.boxes)
        np.testing.assert_array_equal(one.classes, two.classes)


def test_through_the_front_door(tmp_path: Path, data: Path) -> None:
    """It trains; and the check says the same before."""
    (tmp_path / "input").mkdir()
    data.rename(tmp_path / "input" / "data")
    run = train(tmp_path, SMALL)
    assert run.code == 0, run.err
    assert "Training on 40 images, validating on 10." in run.out
    folders = [str(tmp_path / "input" / "data")]
    done = CliRunner().invoke(main, ["check", "--num-classes", "3", *folders])
    assert done.exit_code == 0, done.output
    assert "channel train: 40 images" in done.output


def test_lines_without_a_label_are_skipped_and_counted(data: Path, shapes: Path) -> None:
    lines = lines_of(shapes, "train")
    del lines[0]["boxes"]
    lines[0]["boxes-metadata"] = {"failure-reason": "ClientError: the annotation was not consolidated", "type": "..."}
    lines[1] = {"source-ref": lines[1]["source-ref"]}
    lines[2]["boxes"]["annotations"] = []
    write(data / "train" / "output.manifest", lines)
    dataset, findings = read(data / "train")
    assert not findings.faults
    assert len(dataset.samples) == 38
    assert len(dataset.samples[0].classes) == 0
    assert str(findings.warnings[0]) == (
        "train/output.manifest: 2 of 40 lines have no boxes, as labelling failed or was not done; they are skipped."
    )


def changed(number: int, **properties: Any) -> Callable[[list[Any]], None]:
    def change(lines: list[Any]) -> None:
        lines[number] |= properties

    return change


def replaced(number: int, line: Any) -> Callable[[list[Any]], None]:
    def change(lines: list[Any]) -> None:
        lines[number] = line

    return change


def without_labels(lines: list[Any]) -> None:
    for line in lines:
        del line["boxes"]


def relabelled(lines: list[Any]) -> None:
    lines[4]["cells"] = lines[4].pop("boxes")


SIZE = [{"width": 200, "height": 160, "depth": 3}]
BOX = {"class_id": 0, "left": 10, "top": 10, "width": 20, "height": 20}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            replaced(1, "{"),
            "train/output.manifest, line 2: the line is not JSON (Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1)); correct or remove it.",
        ),
        (
            replaced(1, "[1]"),
            "train/output.manifest, line 2: the line holds list, not an object with source-ref and a label.",
        ),
        (
            changed(0, **{"source-ref": None}),
            'train/output.manifest, line 1: the property "source-ref" is missing; it must be the address of the image.',
        ),
        (
            changed(0, **{"source-ref": "s3://bucket/no-such.jpg"}),
            'train/output.manifest, line 1: "source-ref" is "no-such.jpg", but channel train holds no such image; add it, or '
            "remove the annotation.",
        ),
        (
            changed(0, **{"source-ref": "s3://bucket/../a.jpg"}),
            'train/output.manifest, line 1: "source-ref" is "../a.jpg", which leads out of channel train; give the path below it.',
        ),
        (
            changed(0, boxes={"annotations": [BOX]}),
            'train/output.manifest, line 1: the property "image_size" is missing; it must be [{"width": ..., "height": ..., '
            '"depth": 3}] in pixels.',
        ),
        (
            changed(0, boxes={"annotations": {}, "image_size": SIZE}),
            'train/output.manifest, line 1: "annotations" is {}; it must be a list of objects, an empty one for an image '
            "without any.",
        ),
        (
            changed(0, boxes={"annotations": [{"class_id": 0}], "image_size": SIZE}),
            "train/output.manifest, line 1, annotation 0: left and top and width and height missing; it must have the "
            "numbers class_id, left, top, width, height.",
        ),
        (
            without_labels,
            'train/output.manifest: no line has a label of Ground Truth\'s bounding boxes: an object with "image_size" and '
            '"annotations".',
        ),
        (
            relabelled,
            "train/output.manifest: labels stand under boxes (line 1) and under cells (line 5); leave those of one labelling "
            "job.",
        ),
        (lambda lines: lines.clear(), "train/output.manifest: the file is empty; there must be a line for each image."),
        (
            lambda lines: lines.insert(1, lines[0]),
            "train/output.manifest, line 2: annotates train-0000.jpg, as train/output.manifest, line 1 does; keep one of "
            "them.",
        ),
        (
            changed(2, **{"boxes-metadata": {"class-map": {"0": "cow"}}}),
            'train/output.manifest, line 3: "categories" calls class 0 "cow", but others call it "circle"; use one name.',
        ),
    ],
)
def test_manifests_that_are_refused(
    data: Path, shapes: Path, change: Callable[[list[Any]], None], sentence: str
) -> None:
    lines: list[Any] = lines_of(shapes, "train")
    change(lines)
    write(data / "train" / "output.manifest", lines)
    _, findings = read(data / "train")
    assert [str(each) for each in findings.faults] == [sentence]


def test_several_manifests(data: Path) -> None:
    shutil.copy(data / "train" / "output.manifest", data / "train" / "again.jsonl")
    _, findings = read(data / "train")
    assert [str(each) for each in findings.faults] == [
        "channel train: it holds 2 manifests (again.jsonl, output.manifest, ...); put all lines into one."
    ]


def test_bytes_that_are_not_utf_8(data: Path) -> None:
    (data / "train" / "output.manifest").write_bytes(b"\xff")
    _, findings = read(data / "train")
    assert [str(each) for each in findings.faults] == [
        "train/output.manifest: the file is not UTF-8: byte 0 is 0xff; save it as UTF-8."
    ]
