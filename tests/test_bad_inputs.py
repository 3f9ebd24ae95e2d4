"""Every wrong input gets a sentence: through scripts/train, without mxnet, and nothing is written under input.

Each case takes a small job that is right, makes one thing wrong and states the whole failure sentence.
"""

import io
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL, assert_refused, gpu_machine, run_train, write_config
from PIL import Image

from ssd_algo.data import recordio

HYPERPARAMETERS = SMALL | {"num_classes": "2", "num_training_samples": "2"}
OBJECT = {"class_id": 1, "left": 10, "top": 4, "width": 20, "height": 8}
MAGIC = struct.pack("<I", recordio.MAGIC)

Change = Callable[[Path], object]


def document(**changes: Any) -> dict[str, Any]:
    """A valid annotation of a.jpg, which is 40 x 20, with some properties changed; None takes one away."""
    whole = {
        "file": "a.jpg",
        "image_size": [{"width": 40, "height": 20, "depth": 3}],
        "annotations": [OBJECT],
        "categories": [{"class_id": 0, "name": "dog"}, {"class_id": 1, "name": "cat"}],
    } | changes
    return {name: value for name, value in whole.items() if value is not None}


def write_image(path: Path, kind: str = "JPEG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(path.name.encode())
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, kind)


def image_job(base: Path) -> Path:
    """Images a.jpg and b.jpg to train on, c.jpg to validate; returns the folder of channels."""
    data = base / "input" / "data"
    for channel, name in (("train", "a"), ("train", "b"), ("validation", "c")):
        write_image(data / channel / f"{name}.jpg")
        folder = data / f"{channel}_annotation"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(document(file=f"{name}.jpg")))
    return data


def label(*values: float) -> bytes:
    return struct.pack("<IfQQ", len(values), 0, 0, 0) + struct.pack(f"<{len(values)}f", *values)


def jpeg() -> bytes:
    return recordio.unpack(GOOD_RECORD).image


def record_job(base: Path) -> Path:
    """One record to train on, one to validate; returns the folder of channels."""
    data = base / "input" / "data"
    for channel in ("train", "validation"):
        write_records(data / channel / f"{channel}.rec", GOOD_RECORD)
    return data


def write_records(path: Path, *payloads: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for payload in payloads:
            recordio.write_record(file, payload)


def good_record() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 40, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return label(2, 5, 1, 0.25, 0.25, 0.5, 0.5) + buffer.getvalue()


GOOD_RECORD = good_record()


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[..., None]:
    """Run train over tmp_path, where importing mxnet fails, and expect this sentence ({base} is the base folder)."""

    def check(sentence: str, hyperparameters: dict[str, str], **more: str) -> None:
        poison = tmp_path / "poison"
        poison.mkdir()
        (poison / "mxnet.py").write_text("raise RuntimeError('mxnet is imported')")
        write_config(tmp_path, "hyperparameters", hyperparameters)
        before = state(tmp_path / "input")
        run = run_train(tmp_path, **({"PYTHONPATH": str(poison)} | more))
        assert state(tmp_path / "input") == before
        assert_refused(run, sentence.replace("{base}", str(tmp_path)))

    return check


def changed(**values: str) -> dict[str, str]:
    return HYPERPARAMETERS | values


def without(name: str) -> dict[str, str]:
    return {key: value for key, value in HYPERPARAMETERS.items() if key != name}


@pytest.mark.parametrize(
    ("hyperparameters", "sentence"),
    [
        (without("num_classes"), "num_classes is missing and must be an integer from 1 to 10000"),
        (without("num_training_samples"), "num_training_samples is missing and must be an integer of at least 1"),
        (changed(num_classes=""), 'num_classes is "" and must be an integer from 1 to 10000'),
        (changed(num_classes="two"), 'num_classes is "two" and must be an integer from 1 to 10000'),
        (changed(num_classes="0"), 'num_classes is "0" and must be an integer from 1 to 10000'),
        (changed(num_training_samples="-3"), 'num_training_samples is "-3" and must be an integer of at least 1'),
        (
            changed(base_network="vgg16"),
            'base_network is "vgg16" and must be one of vgg-16, resnet-18, resnet-34, resnet-50, resnet-101',
        ),
        (
            changed(use_pretrained_model="2"),
            'use_pretrained_model is "2" and must be an integer from 0 to 1',
        ),
        (changed(epochs="0"), 'epochs is "0" and must be an integer from 1 to 1000000'),
        (changed(mini_batch_size="1.5"), 'mini_batch_size is "1.5" and must be an integer from 1 to 65536'),
        (changed(learning_rate="nan"), 'learning_rate is "nan" and must be a number above 0 and at most 1'),
        (changed(learning_rate="inf"), 'learning_rate is "inf" and must be a number above 0 and at most 1'),
        (changed(learning_rate="0"), 'learning_rate is "0" and must be a number above 0 and at most 1'),
        (
            changed(lr_scheduler_step="3;6"),
            'lr_scheduler_step is "3;6" and must be ascending epochs of at least 1 separated by commas, or empty',
        ),
        (
            changed(lr_scheduler_step="67, 33"),
            'lr_scheduler_step is "67, 33" and must be ascending epochs of at least 1 separated by commas, or empty',
        ),
        (changed(lr_scheduler_factor="1"), 'lr_scheduler_factor is "1" and must be a number above 0 and below 1'),
        (changed(optimizer="lamb"), 'optimizer is "lamb" and must be one of sgd, adam, rmsprop, adadelta'),
        (changed(momentum="-0.1"), 'momentum is "-0.1" and must be a number from 0 to 1'),
        (changed(weight_decay="1"), 'weight_decay is "1" and must be a number of at least 0 and below 1'),
        (changed(overlap_threshold="0"), 'overlap_threshold is "0" and must be a number above 0 and at most 1'),
        (changed(nms_threshold="1.5"), 'nms_threshold is "1.5" and must be a number above 0 and at most 1'),
        (changed(nms_topk="0"), 'nms_topk is "0" and must be an integer from 1 to 100000'),
        (changed(image_shape="127"), 'image_shape is "127" and must be an integer from 128 to 4096'),
        (changed(label_width="0"), 'label_width is "0" and must be an integer of at least 1'),
        (
            changed(freeze_layer_pattern="(conv"),
            'freeze_layer_pattern is "(conv" and must be a regular expression, or empty',
        ),
        (changed(early_stopping="maybe"), 'early_stopping is "maybe" and must be True or False'),
        (
            changed(early_stopping_tolerance="2"),
            'early_stopping_tolerance is "2" and must be a number from 0 to 1',
        ),
        (changed(kv_store="ring"), 'kv_store is "ring" and must be one of device, dist_sync, dist_async'),
        (changed(seed="-1"), 'seed is "-1" and must be an integer of at least 0'),
        (changed(max_bad_records="-1"), 'max_bad_records is "-1" and must be an integer of at least 0'),
        (changed(mini_batch_siz="4"), "mini_batch_siz is unknown (did you mean mini_batch_size?)"),
        (changed(dropout="0.5"), "dropout is unknown"),
        (
            without("num_classes") | {"epochs": "x", "zzz": "1"},
            'num_classes is missing and must be an integer from 1 to 10000; epochs is "x" and must be an integer from '
            "1 to 1000000; zzz is unknown",
        ),
        (
            changed(optimizer="x" * 2500),
            f'optimizer is "{"x" * 59}…" and must be one of sgd, adam, rmsprop, adadelta',
        ),
        (
            HYPERPARAMETERS | {f"unknown_{number:03d}": "1" for number in range(90)},
            # "unknown_000 is unknown" has 22 characters, with "; " 24: 37 of them are 886 characters, 38 are 910.
            "; ".join(f"unknown_{number:03d} is unknown" for number in range(37)) + "; and 53 more",
        ),
    ],
)
def test_hyperparameters(refuse: Callable[..., None], hyperparameters: dict[str, str], sentence: str) -> None:
    refuse(f"hyperparameters: {sentence}.", hyperparameters)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            None,
            "{base}/input/config/hyperparameters.json is missing; write the hyperparameters into it as a JSON object, "
            '{"num_classes": "2", "num_training_samples": "100", ...}.',
        ),
        (
            "{",
            "{base}/input/config/hyperparameters.json is not JSON in UTF-8 (Expecting property name enclosed in double "
            "quotes: line 1 column 2 (char 1)).",
        ),
        ("[]", "{base}/input/config/hyperparameters.json holds list, not a JSON object."),
        (
            '{"num_classes\\ud800": "2"}',
            "{base}/input/config/hyperparameters.json is not JSON in UTF-8 ('utf-8' codec can't encode character "
            "'\\ud800' in position 13: surrogates not allowed).",
        ),
        (
            '{"num_classes": ["2"]}',
            "{base}/input/config/hyperparameters.json: hyperparameter num_classes is a JSON object or array; give it as "
            "a string.",
        ),
    ],
)
def test_the_file_of_hyperparameters(tmp_path: Path, text: str | None, sentence: str) -> None:
    config = tmp_path / "input" / "config"
    config.mkdir(parents=True)
    if text is not None:
        (config / "hyperparameters.json").write_text(text)
    assert_refused(run_train(tmp_path), sentence.replace("{base}", str(tmp_path)))


def test_fewer_images_a_step_than_gpus(tmp_path: Path, refuse: Callable[..., None]) -> None:
    """GPUs are counted by the driver, here one of the test's own, with 4 of them."""
    image_job(tmp_path)
    refuse(
        "hyperparameters: mini_batch_size is 3, but this machine has 4 GPUs and each needs at least one image.",
        changed(mini_batch_size="3"),
        **gpu_machine(tmp_path / "machine", "Tesla V100-SXM2-16GB", (7, 0), gpus=4),
    )


def remove(path: Path) -> None:
    for each in path.iterdir():
        each.unlink()
    path.rmdir()


def configure(data: Path, **channels: dict[str, str]) -> None:
    write_config(data.parents[1], "inputdataconfig", channels)


IMAGES = {
    name: {"ContentType": "image/jpeg"} for name in ("train", "validation", "train_annotation", "validation_annotation")
}
RECORDS = {name: {"ContentType": "application/x-recordio"} for name in ("train", "validation")}


def test_names_that_are_no_text(tmp_path: Path, refuse: Callable[..., None]) -> None:
    """File names may be of any bytes."""
    data = record_job(tmp_path)
    os.rename(data / "train" / "train.rec", os.fsencode(data / "train") + b"/caf\xe9.rec")
    write_records(data / "train" / "caf\udce9.rec", b"short")
    refuse(
        "train/caf\\udce9.rec, record 0 at byte 0: it has 5 bytes, fewer than a header's 24; correct the label and pack the "
        "file again.",
        HYPERPARAMETERS,
    )


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    image_job(tmp_path)
    (tmp_path / "output").write_text("a file where a folder belongs")
    write_config(tmp_path, "hyperparameters", HYPERPARAMETERS)
    run = run_train(tmp_path)
    assert run.code == 2
    assert run.err.splitlines() == [
        f"The failure file cannot be written: [Errno 17] File exists: '{tmp_path}/output'",
        f"ClientError: {tmp_path}/output/failure cannot be read or written (Not a directory); check it and its permissions.",
    ]


@pytest.mark.parametrize(
    ("job", "change", "sentence"),
    [
        (
            image_job,
            lambda data: remove(data / "validation"),
            "channel validation: it is missing (channels: train, train_annotation, validation_annotation); training needs "
            "train and validation, and for images with JSON annotations also train_annotation and validation_annotation.",
        ),
        (
            image_job,
            lambda data: [remove(path) for path in data.iterdir()],
            "channel train: it is missing (channels: none); training needs train and validation, and for images with JSON "
            "annotations also train_annotation and validation_annotation. (1 more like it; the log and data_check.json "
            "list all.)",
        ),
        (
            image_job,
            lambda data: (data / "train_annotation").rename(data / "train_anotation"),
            "channel train_anotation: there is no channel of this name (did you mean train_annotation?); the channels are "
            "train, validation, train_annotation, validation_annotation, model, pretrained. (1 of other kinds; the log and "
            "data_check.json list all.)",
        ),
        (
            image_job,
            lambda data: (data / "raw").mkdir(),
            "channel raw: there is no channel of this name; the channels are train, validation, train_annotation, "
            "validation_annotation, model, pretrained.",
        ),
        (
            image_job,
            lambda data: [path.unlink() for path in (data / "train").iterdir()],
            "channel train: {base}/input/data/train holds no file; check the path or S3 prefix.",
        ),
        (
            record_job,
            lambda data: [configure(data, **RECORDS), remove(data / "train")],
            "channel train: there is no folder {base}/input/data/train; check the path or S3 prefix.",
        ),
        (
            image_job,
            lambda data: configure(data, **IMAGES | {"train": {"ContentType": "text/csv"}}),
            "channel train: its content type is text/csv; it must be one of application/x-recordio, image/jpeg, "
            "image/png, application/x-image.",
        ),
        (
            image_job,
            lambda data: configure(data, **IMAGES | {"train_annotation": {"ContentType": "application/x-recordio"}}),
            "channel train_annotation: its content type is application/x-recordio; it must be one of image/jpeg, "
            "image/png, application/x-image, application/json.",
        ),
        (
            image_job,
            lambda data: configure(data, **IMAGES | {"train": {"ContentType": "application/x-recordio"}}),
            "channel train: its content type is application/x-recordio, which has its labels in the .rec file, but there "
            "is a channel train_annotation too; leave it out, or give channel train one of the types image/jpeg, "
            "image/png, application/x-image.",
        ),
        (
            image_job,
            lambda data: configure(data, **RECORDS),
            "channel train: it holds 2 images and no .rec file, but its content type is application/x-recordio; give "
            "their JSON annotations in a channel train_annotation, with a content type of images. (1 more like it; the "
            "log and data_check.json list all.)",
        ),
        (
            image_job,
            lambda data: configure(data, **{name: IMAGES[name] for name in IMAGES if name != "train_annotation"}),
            "channel train_annotation: it is missing: channel train holds images (image/jpeg), which need their JSON "
            "annotations.",
        ),
        (
            image_job,
            lambda data: remove(data / "train_annotation"),
            "channel train: it holds 2 images and no .rec file; give their JSON annotations in a channel "
            "train_annotation, with a content type of images.",
        ),
        (
            record_job,
            lambda data: [
                (data / "train_annotation").mkdir(),
                (data / "train_annotation" / "a.json").write_text(json.dumps(document())),
            ],
            "channel train: it holds train.rec and no image, but there is a channel train_annotation; leave that out, "
            "with the content type application/x-recordio or none for channel train.",
        ),
        (
            record_job,
            lambda data: configure(data, **RECORDS | {"train": {"TrainingInputMode": "Stream"}}),
            'channel train: its input mode is "Stream"; it must be File, FastFile or, for train and validation, Pipe.',
        ),
        (
            record_job,
            lambda data: (data / "train" / "train.rec").rename(data / "train" / "train.record"),
            "channel train: {base}/input/data/train holds no .rec file; check the path or S3 prefix.",
        ),
        (
            image_job,
            lambda data: [path.rename(path.with_suffix(".txt")) for path in (data / "train_annotation").iterdir()],
            "channel train_annotation: {base}/input/data/train_annotation holds no .json file; there must be one "
            "annotation for each image.",
        ),
        (
            image_job,
            lambda data: [path.rename(path.with_suffix(".gif")) for path in (data / "train").iterdir()],
            "channel train: {base}/input/data/train holds no .jpg, .jpeg or .png file; check the path or S3 prefix.",
        ),
        (
            record_job,
            lambda data: configure(data, train="application/x-recordio", validation={}),  # type: ignore[arg-type]
            "{base}/input/config/inputdataconfig.json: the value of channel train is not a JSON object.",
        ),
        (
            record_job,
            lambda data: (data / "model").mkdir(),
            "channel model: {base}/input/data/model holds no file; check the path or S3 prefix.",
        ),
        (
            record_job,
            lambda data: write_config(data.parents[1], "resourceconfig", {"hosts": 5}),
            '{base}/input/config/resourceconfig.json: "hosts" must be a list of host names; it is 5.',
        ),
    ],
)
def test_channels(
    tmp_path: Path, refuse: Callable[..., None], job: Callable[[Path], Path], change: Change, sentence: str
) -> None:
    (tmp_path / "input" / "config").mkdir(parents=True)
    change(job(tmp_path))
    refuse(sentence, HYPERPARAMETERS)


def replace(name: str, content: bytes | str | dict[str, Any]) -> Change:
    """Write a file of the channels anew."""

    def change(data: Path) -> None:
        text = content if isinstance(content, bytes | str) else json.dumps(content)
        (data / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return change


def annotate(**changes: Any) -> Change:
    return replace("train_annotation/a.json", document(**changes))


def one_object(**changes: Any) -> Change:
    """The second object of a.json with some numbers changed; None takes one away."""
    entry = {name: value for name, value in (OBJECT | changes).items() if value is not None}
    return annotate(annotations=[OBJECT, entry])


A = "train_annotation/a.json"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            replace(A, "{"),
            f"{A}: the file is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)); "
            "correct or remove it.",
        ),
        (replace(A, b'{"file": "\xe4.jpg"}'), f"{A}: the file is not UTF-8: byte 10 is 0xe4; save it as UTF-8."),
        (replace(A, "[1]"), f"{A}: the file holds a list, not an object with file, image_size and annotations."),
        (replace(A, "null"), f"{A}: the file holds null, not an object with file, image_size and annotations."),
        (
            annotate(file=None),
            f'{A}: the property "file" is missing; it must be the path of the image below its channel.',
        ),
        (annotate(file=3), f'{A}: "file" is 3; it must be the path of the image below its channel.'),
        (
            annotate(file="z.jpg"),
            f'{A}: "file" is "z.jpg", but channel train holds no such image; add it, or remove the annotation.',
        ),
        (
            annotate(file="../validation/c.jpg"),
            f'{A}: "file" is "../validation/c.jpg", which leads out of channel train; give the path below it.',
        ),
        (
            annotate(file="b.jpg"),
            f'{A}: "file" is "b.jpg", but channel train holds an image named a, as the annotation is; name that one, or '
            "rename the annotation.",
        ),
        (
            lambda data: [
                write_image(data / "train" / "1" / "d.jpg"),
                write_image(data / "train" / "2" / "d.jpg"),
                replace("train_annotation/d.json", document(file="d.jpg"))(data),
            ],
            'train_annotation/d.json: "file" is "d.jpg", but channel train holds 2 images of that name (1/d.jpg, 2/d.jpg, '
            "...); give the whole path.",
        ),
        (
            replace("train_annotation/z.json", document()),
            f"train_annotation/z.json: annotates a.jpg, as {A} does; keep one of them.",
        ),
        (
            annotate(image_size=None),
            f'{A}: the property "image_size" is missing; it must be [{{"width": ..., "height": ..., "depth": 3}}] in '
            "pixels.",
        ),
        (
            annotate(image_size=[{"width": "40", "height": 20}]),
            f'{A}: "image_size" is [{{"width": "40", "height": 20}}]; it must be [{{"width": ..., "height": ..., "depth": '
            "3}] in pixels.",
        ),
        (
            annotate(image_size=[{"width": 20, "height": 40, "depth": 3}]),
            f"{A}: it says 20 x 40 pixels, but train/a.jpg is 40 x 20 upright (EXIF orientation applied); correct one of "
            "them.",
        ),
        (
            annotate(annotations=None),
            f'{A}: the property "annotations" is missing; it must be a list of objects, an empty one for an image without '
            "any.",
        ),
        (
            annotate(annotations={"class_id": 1}),
            f'{A}: "annotations" is {{"class_id": 1}}; it must be a list of objects, an empty one for an image without '
            "any.",
        ),
        (
            annotate(annotations=[OBJECT, 7]),
            f"{A}, annotation 1: it is 7, not an object with class_id, left, top, width, height.",
        ),
        (
            one_object(top=None, width=None),
            f"{A}, annotation 1: top and width missing; it must have the numbers class_id, left, top, width, height.",
        ),
        (one_object(left="10"), f'{A}, annotation 1: left is "10"; it must be a number.'),
        (one_object(left=True), f"{A}, annotation 1: left is true; it must be a number."),
        (one_object(left=float("nan")), f"{A}, annotation 1: left is nan, which is not a finite number."),
        (one_object(width=float("inf")), f"{A}, annotation 1: width is inf, which is not a finite number."),
        (one_object(class_id=-1), f"{A}, annotation 1: has the class -1; class ids go from 0."),
        (
            one_object(class_id=0.5),
            f"{A}, annotation 1: has the class 0.5, which is not an integer; class ids go from 0.",
        ),
        (
            one_object(class_id=2),
            f"{A}, annotation 1: has the class 2, but num_classes is 2: class ids go from 0 to 1; if yours start at 1, "
            "subtract 1.",
        ),
        (
            annotate(annotations=[OBJECT | {"left": 0.25, "top": 0.2, "width": 0.5, "height": 0.4}]),
            f"{A}, annotation 0: all boxes of the image lie within its first pixel, as fractions would; this format holds "
            "pixels: multiply them with the image's width and height.",
        ),
        (
            replace(A, {"images": [], "annotations": [], "categories": []}),
            f"{A}: the file is in COCO's format, which is not read directly; make a .rec file with ssd-algo pack.",
        ),
        (
            annotate(file="A.JPEG"),
            f'{A}: "file" is "A.JPEG", but channel train holds no such image (did you mean a.jpg?); add it, or remove the '
            "annotation.",
        ),
        (
            one_object(height=-1),
            f"{A}, annotation 1: has a negative size (10, 4, 30, 3); its right and bottom must be larger than its left "
            "and top.",
        ),
        (
            one_object(left=23),
            # 43 of 40 pixels is 7.5 % over.
            f"{A}, annotation 1: reaches more than 5 % over the edge of the image of 40 x 20 pixels (left, top, right, "
            "bottom: 23, 4, 43, 12); correct it.",
        ),
        (
            annotate(categories={"0": "dog"}),
            f'{A}: "categories" is {{"0": "dog"}}; it must be a list of {{"class_id": ..., "name": ...}}.',
        ),
        (
            annotate(categories=[{"name": "dog"}]),
            f'{A}: an entry of "categories" is {{"name": "dog"}}; it must be {{"class_id": ..., "name": ...}}.',
        ),
        (
            replace("train_annotation/b.json", document(file="b.jpg", categories=[{"class_id": 0, "name": "cow"}])),
            'train_annotation/b.json: "categories" calls class 0 "cow", but others call it "dog"; use one name.',
        ),
        (
            replace(
                "validation_annotation/c.json", document(file="c.jpg", categories=[{"class_id": 0, "name": "cow"}])
            ),
            'channel validation: class 0 is "cow", but in channel train it is "dog"; use one name, and the same order of '
            "classes.",
        ),
        (
            replace("train/a.jpg", b"no image"),
            "train/a.jpg: the file is no image; replace or remove the image.",
        ),
        (replace("train/a.jpg", b""), "train/a.jpg: the file is empty; replace or remove the image."),
        (
            lambda data: (data / "train" / "a.jpg").write_bytes((data / "train" / "a.jpg").read_bytes()[:-50]),
            "train/a.jpg: the JPEG image is cut off: its end marker is missing; replace or remove the image.",
        ),
        (
            lambda data: write_image(data / "train" / "a.jpg", "GIF"),
            "train/a.jpg: a GIF image cannot be decoded here; JPEG and PNG can; replace or remove the image.",
        ),
        (
            lambda data: [one_object(left=30, class_id=9)(data), replace("train_annotation/b.json", "")(data)],
            f"{A}, annotation 1: has the class 9, but num_classes is 2: class ids go from 0 to 1. (2 of other kinds; the "
            "log and data_check.json list all.)",
        ),
        (
            one_object(left=-1e300),
            f"{A}, annotation 1: left is -1e+300; it must be a number.",
        ),
    ],
)
def test_annotations(tmp_path: Path, refuse: Callable[..., None], change: Change, sentence: str) -> None:
    change(image_job(tmp_path))
    refuse(sentence, HYPERPARAMETERS)


def records(*payloads: bytes) -> Change:
    return lambda data: write_records(data / "train" / "train.rec", *payloads)


def raw(content: bytes) -> Change:
    return replace("train/train.rec", content)


# GOOD_RECORD behind 8 bytes of its own, padded to 4: where the second record starts.
SECOND = 8 + len(GOOD_RECORD) + -len(GOOD_RECORD) % 4
FIRST_AT = "train/train.rec, record 0 at byte 0"
SECOND_AT = f"train/train.rec, record 1 at byte {SECOND}"
UNREAD = "it and what follows cannot be read: write the file again with im2rec or ssd-algo pack."
AGAIN = "correct the label and pack the file again."


def second(*values: float) -> Change:
    """A good record, then one with this label."""
    return records(GOOD_RECORD, label(*values) + jpeg())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            raw(b"not a record file"),
            f"{FIRST_AT}: it does not start with the RecordIO magic number 0xced7230a; {UNREAD}",
        ),
        (raw(MAGIC), f"{FIRST_AT}: it is cut off: the file ends within its header; {UNREAD}"),
        (
            raw(MAGIC + struct.pack("<I", 100) + b"abc"),
            f"{FIRST_AT}: it is cut off: 100 bytes announced, 3 there; {UNREAD}",
        ),
        (
            lambda data: (data / "train" / "train.rec").write_bytes(
                (data / "train" / "train.rec").read_bytes() + MAGIC + struct.pack("<I", 9)
            ),
            f"{SECOND_AT}: it is cut off: 9 bytes announced, 0 there; {UNREAD}",
        ),
        (
            raw(MAGIC + struct.pack("<I", 3 << 29 | 4) + b"abcd"),
            f"{FIRST_AT}: it has the continuation flag 3 where none of that kind may be; {UNREAD}",
        ),
        (
            raw((MAGIC + struct.pack("<I", 1 << 29 | 4) + b"abcd") * 2),
            f"{FIRST_AT}: it has the continuation flag 1 where none of that kind may be; {UNREAD}",
        ),
        (raw(b""), "train/train.rec: the file is empty; check how it was packed and uploaded."),
        (
            records(GOOD_RECORD, b"short"),
            f"{SECOND_AT}: it has 5 bytes, fewer than a header's 24; {AGAIN}",
        ),
        (
            records(GOOD_RECORD, struct.pack("<IfQQ", 0, 3.0, 0, 0) + jpeg()),
            f"{SECOND_AT}: it holds one class and no box, as records for image classification do; write the file with "
            f"im2rec --pack-label from a list with boxes; {AGAIN}",
        ),
        (
            records(GOOD_RECORD, struct.pack("<IfQQ", 10**6, 0, 0, 0) + b"1234"),
            f"{SECOND_AT}: its header announces 1000000 label values in a record of 28 bytes; at least 2 and their room "
            f"are needed; {AGAIN}",
        ),
        (
            second(2, 5, 1, 0.1, 0.2, 0.3),
            f"{SECOND_AT}: 6 label values do not make a header of 2 (at least 2) and objects of 5 (at least 5: class, "
            f"xmin, ymin, xmax, ymax); {AGAIN}",
        ),
        (
            second(1, 5, 1, 0.1, 0.2, 0.3),
            f"{SECOND_AT}: 6 label values do not make a header of 1 (at least 2) and objects of 5 (at least 5: class, "
            f"xmin, ymin, xmax, ymax); {AGAIN}",
        ),
        (
            second(2, 4, 1, 0.1, 0.2, 0.3),
            f"{SECOND_AT}: 6 label values do not make a header of 2 (at least 2) and objects of 4 (at least 5: class, "
            f"xmin, ymin, xmax, ymax); {AGAIN}",
        ),
        (
            second(2, 5, 1, 0.1, 0.2, float("nan"), 0.4),
            f"{SECOND_AT}, object 0: has a value that is not a finite number; correct it.",
        ),
        (
            second(2, 5, 1, 10, 4, 30, 12),
            f"{SECOND_AT}, object 0: the box 10, 4, 30, 12 is in pixels, but RecordIO labels hold fractions of the "
            "image's width and height; divide, and pack the file again.",
        ),
        (
            second(2, 5, 1, 0.5, 0.25, 0.25, 0.5),
            f"{SECOND_AT}, object 0: has swapped corners (0.5, 0.25, 0.25, 0.5); the order is xmin, ymin, xmax, ymax.",
        ),
        (
            second(2, 6, 1, 0.5, 0.25, 1.25, 0.5, 0),
            f"{SECOND_AT}, object 0: reaches more than 0.05 over the image's edge (0.5, 0.25, 1.25, 0.5); its corners "
            "must lie between 0 and 1.",
        ),
        (
            second(2, 5, -1, 0.25, 0.25, 0.5, 0.5),
            f"{SECOND_AT}, object 0: has the class -1; class ids go from 0.",
        ),
        (
            second(2, 5, 1.5, 0.25, 0.25, 0.5, 0.5),
            f"{SECOND_AT}, object 0: has the class 1.5, which is not an integer; class ids go from 0.",
        ),
        (
            second(3, 5, 99, 2, 0.25, 0.25, 0.5, 0.5),
            f"{SECOND_AT}, object 0: has the class 2, but num_classes is 2: class ids go from 0 to 1; if yours start at "
            "1, subtract 1.",
        ),
        (
            records(GOOD_RECORD, label(2, 5, 1, 0.25, 0.25, 0.5, 0.5) + b"no image"),
            f"{SECOND_AT}: the file is no image; replace or remove the image.",
        ),
        (
            records(GOOD_RECORD, GOOD_RECORD[:-20]),
            f"{SECOND_AT}: the JPEG image is cut off: its end marker is missing; replace or remove the image.",
        ),
    ],
)
def test_records(tmp_path: Path, refuse: Callable[..., None], change: Change, sentence: str) -> None:
    change(record_job(tmp_path))
    refuse(sentence, HYPERPARAMETERS)
