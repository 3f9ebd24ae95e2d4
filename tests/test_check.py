"""`ssd-algo check`, and what train says of its data."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import terminal
from conftest import SMALL, train, write_config
from test_bad_inputs import GOOD_RECORD, HYPERPARAMETERS, document, image_job, label, record_job, write_records

from ssd_algo import demo
from ssd_algo.data import anchors
from ssd_algo.model.network import build_network

BCCD = Path(__file__).parents[2] / "shared" / "data" / "bccd"
CHANNELS = ("train", "train_annotation", "validation", "validation_annotation")


def check(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ssd_algo.cli", "check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done


def annotate(data: Path, name: str, **changes: Any) -> None:
    channel = "validation" if name == "c" else "train"
    path = data / f"{channel}_annotation" / f"{name}.json"
    path.write_text(json.dumps(document(**{"file": f"{name}.jpg"} | changes)))


def test_the_table(tmp_path: Path) -> None:
    data = image_job(tmp_path)
    annotate(data, "b", annotations=[])
    done = check(*(data / channel for channel in CHANNELS))
    # The box is 20 x 8 of 40 x 20 pixels: half the width, 0.4 of the height, so sqrt(0.2) = 0.447 of the side or 134
    # pixels of 300. The anchors nearest by ratio: 0.51 of the side (ratio 1.14; 0.33 is 1.36 away).
    assert done.stdout == (
        "channel train: 2 images, 1 objects\n"
        "  sizes              40 x 20 (2)\n"
        "  objects per image  0 to 1, median 0.5\n"
        "  without objects    1 images\n"
        "  class  objects  images  name\n"
        "      0        0       0  dog\n"
        "      1        1       1  cat\n"
        "  boxes by the anchors nearest in size, at image_shape 300\n"
        "    under 10.5 pixels        0\n"
        "    21 pixels               0\n"
        "    45 pixels               0\n"
        "    99 pixels               0\n"
        "    153 pixels              1\n"
        "    207 pixels              0\n"
        "    261 pixels              0\n"
        "\n"
        "channel validation: 1 images, 1 objects\n"
        "  sizes              40 x 20 (1)\n"
        "  objects per image  1 to 1, median 1\n"
        "  without objects    0 images\n"
        "  class  objects  images  name\n"
        "      0        0       0  dog\n"
        "      1        1       1  cat\n"
        "  boxes by the anchors nearest in size, at image_shape 300\n"
        "    under 10.5 pixels        0\n"
        "    21 pixels               0\n"
        "    45 pixels               0\n"
        "    99 pixels               0\n"
        "    153 pixels              1\n"
        "    207 pixels              0\n"
        "    261 pixels              0\n"
        "\n"
        "images in both channels: 0\n"
        "\n"
        "Warnings\n"
        "  channel train: 1 of 2 classes (ids 0 to 1) without an object: 0; ids should have no gap.\n"
        "  channel validation: 1 of 2 classes (ids 0 to 1) without an object: 0; ids should have no gap.\n"
        "\n"
        "train takes this data, if num_classes fits: give it with --num-classes or --hyperparameters.\n"
    )
    assert done.stderr == ""  # no bar without a terminal
    assert done.returncode == 0


def test_all_faults_are_listed_by_their_rule(tmp_path: Path) -> None:
    data = image_job(tmp_path)
    annotate(data, "a", annotations=[{"class_id": 7, "left": 60, "top": 0, "width": 9, "height": 9}])
    annotate(data, "b", annotations=[{"class_id": 0, "left": 50, "top": 0, "width": 9, "height": 9}, {"class_id": 0}])
    (data / "validation" / "c.jpg").write_bytes(b"")
    done = check("--num-classes", 2, *(data / channel for channel in CHANNELS))
    assert done.returncode == 2
    assert done.stdout.split("channel train: 2 images, 0 objects\n")[1].split("\n\n", 1)[1] == (
        "Warnings\n"
        "  channel train: no image has an object; a detector learns nothing from it.\n"
        "\n"
        "1 x class beyond num_classes\n"
        "  train_annotation/a.json, annotation 0: has the class 7, but num_classes is 2: class ids go from 0 to 1.\n"
        "2 x box outside the image\n"
        "  train_annotation/a.json, annotation 0: reaches more than 5 % over the edge of the image of 40 x 20 pixels "
        "(left, top, right, bottom: 60, 0, 69, 9); correct it.\n"
        "  train_annotation/b.json, annotation 0: reaches more than 5 % over the edge of the image of 40 x 20 pixels "
        "(left, top, right, bottom: 50, 0, 59, 9); correct it.\n"
        "1 x missing property\n"
        "  train_annotation/b.json, annotation 1: left and top and width and height missing; it must have the numbers "
        "class_id, left, top, width, height.\n"
        "1 x unreadable image\n"
        "  validation/c.jpg: the file is empty; replace or remove the image.\n"
        "\n"
        "train refuses this data: 5 faults.\n"
    )


def test_json_is_what_train_leaves(tmp_path: Path) -> None:
    data = image_job(tmp_path)
    annotate(data, "a", annotations=[{"class_id": 7, "left": 10, "top": 0, "width": 9, "height": 0}])
    run = train(tmp_path, HYPERPARAMETERS)
    assert run.code == 2
    left = json.loads((tmp_path / "output" / "data" / "data_check.json").read_text())
    hyperparameters = tmp_path / "input" / "config" / "hyperparameters.json"
    done = check("--json", "--hyperparameters", hyperparameters, *(data / channel for channel in CHANNELS))
    assert done.returncode == 2
    assert json.loads(done.stdout) == left
    assert left["refused"] is True
    assert left["faults"] == [
        {
            "rule": "class beyond num_classes",
            "where": "train_annotation/a.json, annotation 0",
            "message": "train_annotation/a.json, annotation 0: has the class 7, but num_classes is 2: class ids go from 0 "
            "to 1.",
        }
    ]
    assert left["channels"]["validation"] == {
        "images": 1,
        "skipped": 0,
        "images_without_objects": 0,
        "objects": 1,
        "sizes": {"40 x 20": 1},
        "objects_per_image": [1, 1.0, 1],
        "classes": [
            {"class_id": 0, "name": "dog", "objects": 0, "images": 0, "side": None},
            {"class_id": 1, "name": "cat", "objects": 1, "images": 1, "side": 57.2},
        ],
        "boxes": [
            # image_shape 128: four maps, scales 0.07, 0.15, 0.51, 0.87 of it
            {"anchor": None, "smaller_than": 4.5, "boxes": 0},
            {"anchor": 9, "boxes": 0},
            {"anchor": 19, "boxes": 0},
            {"anchor": 65, "boxes": 1},
            {"anchor": 111, "boxes": 0},
        ],
    }


def test_wrong_hyperparameters_are_refused_first(tmp_path: Path) -> None:
    write_config(tmp_path, "hyperparameters", HYPERPARAMETERS | {"epochs": "0"})
    done = check("--hyperparameters", tmp_path / "input" / "config" / "hyperparameters.json", tmp_path / "train")
    assert done.stderr == 'ClientError: hyperparameters: epochs is "0" and must be an integer from 1 to 1000000.\n'
    assert done.returncode == 2


def test_a_folder_of_channels_and_a_channel_that_is_broken(tmp_path: Path) -> None:
    """The others are looked at nevertheless."""
    data = image_job(tmp_path)
    (data / ".hidden").mkdir()
    (data / "validation_annotation").rename(data / "validation_annotations")
    done = check("--num-classes", 2, data)
    assert done.returncode == 2
    assert "channel train: 2 images, 2 objects\n" in done.stdout
    assert (
        "1 x unknown channel\n"
        "  channel validation_annotations: there is no channel of this name (did you mean validation_annotation?); the "
        "channels are train, validation, train_annotation, validation_annotation, model, pretrained.\n"
    ) in done.stdout


def test_the_same_channel_twice(tmp_path: Path) -> None:
    data = image_job(tmp_path)
    done = check(data, data / "train")
    assert done.stderr == "ClientError: channel train is given more than once; give each channel once.\n"
    assert done.returncode == 2


def test_class_names_beside_records(tmp_path: Path) -> None:
    """As pack leaves them; two channels with another order are refused."""
    data = record_job(tmp_path)
    (data / "train" / "train.classes.txt").write_text("cat\ndog\n")
    assert "      1        1       1  dog\n" in check("--num-classes", 2, data).stdout
    (data / "validation" / "validation.classes.txt").write_text("dog\ncat\n")
    done = check("--num-classes", 2, data)
    assert done.returncode == 2
    assert (
        '  channel validation: class 0 is "dog", but in channel train it is "cat"; use one name, and the same order of '
        "classes.\n"
    ) in done.stdout


def test_files_without_use_are_named(tmp_path: Path) -> None:
    data = record_job(tmp_path)
    (data / "train" / "a.jpg").write_bytes(b"")
    done = check("--num-classes", 2, data)
    assert done.returncode == 0
    assert (
        "  channel train: it also holds 1 images (a.jpg, ...), which are not read: train/train.rec is.\n" in done.stdout
    )


def test_channels_by_name(tmp_path: Path) -> None:
    data = record_job(tmp_path)
    (data / "train").rename(data / "photos=1")
    done = check(f"train={data}/photos=1", data / "validation")
    assert done.returncode == 0
    assert "channel train: 1 images" in done.stdout


def test_images_of_both_channels(tmp_path: Path) -> None:
    data = record_job(tmp_path)  # the same record twice
    done = check(data / "train", data / "validation")
    assert "images in both channels: 1\n" in done.stdout
    assert (
        "  validation/validation.rec, record 0 at byte 0: is most likely the same image as train/train.rec, record 0 at "
        "byte 0; scores on it say little.\n"
    ) in done.stdout
    assert done.returncode == 0


def test_what_the_built_in_trains_on_warns(tmp_path: Path) -> None:
    data = tmp_path / "input" / "data"
    demo.write_channels(data, 8, 2, np.random.default_rng(0))
    (annotation,) = sorted((data / "train_annotation").iterdir())[:1]
    changed = json.loads(annotation.read_text())
    changed["annotations"].append({"class_id": 0, "left": 5, "top": 5, "width": 0, "height": 9})
    annotation.write_text(json.dumps(changed))
    run = train(
        tmp_path,
        SMALL
        | {
            "num_classes": "5",
            "num_training_samples": "100",
            "label_width": "7",
            "lr_scheduler_step": "1, 3",
            "freeze_layer_pattern": "^(layer1_).*",
            "mini_batch_size": "4",
        },
    )
    assert run.code == 0, run.err
    warnings = [line.split("] ", 1)[1] for line in run.out.splitlines() if " WARNING " in line]
    most = max(len(json.loads(path.read_text())["annotations"]) for path in (data / "train_annotation").iterdir())
    assert warnings[0] == (
        "lr_scheduler_step has 1, 3, but training ends after 1 epochs: the learning rate is not reduced there."
    )
    last = len(changed["annotations"]) - 1
    sentence = f"train_annotation/{annotation.name}, annotation {last}: has no area (5, 5, 5, 14) and is left out."
    assert sentence in warnings
    assert any(
        line.startswith(f"channel train: the widest label ({most} objects) needs a label_width of ")
        for line in warnings
    )
    assert "channel train: 2 of 5 classes (ids 0 to 4) without an object: 3, 4; ids should have no gap." in warnings
    assert (
        "channel train: num_training_samples is 100, but the channel has 8 images; the schedule follows the images."
        in warnings
    )
    assert warnings[-1].startswith(
        'freeze_layer_pattern "^(layer1_).*" matches no parameter, so that all are trained; their names are like '
        "conv0_weight, stage"
    )


def test_unreadable_images_up_to_max_bad_records(tmp_path: Path) -> None:
    """One is known from its header, one only when it is decoded; both channels have them."""
    data = tmp_path / "input" / "data"
    demo.write_channels(data, 8, 4, np.random.default_rng(0))
    for channel in ("train", "validation"):
        header, body = sorted((data / channel).iterdir())[:2]
        header.write_bytes(b"no image")
        whole = body.read_bytes()
        start = whole.index(b"\xff\xda")  # start of scan: no picture without it
        body.write_bytes(whole[:start] + channel.encode() + b"\xff\xd9")
    run = train(tmp_path, SMALL | {"max_bad_records": "2", "mini_batch_size": "4"})
    assert run.code == 0, run.err
    for channel in ("train", "validation"):
        assert f"{channel}/{channel}-0000.jpg: the file is no image; the image is skipped." in run.out
        assert f"{channel}/{channel}-0001.jpg: the " in run.out
        assert run.out.count(f"{channel}/{channel}-0001.jpg") == 1
    assert "Training on 7 images, validating on 3." in run.out
    once = train(tmp_path, SMALL | {"max_bad_records": "1", "mini_batch_size": "4"})
    assert once.code == 2
    size = (data / "train" / "train-0001.jpg").stat().st_size
    assert once.failure == (
        f"ClientError: train/train-0001.jpg: the {size} bytes are no image that can be decoded; replace or remove the "
        "image, or allow for it with max_bad_records."
    )


def test_validation_images_count_by_themselves(tmp_path: Path) -> None:
    """One unreadable by its header and one by its pixels are two."""
    data = tmp_path / "input" / "data"
    demo.write_channels(data, 8, 4, np.random.default_rng(0))
    header, body = sorted((data / "validation").iterdir())[:2]
    header.write_bytes(b"no image")
    whole = body.read_bytes()
    body.write_bytes(whole[: whole.index(b"\xff\xda")] + b"\xff\xd9")
    run = train(tmp_path, SMALL | {"max_bad_records": "1", "mini_batch_size": "4"})
    assert run.code == 2
    assert run.failure == (
        f"ClientError: validation/validation-0001.jpg: the {body.stat().st_size} bytes are no image that can be decoded; "
        "replace or remove the image, or allow for it with max_bad_records."
    )


def test_a_picture_of_augmented_samples(tmp_path: Path) -> None:
    """Twice the same for one seed; five rows of five."""
    demo.write_channels(tmp_path / "data", 30, 1, np.random.default_rng(0))
    pictures = []
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        command = [
            sys.executable,
            "-m",
            "ssd_algo.cli",
            "show",
            str(tmp_path / "data"),
            "--output",
            str(tmp_path / name),
        ]
        done = subprocess.run([*command, "--seed", str(seed), "--image-shape", "128"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{tmp_path}/{name}: 25 augmented images of 30.\n"
        pictures.append(cv2.imread(str(tmp_path / name)))
    assert pictures[0].shape == (5 * 128, 5 * 128, 3)
    assert (pictures[0] == pictures[1]).all()
    assert not (pictures[0] == pictures[2]).all()


def test_a_picture_of_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ssd_algo.cli", "show", str(tmp_path / "validation")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == "ClientError: channel train: it is missing; give its folder.\n"
    assert done.returncode == 2


def test_a_sixth_value_and_more_extras_are_fine(tmp_path: Path) -> None:
    data = record_job(tmp_path)
    image = GOOD_RECORD[24 + 4 * 7 :]
    write_records(
        data / "train" / "train.rec",
        label(2, 6, 1, 0.25, 0.25, 0.5, 0.5, 1) + image,
        label(4, 5, 40, 20, 0, 0.25, 0.25, 0.5, 0.5) + image,
        label(2, 5) + image,
    )
    done = check("--num-classes", 2, "--json", data / "train", data / "validation")
    figures = json.loads(done.stdout)["channels"]["train"]
    assert (figures["images"], figures["objects"], figures["images_without_objects"]) == (3, 2, 1)
    assert done.returncode == 0


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    data = image_job(tmp_path)
    command = [sys.executable, "-m", "ssd_algo.cli", "check", *(str(data / channel) for channel in CHANNELS)]
    code, written, out = terminal.run(command, both=False)
    assert code == 0
    assert "\r" not in out
    for channel in ("train", "validation"):
        assert re.search(rf"\rchannel {channel} 100%\|█+\|", written)


def test_unreadable_records_up_to_max_bad_records(tmp_path: Path) -> None:
    data = record_job(tmp_path)
    bad = GOOD_RECORD[: 24 + 4 * 7] + b"no image"
    write_records(data / "train" / "train.rec", bad, GOOD_RECORD)
    for most, code in (("1", 0), ("0", 2)):
        write_config(tmp_path, "hyperparameters", HYPERPARAMETERS | {"max_bad_records": most})
        file = tmp_path / "input" / "config" / "hyperparameters.json"
        done = check("--json", "--hyperparameters", file, data / "train", data / "validation")
        assert done.returncode == code
        report = json.loads(done.stdout)
        assert (report["channels"]["train"]["images"], report["channels"]["train"]["skipped"]) == (1, 1)
        told = "the image is skipped." if code == 0 else "replace or remove the image."
        sentence = f"train/train.rec, record 0 at byte 0: the file is no image; {told}"
        assert sentence in [each["message"] for each in report["warnings"] + report["faults"]]


@pytest.mark.skipif(not BCCD.is_dir(), reason="the blood cell photos are not beside the checkout")
def test_the_blood_cells() -> None:
    done = check("--num-classes", 3, *(BCCD / channel for channel in CHANNELS))
    assert done.returncode == 0
    assert done.stdout.split("Warnings\n")[1].splitlines() == [
        "  train_annotation/BloodImage_00338.json, annotation 12: has no area (504, 337, 504, 337) and is left out.",
        "  validation_annotation/BloodImage_00343.json, annotation 3: has no area (181, 329, 181, 329) and is left out.",
        "",
        "train takes this data.",
    ]


@pytest.mark.parametrize("base_network", ["vgg-16", "resnet-50"])
@pytest.mark.parametrize("image_shape", [128, 191, 193, 256, 257, 300, 447, 448, 512])
def test_the_number_of_feature_maps_is_the_networks(base_network: str, image_shape: int) -> None:
    outputs = build_network(base_network, image_shape, 2).symbol.get_internals().list_outputs()
    maps = [name for name in outputs if name.endswith("_cls_pred_rows_output")]
    assert anchors.map_count(image_shape) == len(maps)
