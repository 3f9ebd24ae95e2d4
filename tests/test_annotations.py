"""The image format and RecordIO to samples; every refusal by its whole message."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssd_algo.data import recordio
from ssd_algo.data.annotations import Dataset, read_image_channel, read_record_channel
from ssd_algo.errors import UserError

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


def write_annotation(base: Path, name: str, text: str | dict[str, Any]) -> None:
    path = base / "train_annotation" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def read(base: Path) -> Dataset:
    return read_image_channel(base / "train", base / "train_annotation", num_classes=2)


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
    assert [sample.name for sample in read(tmp_path).samples] == ["a/x.jpeg", "b/x.JPG", "c.Png"]


def test_file_may_name_the_folder_above_the_channel(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document(file="your_image_directory/a.jpg"))
    assert [sample.name for sample in read(tmp_path).samples] == ["a.jpg"]


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


def test_boxes_without_area_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document(annotations=[OBJECT, OBJECT | {"width": 0}]))
    with caplog.at_level(logging.WARNING):
        (sample,) = read(tmp_path).samples
    assert len(sample.boxes) == 1
    assert caplog.messages == ["train_annotation/a.json: 1 of 2 boxes have no area and are left out."]


def test_images_without_annotation_are_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        write_image(tmp_path / "train" / name)
    write_annotation(tmp_path, "a.json", document())
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path).samples) == 1
    assert caplog.messages == ["2 images of channel train have no annotation and are left out, b.jpg first."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "train_annotation/a.json holds a list, not a JSON object; see the annotation format."),
        (
            "{",
            "train_annotation/a.json is not JSON in UTF-8 (Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1)); correct or remove it.",
        ),
        (
            document(file=3),
            'train_annotation/a.json: property "file" must be the path of the image in channel train.',
        ),
        (
            document(file="z.jpg"),
            'train_annotation/a.json: "file" is "z.jpg", but channel train holds no such image; add it, or remove the annotation.',
        ),
        (
            document(image_size=[{"width": 20, "height": 40, "depth": 3}]),
            "train_annotation/a.json: image_size is 20 x 40, but a.jpg is 40 x 20 pixels upright (EXIF orientation "
            "applied); correct one of them.",
        ),
        (
            document(image_size=[{"width": 20}]),
            'train_annotation/a.json: property "image_size" must be [{"width": ..., "height": ..., "depth": 3}] in '
            "pixels.",
        ),
        (
            document(annotations=None),
            'train_annotation/a.json: property "annotations" must be a list; an empty one for an image without '
            "objects.",
        ),
        (
            document(annotations=[OBJECT, {"class_id": 1}]),
            "train_annotation/a.json: annotation 1 must have the numbers class_id, left, top, width and height; it is "
            "{'class_id': 1}.",
        ),
        (
            document(annotations=[OBJECT | {"class_id": 0.5}]),
            "train_annotation/a.json: annotation 0 has class_id 0.5, which is not an integer.",
        ),
        (
            document(annotations=[OBJECT | {"class_id": 2}]),
            "train_annotation/a.json has class 2, but num_classes is 2: class ids go from 0 to 1.",
        ),
        (
            document(annotations=[OBJECT, OBJECT | {"height": -1}]),
            "train_annotation/a.json: annotation 1 has a negative width or height; correct it.",
        ),
        (
            document(annotations=[OBJECT | {"left": 30}]),
            "train_annotation/a.json: annotation 0 (left, top, right, bottom [30.0, 4.0, 50.0, 12.0]) lies outside the "
            "image of 40 x 20 pixels; correct it.",
        ),
        (
            document(categories=3),
            'train_annotation/a.json: property "categories" must be a list of {"class_id": ..., "name": ...}.',
        ),
        (
            document(annotations=[OBJECT | {"left": 1e300}]),
            "train_annotation/a.json: annotation 0 must have the numbers class_id, left, top, width and height; it is "
            "{'class_id': 1, 'left': 1e+300, 'top': 4, 'width': 20, 'height': 8}.",
        ),
        (
            document(categories=[{"name": "dog"}]),
            "train_annotation/a.json: an entry of \"categories\" must have class_id and name; it is {'name': 'dog'}.",
        ),
        (
            document(categories=[{"class_id": 0, "name": "dog"}, {"class_id": 0, "name": "cat"}]),
            'train_annotation/a.json: class 0 is named "cat", but "dog" in another annotation; use one name.',
        ),
    ],
)
def test_refusals(tmp_path: Path, text: str | dict[str, Any], message: str) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", text)
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(caught.value) == message


def test_two_annotations_of_one_image(tmp_path: Path) -> None:
    write_image(tmp_path / "train" / "a.jpg")
    write_annotation(tmp_path, "a.json", document())
    write_annotation(tmp_path, "b.json", document())
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        "train_annotation/b.json and train_annotation/a.json both annotate a.jpg; keep one of them."
    )


def test_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(b"text")
    write_annotation(tmp_path, "a.json", document())
    with pytest.raises(UserError, match=r"^a\.jpg: the file is no image; replace the file\.$"):
        read(tmp_path)


def test_empty_channels(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train_annotation").mkdir()
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"Channel train ({tmp_path}/train) holds no .jpg, .jpeg or .png file; check the S3 prefix of the channel."
    )
    write_image(tmp_path / "train" / "a.jpg")
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"Channel train_annotation ({tmp_path}/train_annotation) holds no .json file; it needs one annotation for each "
        "image."
    )


def pack(path: Path, rows: list[list[float]]) -> None:
    table = np.asarray(rows, dtype=np.float32).reshape(-1, 5)
    payload = recordio.pack(0, table[:, 1:], table[:, 0].astype(np.int64), b"image")
    recordio.write_records(path, iter([payload, payload]))


def test_record_channel(tmp_path: Path) -> None:
    pack(tmp_path / "a.rec", [[1, 0.1, 0.2, 0.3, 0.4]])
    samples = read_record_channel(tmp_path, num_classes=2).samples
    # Header 24, label 7 * 4, image 5: 57 bytes, padded to 60, with 8 of the record's header: the second is at 68.
    assert [sample.name for sample in samples] == ["a.rec: record 0 at byte 0", "a.rec: record 1 at byte 68"]
    assert samples[1].boxes == pytest.approx(np.asarray([[0.1, 0.2, 0.3, 0.4]]))
    assert samples[1].encoded() == b"image"


def test_pixels_in_recordio_are_named(tmp_path: Path) -> None:
    pack(tmp_path / "a.rec", [[1, 10, 20, 30, 40]])
    with pytest.raises(UserError) as caught:
        read_record_channel(tmp_path, num_classes=2)
    assert str(caught.value) == (
        "a.rec: record 0 at byte 0 has a box [10.0, 20.0, 30.0, 40.0] outside the image; RecordIO boxes are fractions "
        "of the image's width and height, not pixels."
    )


def test_number_of_rec_files(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_record_channel(tmp_path, num_classes=2)
    assert str(caught.value) == f"Channel {tmp_path.name} ({tmp_path}) must hold one .rec file; found: none."
    for name in ("a.rec", "b.rec"):
        (tmp_path / name).touch()
    with pytest.raises(UserError) as caught:
        read_record_channel(tmp_path, num_classes=2)
    assert str(caught.value) == f"Channel {tmp_path.name} ({tmp_path}) must hold one .rec file; found: a.rec, b.rec."


def test_rec_file_without_records(tmp_path: Path) -> None:
    (tmp_path / "a.rec").touch()
    with pytest.raises(UserError) as caught:
        read_record_channel(tmp_path, num_classes=2)
    assert str(caught.value) == f"a.rec of channel {tmp_path.name} holds no record."
