"""Images with JSON annotations to samples; the refusals are in test_bad_inputs.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import read_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssd_algo.data.annotations import read_image_channel
from ssd_algo.data.files import list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Rules

OBJECT = {"class_id": 1, "left": 10, "top": 4, "width": 20, "height": 8}


def document(**changes: Any) -> dict[str, Any]:
    """A valid annotation of a 40 x 20 image with some properties changed."""
    return {
        "file": "a.jpg",
        "image_size": [{"width": 40, "height": 20, "depth": 3}],
        "annotations": [OBJECT],
        "categories": [{"class_id": 0, "name": "dog"}, {"class_id": 1, "name": "cat"}],
    } | changes


def write_image(path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20), (9, 99, 199)).save(path, **options)


def write_image_folder(base: Path) -> Path:
    (base / "train").mkdir()
    return base / "train"


def write_annotation(base: Path, name: str, text: str | dict[str, Any]) -> None:
    path = base / "train_annotation" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def read(base: Path) -> Dataset:
    return read_images(base, "train", num_classes=2)


def warnings(base: Path, **rules: Any) -> list[str]:
    findings = Findings()
    folders = [list_folder(name, base / name) for name in ("train", "train_annotation")]
    read_image_channel(folders[0], folders[1], Rules(2, **rules), findings)
    assert not findings.faults
    return [str(warning) for warning in findings.warnings]


def test_boxes_are_fractions(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document())
    dataset = read(tmp_path)
    (sample,) = dataset.samples
    # 10 / 40, 4 / 20, (10 + 20) / 40, (4 + 8) / 20
    assert sample.boxes == pytest.approx(np.asarray([[0.25, 0.2, 0.75, 0.6]]))
    assert sample.boxes.dtype == np.float32
    assert sample.classes.tolist() == [1]
    assert dataset.class_names == {0: "dog", 1: "cat"}
    assert sample.encoded() == (tmp_path / "train" / "a.jpg").read_bytes()


def test_any_letter_case_and_sub_folders(tmp_path: Path) -> None:
    for name in ("b/x.JPG", "a/x.jpeg", "c.Png"):
        write_image(tmp_path / "train" / name, format="PNG" if name == "c.Png" else "JPEG")
        write_annotation(tmp_path, f"{name}.json", document(file=name))
    assert [sample.name for sample in read(tmp_path).samples] == ["train/a/x.jpeg", "train/b/x.JPG", "train/c.Png"]


def test_file_may_name_the_folder_above_the_channel(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document(file="your_image_directory/a.jpg"))
    assert [sample.name for sample in read(tmp_path).samples] == ["train/a.jpg"]


def test_a_byte_order_mark_and_whole_floats_are_fine(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", "\ufeff" + json.dumps(document(image_size=[{"width": 40.0, "height": 20.0}])))
    assert len(read(tmp_path).samples) == 1


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document())
    write_annotation(tmp_path, ".ipynb_checkpoints/a-checkpoint.json", document())
    assert len(read(tmp_path).samples) == 1


def test_image_without_objects_is_kept(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document(annotations=[]))
    (sample,) = read(tmp_path).samples
    assert sample.boxes.shape == (0, 4)


def test_image_size_is_that_of_the_upright_picture(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(tmp_path / "train" / "a.jpg", exif=exif)
    write_annotation(tmp_path, "a.json", document(image_size=[{"width": 20, "height": 40, "depth": 3}], annotations=[]))
    assert len(read(tmp_path).samples) == 1


def test_a_folder_more_in_the_channel_than_in_the_annotation(tmp_path: Path) -> None:
    """The S3 prefix of the channel was one level above."""
    write_image(tmp_path / "train" / "photos" / "a.jpg")
    write_annotation(tmp_path, "labels/a.json", document())
    assert [sample.name for sample in read(tmp_path).samples] == ["train/photos/a.jpg"]


def test_boxes_without_area_are_left_out_and_said(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document(annotations=[OBJECT, OBJECT | {"width": 0}]))
    (sample,) = read(tmp_path).samples
    assert len(sample.boxes) == 1
    assert warnings(tmp_path) == ["train_annotation/a.json, annotation 1: has no area (10, 4, 10, 12) and is left out."]


def test_boxes_over_the_edge_are_clipped_and_said(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document(annotations=[OBJECT | {"left": 22}, OBJECT | {"left": 20}]))
    (sample,) = read(tmp_path).samples
    # 42 of 40 pixels is 0.05 over, which is the tolerance; the second ends at the edge.
    assert sample.boxes[:, 2].tolist() == [1, 1]
    assert warnings(tmp_path) == [
        "train_annotation/a.json, annotation 0: reaches over the image's edge (22, 4, 42, 12) and is clipped."
    ]


def test_images_without_annotation_are_left_out_and_said(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_image(tmp_path / "train" / name)
    write_annotation(tmp_path, "a.json", document())
    assert len(read(tmp_path).samples) == 1
    assert warnings(tmp_path) == [
        "train/b.jpg: no annotation names this image; it is left out.",
        "train/c.jpg: no annotation names this image; it is left out.",
    ]


def test_labels_wider_than_label_width_are_said(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document(annotations=[OBJECT] * 3))
    assert warnings(tmp_path, label_width=17) == []
    # 2 numbers of header and 3 objects of 5
    assert warnings(tmp_path, label_width=16) == [
        "channel train: the widest label (3 objects) needs a label_width of 17, but it is 16; all objects are used "
        "nevertheless."
    ]


@pytest.mark.parametrize("depth", [1, 3, 4])
def test_depths(tmp_path: Path, depth: int) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document(image_size=[{"width": 40, "height": 20, "depth": depth}]))
    assert warnings(tmp_path) == []


@pytest.mark.parametrize("depth", [2, None, "3"])
def test_odd_depths_are_said(tmp_path: Path, depth: Any) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document(image_size=[{"width": 40, "height": 20, "depth": depth}]))
    assert warnings(tmp_path) == [
        f"train_annotation/a.json: image_size has the depth {json.dumps(depth)}, which no image here has; it is not used."
    ]


def test_a_pixel_over_the_edge_of_a_small_image_is_clipped(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(write_image_folder(tmp_path) / "a.png")
    box = {"class_id": 1, "left": 5, "top": 5, "width": 6, "height": 5}
    write_annotation(
        tmp_path, "a.json", document(file="a.png", image_size=[{"width": 10, "height": 10}], annotations=[box])
    )
    (sample,) = read(tmp_path).samples
    assert sample.boxes.tolist() == [[0.5, 0.5, 1, 1]]


def test_images_of_one_name_in_two_folders(tmp_path: Path) -> None:
    """A path below the channel means that image; less than a path the one beside which the annotation would lie."""
    for name in ("x/1.jpg", "y/1.jpg", "2.jpg", "y/2.jpg"):
        write_image(tmp_path / "train" / name)
    for name, file in (("x/1.json", "1.jpg"), ("1.json", "y/1.jpg"), ("2.json", "y/2.jpg")):
        write_annotation(tmp_path, name, document(file=file))
    assert [sample.name for sample in read(tmp_path).samples] == ["train/x/1.jpg", "train/y/1.jpg", "train/y/2.jpg"]


def test_folders_that_are_links(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "a.jpg")
    write_annotation(tmp_path, "a.json", document())
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "train")
    assert [sample.name for sample in read(tmp_path).samples] == ["train/link/a.jpg"]


def test_unreadable_images_are_skipped_and_said_where_they_may_be(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / "train" / f"{name}.jpg")
        write_annotation(tmp_path, f"{name}.json", document(file=f"{name}.jpg"))
    (tmp_path / "train" / "b.jpg").write_bytes(b"no image")
    assert warnings(tmp_path, max_bad_records=1) == ["train/b.jpg: the file is no image; the image is skipped."]


def test_without_headers_no_image_is_opened(tmp_path: Path) -> None:
    """As for FastFile: what an image is like shows when it is decoded."""
    write_annotation(tmp_path, "a.json", document())
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(b"no image")
    assert warnings(tmp_path, headers=False) == []


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.sampled_from([0, 1, 20, 40, -1, 0.5, 1e300, float("nan"), float("inf"), 10**400, "1", None, True])
NEARLY = st.fixed_dictionaries(
    {},
    optional={
        "file": st.sampled_from(["a.jpg", "/x/a.jpg", "../a.jpg", "", "\ud800", "\x00"]) | JSON,
        "image_size": st.lists(
            st.fixed_dictionaries({}, optional={"width": NUMBERS, "height": NUMBERS, "depth": NUMBERS}), max_size=2
        )
        | JSON,
        "annotations": st.lists(st.fixed_dictionaries({}, optional={key: NUMBERS for key in OBJECT}) | JSON, max_size=3)
        | JSON,
        "categories": st.lists(
            st.fixed_dictionaries({}, optional={"class_id": NUMBERS, "name": JSON}) | JSON, max_size=3
        )
        | JSON,
    },
)


@given((JSON | NEARLY).map(json.dumps).map(str.encode) | st.binary(max_size=100))
def test_any_bytes_give_samples_or_findings(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    base = tmp_path_factory.mktemp("any")
    write_image(base / "train" / "a.jpg")
    (base / "train_annotation").mkdir()
    (base / "train_annotation" / "a.json").write_bytes(content)
    findings = Findings()
    folders = [list_folder(name, base / name) for name in ("train", "train_annotation")]
    dataset = read_image_channel(folders[0], folders[1], Rules(2), findings)
    assert bool(findings.faults) or len(dataset.samples) == 1
    for sample in dataset.samples:
        assert ((sample.boxes >= 0) & (sample.boxes <= 1)).all()
        assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
        assert set(sample.classes) <= {0, 1}
    for finding in findings.faults + findings.warnings:
        str(finding).encode()
