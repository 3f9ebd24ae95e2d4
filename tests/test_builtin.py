"""Models of the built-in algorithm itself: served, trained on, exported."""

import json
import re
import tarfile
from pathlib import Path

import builtin_models as builtin
import mxnet as mx
import numpy as np
import pytest
from conftest import SERVE, SMALL, Run, assert_refused, environment, train
from numpy.typing import NDArray

from ssd_algo import demo
from ssd_algo.data.images import decode, to_square
from ssd_algo.errors import UserError
from ssd_algo.inference import predictor
from ssd_algo.inference.predictor import Detections
from ssd_algo.model import artifact, builtin_graph

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
    caplog: pytest.LogCaptureFixture,
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
    with caplog.at_level("INFO"):
        model = artifact.read(tmp_path, given)
    assert model.parameters["data_mean"].ravel().tolist() == list(mean)
    assert caplog.messages == [f"The model is one of the built-in algorithm (resnet-50, 128): it is given {told}."]


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"(0.1, 0.1, 0.2, 0.2)"', '"(0.1, 0.1, 0.3, 0.3)"'),
        lambda text: text.replace('"op": "SoftmaxOutput"', '"op": "sigmoid"'),
        lambda text: text.replace('"op": "_contrib_MultiBoxPrior"', '"op": "exp"', 1),
        lambda text: text.replace('"op": "Pooling"', '"op": "UpSampling"', 1),
        lambda text: text[:-10],
    ],
    ids=["variances", "scores", "anchors", "maps", "no JSON"],
)
def test_a_symbol_that_cannot_be_used(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    make(tmp_path, "resnet-50", 128)
    path = tmp_path / "model_algo_1-symbol.json"
    text = path.read_text()
    path.write_text(damage(text))
    assert path.read_text() != text
    with pytest.raises(UserError) as caught:
        predictor.load(tmp_path)
    assert str(caught.value) == (
        f"{path} is damaged or was written by neither this image's training nor the built-in's."
    )


def overfit_job(base: Path, data: Path, model: Path) -> None:
    """Channels whose validation images are those of training, and a model channel with the built-in's archive."""
    channels = base / "input" / "data"
    channels.mkdir(parents=True)
    for name in ("train", "train_annotation"):
        (channels / name).symlink_to(data / name)
        (channels / name.replace("train", "validation")).symlink_to(data / name)
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
    overfit_job(folder / "second", folder / "data", folder / "known")
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
        "Channel model holds a network of the built-in algorithm for image_shape 192, but the hyperparameter image_shape "
        "is 128; they must be the same.",
    )


def test_other_classes(tmp_path: Path) -> None:
    """With names added to its archive, classes are carried over into five."""
    make(tmp_path / "model", "resnet-50", 128)
    model = artifact.read(tmp_path / "model")
    wider = artifact.load_symbol(builtin_graph.with_classes(model.symbol, 5))
    _, (logits, offsets), _ = wider.infer_shape(data=(1, 3, 128, 128))
    count = len(model.parameters["anchors"][0])
    assert (logits, offsets) == ((1, count, 6), (1, count, 4))


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
