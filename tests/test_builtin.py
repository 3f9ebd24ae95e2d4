"""Models of the built-in algorithm itself: served, trained on, exported."""

import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import builtin_models as builtin
import mxnet as mx
import numpy as np
import pytest
from conftest import SERVE, SMALL, Run, assert_refused, environment, train
from numpy.typing import NDArray

from ssd_algo import demo
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.images import decode, to_square
from ssd_algo.data.labels import Dataset
from ssd_algo.errors import UserError
from ssd_algo.inference import predictor
from ssd_algo.inference.predictor import Detections
from ssd_algo.model import artifact, builtin_graph, graph
from ssd_algo.training.data import TrainingData
from ssd_algo.training.starting_point import build_network_to_train, starting_values

VGG_MEAN = np.asarray((123, 117, 104), dtype=np.float32)


def blocks(side: int, count: int = 2) -> NDArray[np.uint8]:
    """Pictures of coloured blocks, (B, S, S, 3)."""
    small = np.random.default_rng(1).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    rows = np.arange(side) * 8 // side
    return np.ascontiguousarray(small[:, rows][:, :, rows])


def make(
    directory: Path, base_network: str, side: int, deployed: bool = False, input_mean: float = 110.0
) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """A model with random weights; of a deployed one only the deployed files."""
    symbol = (builtin.deployed_symbol if deployed else builtin.training_symbol)(base_network, side, 3)
    parameters = builtin.random_parameters(symbol, side, np.random.default_rng(0), input_mean)
    prefix = "deploy_model_algo_1" if deployed else "model_algo_1"
    builtin.save(directory, symbol, parameters, base_network, side, 3, prefix)
    return symbol, parameters


def assert_equal(found: Detections, rows: NDArray[np.float32]) -> None:
    """Detections are those of an operator's output, (A, 6), whose rows of class -1 are none."""
    rows = rows[rows[:, 0] >= 0]
    rows = rows[np.argsort(-rows[:, 1], kind="stable")]
    assert len(rows) > 30
    assert found.classes.tolist() == rows[:, 0].tolist()
    np.testing.assert_allclose(found.scores, rows[:, 1], atol=1e-4)
    np.testing.assert_allclose(found.boxes, rows[:, 2:], atol=1e-4)


@pytest.mark.parametrize(
    ("base_network", "side", "deployed", "mean"),
    [("resnet-50", 128, False, 0), ("resnet-50", 192, True, 0), ("vgg-16", 300, False, VGG_MEAN)],
)
def test_detections_are_those_of_its_own_operator(
    tmp_path: Path, base_network: str, side: int, deployed: bool, mean: NDArray[np.float32]
) -> None:
    """Of both engines; the deployed symbol suppresses across classes, as the public script makes it."""
    symbol, parameters = make(tmp_path, base_network, side, deployed)
    images = blocks(side)
    data = (images - mean).transpose(0, 3, 1, 2).astype(np.float32)
    output = "detection_output" if deployed else "det_out_output"
    expected = builtin.detections(symbol, parameters, data, output)
    for load in (predictor.load, predictor.load_reference):
        for found, rows in zip(load(tmp_path).detect(images), expected, strict=True):
            assert_equal(found, rows)


def test_serving(tmp_path: Path) -> None:
    """The archive as SageMaker unpacks it, through the front door; its rows are those of `det_out`."""
    model = tmp_path / "model"
    symbol, parameters = make(model, "resnet-50", 128)
    photo = np.ascontiguousarray(blocks(128, 1)[0, :, :, ::-1])
    encoded = encode(photo)
    square = to_square(decode(encoded), 128)
    with demo.serving(SERVE, environment(tmp_path), tmp_path / "log") as url:
        rows = np.asarray(demo.post_image(url, encoded)["prediction"], dtype=np.float32)
    data = square.transpose(2, 0, 1)[None].astype(np.float32)
    (expected,) = builtin.detections(symbol, parameters, data, "det_out_output")
    assert_equal(Detections(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int64)), expected)
    log = (tmp_path / "log").read_text()
    assert (
        "The model is one of the built-in algorithm (resnet-50, 128): it is given raw RGB, as the mean that its input's "
        "BatchNorm saw in training, 110.0, shows." in log
    )


def encode(bgr: NDArray[np.uint8]) -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", bgr)[1])


@pytest.mark.parametrize(
    ("seen", "given", "in_artifact", "mean", "told"),
    [
        (110.0, None, None, (0, 0, 0), "raw RGB, as the mean that its input's BatchNorm saw in training, 110.0, shows"),
        (
            -1.5,
            None,
            None,
            (123, 117, 104),
            "RGB less (123, 117, 104), as the mean that its input's BatchNorm saw in training, -1.5, shows",
        ),
        (110.0, (1.0, 2.5, 3.0), None, (1, 2.5, 3), "RGB less (1, 2.5, 3), as it was asked for"),
        (0.0, None, "0, 0, 0", (0, 0, 0), "raw RGB, as it was asked for"),
    ],
)
def test_what_is_subtracted_from_the_input(
    tmp_path: Path,
    seen: float,
    given: artifact.Mean | None,
    in_artifact: str | None,
    mean: tuple[float, ...],
    told: str,
) -> None:
    make(tmp_path, "resnet-50", 128, input_mean=seen)
    if in_artifact is not None:
        path = tmp_path / "hyperparams.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"_input_mean": in_artifact}))
    model = artifact.read(tmp_path, given)
    assert model.parameters["data_mean"].ravel().tolist() == list(mean)
    assert model.preprocessing == f"The model is one of the built-in algorithm (resnet-50, 128): it is given {told}."


def test_a_mean_that_is_none(tmp_path: Path) -> None:
    make(tmp_path, "resnet-50", 128)
    path = tmp_path / "hyperparams.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_input_mean": "nan,1,2"}))
    with pytest.raises(UserError) as caught:
        artifact.describe(tmp_path)
    assert str(caught.value) == (
        f'{path}: "_input_mean" is "nan,1,2"; it must be three numbers from 0 to 255, as "123, 117, 104" or "0, 0, 0".'
    )


def test_a_server_is_told_the_mean(tmp_path: Path, trained: Run) -> None:
    """Of a model that leaves it open; a model of ours has its own inside."""
    make(tmp_path / "model", "resnet-50", 128)
    log = tmp_path / "log"
    with demo.serving(SERVE, environment(tmp_path, SSD_ALGO_INPUT_MEAN="1,2,3"), log):
        assert "it is given RGB less (1, 2, 3), as it was asked for." in log.read_text()
    given = environment(trained.base, SSD_ALGO_INPUT_MEAN="0,0,0")
    refused = subprocess.run(SERVE, env=given, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stderr) == (
        2,
        f"ClientError: {trained.base}/model: an input mean is given, but the model has its own inside; it is for models "
        "as the built-in algorithm left them. Leave it out.\n",
    )


def test_names_of_nodes_do_not_matter(tmp_path: Path) -> None:
    make(tmp_path, "resnet-50", 128)
    path = tmp_path / "model_algo_1-symbol.json"
    graph = json.loads(path.read_text())
    before = builtin_graph.adopted(path.read_text(), 128)
    for number, node in enumerate(graph["nodes"]):
        if node["op"] != "null":
            node["name"] = f"node{number}"
        node["attr"] = node.pop("attrs", {})  # as releases before 1.0 wrote it
    after = builtin_graph.adopted(json.dumps(graph), 128)
    assert (before.anchors == after.anchors).all()
    parameters = artifact.read(tmp_path).parameters
    for symbol in (before.symbol, after.symbol):
        assert artifact.load_symbol(symbol).list_outputs() == ["class_logits_output", "box_offsets_output"]
        assert parameters.keys() >= set(artifact.load_symbol(symbol).list_arguments()) - {"data"}


@pytest.mark.parametrize(("base_network", "side"), [("resnet-50", 300), ("vgg-16", 300), ("vgg-16", 512)])
def test_anchors_are_those_of_the_operators(base_network: str, side: int) -> None:
    symbol = builtin.training_symbol(base_network, side, 1)
    internal = symbol.get_internals()["multibox_anchors_output"]
    executor = internal.simple_bind(mx.cpu(), grad_req="null", data=(1, 3, side, side))
    ours = builtin_graph.adopted(symbol.tojson(), side).anchors
    assert len(ours) == {("resnet-50", 300): 2268, ("vgg-16", 300): 8732, ("vgg-16", 512): 24576}[base_network, side]
    np.testing.assert_allclose(ours, executor.forward()[0].asnumpy()[0], atol=1e-6)


def replaced(old: str, new: str, count: int = -1) -> Callable[[str], str]:
    return lambda text: text.replace(old, new, count)


def doubled(times: int, op: str) -> Callable[[str], str]:
    """Behind the first MultiBoxPrior, nodes each of which is made of the one before twice."""

    def damage(text: str) -> str:
        graph = json.loads(text)
        place = next(n for n, node in enumerate(graph["nodes"]) if node["op"] == "_contrib_MultiBoxPrior") + 1
        for node in graph["nodes"][place:]:
            node["inputs"] = [
                [source + times * (source >= place) if source != place - 1 else place - 1 + times, *rest]
                for source, *rest in node["inputs"]
            ]
        made = [{"op": op, "name": f"double{n}", "inputs": [[place - 1 + n, 0, 0]] * 2} for n in range(times)]
        graph["nodes"][place:place] = made
        return json.dumps(graph)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        replaced('"(0.1, 0.1, 0.2, 0.2)"', '"(0.1, 0.1, 0.3, 0.3)"'),
        replaced('"nms_threshold": "0.45"', '"nms_threshold": "0.45", "clip": "False"'),
        replaced('"nms_threshold": "0.45"', '"nms_threshold": "nan"'),
        replaced('"op": "SoftmaxOutput"', '"op": "sigmoid"'),
        replaced('"multi_output": "True"', '"multi_output": "False"'),
        replaced('"op": "_contrib_MultiBoxPrior"', '"op": "exp"', 1),
        replaced('"op": "Pooling"', '"op": "UpSampling"', 1),
        replaced('"op": "Pooling"', '"op": "Custom"', 1),
        replaced('"pad": "(3, 3)"', '"pad": "(100000000, 100000000)"'),
        replaced('"sizes": "', '"sizes": "(' + "1," * 400 + ")", 1),
        replaced('"op": "null"', '"op": 5', 1),
        replaced('"inputs": [[0, 0, 0]]', '"inputs": [[1, 0, 0]]', 1),
        replaced('"inputs": [[0, 0, 0]]', '"inputs": [[99999, 0, 0]]', 1),
        doubled(40, "Concat"),
        lambda text: text[:-10],
        lambda text: '{"nodes": []} MultiBoxDetection',
        lambda text: "[" * 100_000 + "MultiBoxDetection",
    ],
    ids=[
        "variances",
        "no clipping",
        "threshold",
        "scores",
        "axis of scores",
        "anchors",
        "maps",
        "operator",
        "pad",
        "sizes",
        "no operator",
        "cycle",
        "no node",
        "doubling",
        "no JSON",
        "no nodes",
        "nested",
    ],
)
def test_a_symbol_that_cannot_be_used(random_model: Path, tmp_path: Path, damage: Callable[[str], str]) -> None:
    for path in random_model.iterdir():
        (tmp_path / path.name).symlink_to(path)
    symbol = tmp_path / "model_algo_1-symbol.json"
    text = symbol.read_text()
    assert damage(text) != text
    symbol.unlink()
    symbol.write_text(damage(text))
    with pytest.raises(UserError) as caught:
        artifact.read(tmp_path)
    assert str(caught.value) == (
        f"{symbol} is damaged or was written by neither this image's training nor the built-in's."
    )


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    make(folder, "resnet-50", 128)
    return folder


def test_files_that_do_not_belong_together(random_model: Path, tmp_path: Path) -> None:
    for path in random_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    hyperparameters = tmp_path / "hyperparams.json"
    good = hyperparameters.read_text()
    hyperparameters.write_text(good.replace('"num_classes": "3"', '"num_classes": "5"'))
    assert refusal(tmp_path) == (
        f"{hyperparameters}: num_classes is 5, but the network of model_algo_1-symbol.json has 3; use the files of one "
        "training."
    )
    hyperparameters.write_text(good)
    symbol = tmp_path / "model_algo_1-symbol.json"
    text = symbol.read_text()
    symbol.write_text(text.replace("conv0_weight", "conv9_weight"))
    parameters = tmp_path / "model_algo_1-0000.params"
    assert refusal(tmp_path) == (
        f"{parameters} lacks conv9_weight, which the network has; use the files of one training."
    )
    symbol.write_text(text.replace('"(7, 7)"', '"(5, 5)"').replace('"(3, 3)", "stride": "(2, 2)"', '"(2, 2)"'))
    assert refusal(tmp_path) == (
        f"{parameters}: conv0_weight is (64, 3, 7, 7), but the network wants 64 filters of (5, 5); use the files of one "
        "training."
    )


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        artifact.read(directory)
    return str(caught.value)


def test_every_candidate_enters_suppression(tmp_path: Path) -> None:
    """Older models say nothing of nms_topk, and MXNet takes all anchors then."""
    symbol = builtin.training_symbol("resnet-50", 192, 3, nms_topk=-1)
    parameters = builtin.random_parameters(symbol, 192, np.random.default_rng(0), 110.0)
    builtin.save(tmp_path, symbol, parameters, "resnet-50", 192, 3)
    images = blocks(192, 1)
    expected = builtin.detections(symbol, parameters, images.transpose(0, 3, 1, 2).astype(np.float32), "det_out_output")
    (found,) = predictor.load(tmp_path).detect(images)
    assert len(found.scores) > 400
    assert_equal(found, expected[0])


def overfit_job(base: Path, data: Path, model: Path, packed: bool = False) -> None:
    """Channels whose validation images are those of training, and a model channel: an archive, or what is in one."""
    channels = base / "input" / "data"
    channels.mkdir(parents=True)
    for name in ("train", "train_annotation"):
        (channels / name).symlink_to(data / name)
        (channels / name.replace("train", "validation")).symlink_to(data / name)
    if not packed:
        (channels / "model").symlink_to(model)
        return
    (channels / "model").mkdir()
    with tarfile.open(channels / "model" / "model.tar.gz", "w:gz") as archive:
        for path in model.iterdir():
            archive.add(path, path.name)


def score(run: Run) -> float:
    """The last validation mAP of a training that succeeded."""
    assert run.code == 0, run.err
    return float(re.findall(r"validation mAP <score>=\((\S+)\)", run.out)[-1])


def train_on(folder: Path, base_network: str, side: int, steps: int) -> tuple[float, float]:
    """mAP of a model of the built-in's that was overfitted to 8 images, and after one more epoch from it.

    The first training starts from random weights in a symbol of the built-in's, and its values are put into one again.
    """
    demo.write_channels(folder / "data", 8, 1, np.random.default_rng(0))
    symbol, parameters = make(folder / "random", base_network, side)
    job = SMALL | {
        "base_network": base_network,
        "image_shape": str(side),
        "num_training_samples": "8",
        "recipe": "modern",
        "augmentation": "False",
    }
    overfit_job(folder / "first", folder / "data", folder / "random")
    first = train(folder / "first", job | {"epochs": str(steps), "validate_every": str(steps)})
    before = score(first)

    values = artifact.load_parameters(folder / "first" / "model")
    known = {name: mx.nd.array(values[name.split(":")[1]]) for name in parameters}
    builtin.save(folder / "known", symbol, known, base_network, side, 3)
    overfit_job(folder / "second", folder / "data", folder / "known", packed=True)
    second = train(folder / "second", job | {"learning_rate": "0.0001"})
    assert "Training starts from the model of channel model." in second.out
    return before, score(second)


def test_training_goes_on(tmp_path: Path) -> None:
    """With the network that it has; `benchmarks/builtin.py` does it for both, at 300."""
    before, after = train_on(tmp_path, "resnet-50", 128, steps=30)
    assert after >= before > 0.5
    # A model of ours with the built-in's network is what came out, and what can be gone on from again.
    overfit_job(tmp_path / "third", tmp_path / "data", tmp_path / "second" / "model")
    job = json.loads((tmp_path / "second" / "model" / "hyperparams.json").read_text())
    assert score(train(tmp_path / "third", job)) >= before


def test_another_image_shape_is_refused(tmp_path: Path) -> None:
    demo.write_channels(tmp_path / "data", 8, 1, np.random.default_rng(0))
    make(tmp_path / "random", "resnet-50", 192)
    overfit_job(tmp_path / "job", tmp_path / "data", tmp_path / "random")
    run = train(tmp_path / "job", SMALL | {"base_network": "resnet-50"})
    assert_refused(
        run,
        "channel model: it holds a network of the built-in algorithm for image_shape 192, but the hyperparameter "
        "image_shape is 128; they must be the same.",
    )


def test_a_checkpoint_of_another_network(tmp_path: Path, random_model: Path) -> None:
    """The job began from a model of the built-in's, and goes on without the channel."""
    demo.write_channels(tmp_path / "data", 8, 1, np.random.default_rng(0))
    overfit_job(tmp_path / "job", tmp_path / "data", random_model)
    (tmp_path / "job" / "checkpoints").mkdir()
    job = SMALL | {"base_network": "resnet-50"}
    assert train(tmp_path / "job", job).code == 0
    (tmp_path / "job" / "input" / "data" / "model").unlink()
    assert_refused(
        train(tmp_path / "job", job),
        "The checkpoint is of another network: its _plus12_cls_pred_conv_bias is (16,), not (24,); give the channel model "
        "that the training began with, or none if it had none, or an empty folder for checkpoints.",
    )


def test_other_classes(random_model: Path, tmp_path: Path) -> None:
    """Classes are carried over by their names, whatever the heads are called."""
    for path in random_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"_cls_pred_conv", b"_abc_pred_conv"))
    (tmp_path / "classes.json").write_text('{"0": "dog", "1": "cat", "2": "cow"}')
    model = artifact.read(tmp_path)
    heads = graph.names_of_class_heads(model.symbol)
    assert len(heads) == 12 and all("_abc_pred_conv_" in name for name in heads)
    hyperparameters = Hyperparameters.parse(
        SMALL | {"base_network": "resnet-50", "num_classes": "5", "transfer": "True"}
    )
    names = {0: "cow", 1: "bird", 2: "dog", 3: "pig", 4: "hen"}
    data = TrainingData(Dataset(), Dataset(), names, tmp_path)
    network = build_network_to_train(hyperparameters, data)
    values = starting_values(network, hyperparameters, data, None)
    name = "_plus12_abc_pred_conv_bias"
    new, old = values[name].reshape(-1, 6), model.parameters[name].reshape(-1, 4)
    assert (new[:, [0, 1, 3]] == old[:, [0, 3, 1]]).all()  # background, cow, dog


def test_a_client_of_the_builtin_runs_ours(trained: Run) -> None:
    """As the public inference programs do: the module API, raw RGB in, rows of class, score and corners out."""
    symbol, arguments, auxiliaries = mx.model.load_checkpoint(str(trained.base / "model" / "model_algo_1"), 0)
    module = mx.mod.Module(symbol, label_names=[], context=mx.cpu())
    module.bind(for_training=False, data_shapes=[("data", (1, 3, 128, 128))])
    module.set_params(arguments, auxiliaries)
    photo = next((trained.base / "input" / "data" / "validation").iterdir()).read_bytes()
    square = to_square(decode(photo), 128)
    module.forward(mx.io.DataBatch([mx.nd.array(square.transpose(2, 0, 1)[None])]))
    rows = module.get_outputs()[0].asnumpy()[0]
    (found,) = predictor.load(trained.base / "model").detect(square[None])
    kept = rows[rows[:, 0] > -1]
    assert kept[:, 0].tolist() == found.classes.tolist()
    np.testing.assert_allclose(kept[:, 1], found.scores, atol=1e-4)
    np.testing.assert_allclose(kept[:, 2:], found.boxes, atol=1e-4)
