"""Training that starts from the model of channel model: the same classes, others, and what is refused."""

import io
import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import SMALL, Run, assert_refused, disk, read_images, train, write_config
from test_bad_inputs import HYPERPARAMETERS, image_job, record_job

from ssd_algo import demo
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.labels import Dataset
from ssd_algo.evaluation.evaluate import compare, score
from ssd_algo.inference import predictor
from ssd_algo.inference.engines import MXNetEngine
from ssd_algo.inference.predictor import Detections, Predictor
from ssd_algo.model import artifact
from ssd_algo.model.export import deploy_symbol
from ssd_algo.model.network import build_network, constants, initial_parameters
from ssd_algo.training.data import TrainingData
from ssd_algo.training.starting_point import build_network_to_train, class_head, starting_values

CHANNELS = ("train", "train_annotation", "validation", "validation_annotation")
FIVE = ("cross", "triangle", "circle", "star", "square")  # the demo's three among them, in another order
SLOW = {"learning_rate": "0.000001"}  # at which an epoch changes nothing but BatchNorm's statistics


def link_channels(source: Path, data: Path) -> Path:
    """The four channels of `source` as those of a new folder of channels, which is returned."""
    data.mkdir(parents=True, exist_ok=True)
    for channel in CHANNELS:
        (data / channel).symlink_to(source / channel)
    return data


def copy_model(model: Path, channel: Path) -> None:
    """Fill a model channel with a model's files."""
    channel.mkdir()
    for path in model.iterdir():
        (channel / path.name).write_bytes(path.read_bytes())


def model_files(classes: dict[int, str] | None = None, **changed: str) -> dict[str, str]:
    """What says of itself that it is a model of two classes, with some of it changed.

    Its network and parameters are none: nothing may look at them.
    """
    known = HYPERPARAMETERS | {"nms_threshold": "0.45", "nms_topk": "400"} | changed
    files = {"model_algo_1-symbol.json": "x", "model_algo_1-0000.params": "x", "hyperparams.json": json.dumps(known)}
    return files if classes is None else files | {"classes.json": json.dumps(classes)}


def pack_model(channel: Path, classes: dict[int, str] | None = None, **changed: str) -> None:
    """A model channel with a model.tar.gz of these."""
    channel.mkdir(parents=True)
    with tarfile.open(channel / "model.tar.gz", "w:gz") as tar:
        for name, content in model_files(classes, **changed).items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content.encode()))


def refuse(base: Path, sentence: str, **hyperparameters: str) -> None:
    """Train over `base`, where importing mxnet fails, and expect this sentence; `ssd-algo check` says it too."""
    poison = base / "poison"
    poison.mkdir()
    (poison / "mxnet.py").write_text("raise RuntimeError('mxnet is imported')")
    run = train(base, HYPERPARAMETERS | hyperparameters, PYTHONPATH=str(poison))
    assert_refused(run, sentence)
    report = json.loads((base / "output" / "data" / "data_check.json").read_text())
    assert report == json.loads(check(base, "--json").stdout)


def check(base: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """`ssd-algo check` over a base folder."""
    config = base / "input" / "config" / "hyperparameters.json"
    command = [sys.executable, "-m", "ssd_algo.cli", "check", "--hyperparameters", str(config), *options]
    return subprocess.run([*command, str(base / "input" / "data")], capture_output=True, text=True, timeout=120)


def warnings(run: Run) -> list[str]:
    """Of what the log warns, that which is about the model."""
    lines = [line.split("] ", 1)[1] for line in run.out.splitlines() if " WARNING " in line]
    return [line for line in lines if line.startswith("channel model")]


@pytest.mark.parametrize("packed", [True, False], ids=["model.tar.gz", "its contents"])
def test_an_epoch_at_a_small_rate_keeps_the_models_precision(tmp_path: Path, trained: Run, packed: bool) -> None:
    data = link_channels(trained.base / "input" / "data", tmp_path / "input" / "data")
    if packed:
        (data / "model").mkdir()
        (data / "model" / "model.tar.gz").symlink_to(trained.base / "output" / "model.tar.gz")
    else:
        copy_model(trained.base / "model", data / "model")
    types = {"model": {"ContentType": "Application/X-SageMaker-Model; v=1"}} if packed else {"model": {}}
    write_config(tmp_path, "inputdataconfig", {channel: {} for channel in CHANNELS} | types)
    # use_pretrained_model stays 1: the model's weights are the better start.
    hyperparameters = {name: value for name, value in SMALL.items() if name != "use_pretrained_model"}
    run = train(tmp_path, hyperparameters | SLOW | {"num_training_samples": "160"})
    assert run.code == 0, run.err
    assert "Training starts from the model of channel model.\n" in run.out
    assert "Classes carried over" not in run.out
    assert warnings(run) == []
    before, after = (
        json.loads((base / "output" / "data" / "metrics.json").read_text())["best"]["mAP"]
        for base in (trained.base, tmp_path)
    )
    assert before > 0.3
    assert after == pytest.approx(before, abs=0.01)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory, trained: Run) -> Path:
    """The four channels that the model was trained on, with the five classes' names and ids."""
    source, data = trained.base / "input" / "data", tmp_path_factory.mktemp("five")
    for channel in ("train", "validation"):
        (data / channel).symlink_to(source / channel)
        (data / f"{channel}_annotation").mkdir()
        for path in (source / f"{channel}_annotation").iterdir():
            document = json.loads(path.read_text())
            for each in document["annotations"]:
                each["class_id"] = FIVE.index(demo.CLASSES[each["class_id"]])
            document["categories"] = [{"class_id": identity, "name": name} for identity, name in enumerate(FIVE)]
            (data / f"{channel}_annotation" / path.name).write_text(json.dumps(document))
    return data


def average_precision(detector: Predictor, dataset: Dataset) -> tuple[dict[str, float], list[Detections]]:
    """By class name; and what was detected in each image."""
    found = []
    for sample in dataset.samples:
        found += detector.detect(detector.prepare(sample.encoded()).square[None])
    compared = [compare(*each) for each in zip(dataset.samples, found, strict=True)]
    by_class = score(compared, 0.5).voc
    return {dataset.class_names[identity]: each.area for identity, each in by_class.items()}, found


def test_known_classes_are_found_as_before_and_new_ones_are_not(trained: Run, five: Path) -> None:
    """Before any step; the artifact's classes have other ids, and there are two more."""
    hp = Hyperparameters.parse(SMALL | {"num_classes": "5", "transfer": "True"})
    dataset = read_images(five, "validation", num_classes=5)
    network = build_network("resnet-18", 128, 5)
    data = TrainingData(class_names=dataset.class_names, model=trained.base / "model")
    values = starting_values(network, hp, data, None)
    detector = Predictor(MXNetEngine(network.symbol, mx.cpu(), values), network.anchors, 128, 0.45, 400)
    after, found = average_precision(detector, dataset)
    original = read_images(trained.base / "input" / "data", "validation")
    before, _ = average_precision(predictor.load(trained.base / "model"), original)
    assert sorted(before) == ["circle", "square", "triangle"]
    assert min(before.values()) > 0.2
    assert after == pytest.approx(before, abs=0.02)
    assert {int(each) for one in found for each in one.classes} == {1, 2, 4}


@pytest.mark.parametrize(
    ("rate", "momentum"), [("0.1", 0.9), ("0.001", 0.9), ("0.0002", 0.98), ("0.00005", 0.995), ("1e-9", 0.995)]
)
def test_statistics_follow_as_fast_as_weights_do(trained: Run, rate: str, momentum: float) -> None:
    """Further training at a small rate must not replace a model's statistics by those of a few batches."""
    hp = Hyperparameters.parse(SMALL | {"learning_rate": rate})
    further = build_network_to_train(hp, TrainingData(model=trained.base / "model")).symbol
    assert momenta(further) == pytest.approx([momentum] * 22)
    assert momenta(build_network_to_train(hp, TrainingData()).symbol) == [0.9] * 22


def momenta(symbol: mx.sym.Symbol) -> list[float]:
    """Of all BatchNorm layers."""
    return [
        float(node["attrs"]["momentum"]) for node in json.loads(symbol.tojson())["nodes"] if node["op"] == "BatchNorm"
    ]


def test_training_with_new_classes(tmp_path: Path, trained: Run, five: Path) -> None:
    data = link_channels(five, tmp_path / "input" / "data")
    copy_model(trained.base / "model", data / "model")
    run = train(tmp_path, SMALL | SLOW | {"num_classes": "5", "transfer": "true", "num_training_samples": "160"})
    assert run.code == 0, run.err
    (line,) = re.findall(r"Classes carried over.*", run.out)
    assert line == ("Classes carried over from the model: triangle, circle, square (3). New classes: cross, star (2).")
    assert warnings(run) == []
    model = artifact.describe(tmp_path / "model")
    assert (model.num_classes, model.class_names) == (5, dict(enumerate(FIVE)))


def test_class_heads_are_rebuilt_row_by_row() -> None:
    """Two anchors a cell, the background and three classes; the result has classes 2, a new one, 0 and a new one."""
    weight = np.arange(2 * 4 * 3, dtype=np.float32).reshape(8, 3, 1, 1)
    rows = class_head(weight, 3, [2, None, 0, None])[:, 0, 0, 0] / 3
    assert rows.tolist() == [0, 3, 0, 1, 0, 4, 7, 4, 5, 4]
    bias = class_head(np.arange(8, dtype=np.float32), 3, [2, None, 0, None])
    lowered = 5 + np.log(2)
    assert bias == pytest.approx([0, 3, -lowered, 1, -lowered, 4, 7, 4 - lowered, 5, 4 - lowered])
    assert class_head(bias, 4, [0, 1, 2, 3]).tolist() == bias.tolist()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"base_network": "vgg-16"},
            "channel model: it holds a model with base_network vgg-16, but the hyperparameter base_network is resnet-18; "
            "they must be the same.",
        ),
        (
            {"num_classes": "20"},
            "channel model: it holds a model with num_classes 20, but the hyperparameter num_classes is 2; they must be "
            "the same, unless transfer is True, which matches classes by name.",
        ),
        (
            {"num_classes": "20", "base_network": "resnet-50"},
            "channel model: it holds a model with base_network resnet-50, but the hyperparameter base_network is "
            "resnet-18; they must be the same. (1 more like it; the log and data_check.json list all.)",
        ),
        (
            {"num_classes": "many"},
            '{base}/input/data/model/model.tar.gz/hyperparams.json: "num_classes" is missing or wrong; use the file that '
            "training wrote.",
        ),
    ],
)
def test_a_model_that_does_not_agree(tmp_path: Path, changed: dict[str, str], sentence: str) -> None:
    pack_model(image_job(tmp_path) / "model", **changed)
    place = "channel model: " * sentence.startswith("{base}")
    refuse(tmp_path, place + sentence.replace("{base}", str(tmp_path)))


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (
            None,
            "channel model: transfer is True, but the model has no class names, by which classes are matched; add them to "
            'its classes.json, as {"0": "dog", "1": "cat"}, or set transfer to False.',
        ),
        (
            {index: f"kind {index}" for index in range(7)},
            "channel model: transfer is True, but no class of the model (kind 0, kind 1, kind 2, kind 3, kind 4 and 2 more) "
            "has the name of one of the data (dog, cat); give them the same names, or leave out channel model.",
        ),
        (
            # An id beyond num_classes has no row.
            {0: "bird", 7: "dog"},
            "channel model: transfer is True, but no class of the model (bird, dog) has the name of one of the data (dog, "
            "cat); give them the same names, or leave out channel model.",
        ),
    ],
)
def test_transfer_without_a_class_in_common(tmp_path: Path, classes: dict[int, str] | None, sentence: str) -> None:
    pack_model(image_job(tmp_path) / "model", classes, num_classes="7")
    refuse(tmp_path, sentence, transfer="True")


def test_transfer_to_data_without_class_names(tmp_path: Path) -> None:
    pack_model(record_job(tmp_path) / "model", {0: "dog", 1: "cat"})
    refuse(
        tmp_path,
        "channel model: transfer is True, but the data has no class names, by which classes are matched; add categories to "
        "the annotations, or a .classes.txt to the .rec file, or set transfer to False.",
        transfer="True",
    )


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.txt",
            b"",
            "{base}/input/data/model holds no model: model_algo_1-symbol.json, model_algo_1-0000.params, hyperparams.json "
            "missing; unpack a model.tar.gz made by training there.",
        ),
        (
            "model.tar.gz",
            b"",
            "{base}/input/data/model/model.tar.gz is damaged and cannot be unpacked; upload it again.",
        ),
        (
            "model.tar.gz",
            None,
            '{base}/input/data/model/model.tar.gz: "classes.json" is a link, but a model has plain files only; pack them '
            "anew.",
        ),
    ],
    ids=["other files", "no archive", "link"],
)
def test_a_channel_without_a_model(tmp_path: Path, name: str, content: bytes | None, sentence: str) -> None:
    channel = image_job(tmp_path) / "model"
    channel.mkdir()
    if content is not None:
        (channel / name).write_bytes(content)
    else:
        with tarfile.open(channel / name, "w:gz") as tar:
            link = tarfile.TarInfo("classes.json")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
    refuse(tmp_path, "channel model: " + sentence.replace("{base}", str(tmp_path)))


def test_content_type_of_a_model(tmp_path: Path) -> None:
    pack_model(image_job(tmp_path) / "model")
    types = {"model": {"ContentType": "Application/X-Tar; v=1"}}
    write_config(tmp_path, "inputdataconfig", {channel: {} for channel in CHANNELS} | types)
    run = train(tmp_path, HYPERPARAMETERS)
    assert_refused(
        run,
        "channel model: its content type is application/x-tar; it must be application/x-sagemaker-model or none.",
    )


def test_what_is_warned_of(tmp_path: Path) -> None:
    """Names of classes that differ, and `transfer` without a model."""
    data = image_job(tmp_path)
    write_config(tmp_path, "hyperparameters", HYPERPARAMETERS | {"transfer": "True"})
    done = check(tmp_path)
    assert "  channel model: it is missing, so that transfer True has no effect.\n" in done.stdout
    assert done.returncode == 0, done.stdout
    pack_model(data / "model", {1: "dog", 0: "dog", 5: "bird"})
    write_config(tmp_path, "hyperparameters", HYPERPARAMETERS)
    done = check(tmp_path)
    assert (
        '  channel model: its class 1 is "dog", but that of the data is "cat"; with transfer True classes are matched by '
        "name.\n"
    ) in done.stdout
    assert done.returncode == 0, done.stdout


def test_without_hyperparameters_check_only_wants_a_model(tmp_path: Path) -> None:
    data = image_job(tmp_path)
    pack_model(data / "model", num_classes="20")
    command = [sys.executable, "-m", "ssd_algo.cli", "check", "--num-classes", "2", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    (data / "model" / "model.tar.gz").write_bytes(b"none")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert (
        f"  channel model: {data}/model/model.tar.gz is damaged and cannot be unpacked; upload it again.\n"
    ) in done.stdout


def test_another_image_shape_with_as_many_feature_maps(tmp_path: Path) -> None:
    data = tmp_path / "input" / "data"
    demo.write_channels(data, 8, 4, np.random.default_rng(0))
    network = build_network("resnet-18", 160, 3)
    values = initial_parameters(network, 160, np.random.default_rng(0)) | constants(network)
    known = SMALL | {"image_shape": "160", "nms_threshold": "0.45", "nms_topk": "400"}
    artifact.save(data / "model", deploy_symbol(network, 3, 0.45, 400), values, known, dict(enumerate(demo.CLASSES)))
    run = train(tmp_path, SMALL | {"image_shape": "192", "mini_batch_size": "4", "num_training_samples": "8"})
    assert run.code == 0, run.err
    assert "Training starts from the model of channel model.\n" in run.out
    # The anchors are those of the new shape.
    anchors = artifact.load_parameters(tmp_path / "model")["anchors"]
    assert anchors.tolist() == build_network("resnet-18", 192, 3).anchors[None].tolist()


def test_another_image_shape_with_more_feature_maps(tmp_path: Path, trained: Run) -> None:
    data = link_channels(trained.base / "input" / "data", tmp_path / "input" / "data")
    copy_model(trained.base / "model", data / "model")
    run = train(tmp_path, SMALL | {"image_shape": "192", "num_training_samples": "160"})
    assert_refused(
        run,
        "Channel model holds a model for image_shape 128 that does not fit image_shape 192: "
        "_plus7_cls_pred_conv_weight is (16, 512, 3, 3), not (24, 512, 3, 3); use the model's image_shape.",
    )


def test_parameters_in_a_pickle(tmp_path: Path) -> None:
    """They are not loaded: a pickle may run any program, as this one does."""
    data = image_job(tmp_path)
    (data / "model").mkdir()
    for name, content in model_files().items():
        (data / "model" / name).write_text(content)
    program = f"touch {tmp_path}/loaded"
    (data / "model" / artifact.PARAMETERS_FILE).write_bytes(b"cos\nsystem\n(S'" + program.encode() + b"'\ntR.")
    assert_refused(
        train(tmp_path, HYPERPARAMETERS),
        f"{data}/model/model_algo_1-0000.params is damaged and cannot be loaded; unpack the model.tar.gz again.",
    )
    assert not (tmp_path / "loaded").exists()


def test_a_disk_too_small_to_unpack_on(tmp_path: Path, trained: Run) -> None:
    data = link_channels(trained.base / "input" / "data", tmp_path / "input" / "data")
    (data / "model").mkdir()
    (data / "model" / "model.tar.gz").symlink_to(trained.base / "output" / "model.tar.gz")
    with disk(tmp_path / "small", megabytes=1) as mounted:
        assert_refused(
            train(tmp_path, SMALL | {"num_training_samples": "160"}, TMPDIR=str(mounted)),
            f"channel model: {data}/model/model.tar.gz cannot be unpacked into {mounted} (the disk is full); use an "
            "instance with a larger volume.",
        )
        assert list(mounted.iterdir()) == []
