"""int8: the arithmetic of scales on a graph that can be followed by hand, and a network that stays what it was."""

import numpy as np
import onnx
import pytest
from conftest import Run
from onnx import TensorProto, helper, numpy_helper

from ssd_algo.data import images
from ssd_algo.data.boxes import iou
from ssd_algo.inference import predictor
from ssd_algo.inference.calibrate import calibrated
from ssd_algo.model import artifact, quantize


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(each) for each in model.graph.initializer if each.name == name)


def two_convolutions() -> onnx.ModelProto:
    """data -> conv 1x1 (one channel, weights 1 and -2) -> relu -> pool -> conv 1x1 (weights 0.3 and 1)."""
    nodes = [
        helper.make_node("Conv", ["data", "w1", "b1"], ["c1"], kernel_shape=[1, 1]),
        helper.make_node("Relu", ["c1"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w2", "b2"], ["out"], kernel_shape=[1, 1]),
    ]
    nodes.insert(0, helper.make_node("Identity", ["images"], ["data"]))
    weights = {
        "w1": np.asarray([[[[1.0]]], [[[-2.0]]]], dtype=np.float32),
        "b1": np.zeros(2, dtype=np.float32),
        "w2": np.asarray([[[[0.3]], [[1.0]]]], dtype=np.float32),
        "b2": np.asarray([0.5], dtype=np.float32),
    }
    return helper.make_model(
        helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, 2, 2])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, 1, 1])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
    )


def test_scales_and_bias_by_hand() -> None:
    found = quantize.Seen(
        ranges={"data": (-2.54, 1.0), "r": (0.0, 5.1)},
        channels={"data": np.asarray([0.5]), "p": np.asarray([10.0, 20.0])},
    )
    model = quantize.quantised(two_convolutions(), found)
    onnx.checker.check_model(model)
    assert constant(model, "data/scale") == pytest.approx(2.54 / 127)  # has negative values: int8
    assert constant(model, "data/zero").dtype == np.int8
    assert constant(model, "r/scale") == pytest.approx(5.1 / 255)  # has none: uint8
    assert constant(model, "r/zero").dtype == np.uint8
    assert constant(model, "w1/quantised").ravel().tolist() == [63, -63]  # the first has 7 bits, a scale a channel
    assert constant(model, "w1/scale") == pytest.approx([1 / 63, 2 / 63])
    assert constant(model, "w2/quantised").ravel().tolist() == [38, 127]  # 0.3 * 127 = 38.1
    # 38 / 127 - 0.3 = -0.000787 for inputs of 10 on average behind the pooling, and nothing for the other channel
    assert constant(model, "b2") == pytest.approx([0.5 + (0.3 - 38 / 127) * 10])


def inputs(model: onnx.ModelProto) -> dict[str, list[str]]:
    """Of each node, by its output."""
    return {node.output[0]: list(node.input) for node in model.graph.node}


def test_a_tensor_is_rounded_before_its_pooling() -> None:
    found = quantize.Seen({"data": (0, 1), "r": (0, 1)}, {"data": np.zeros(1), "p": np.zeros(2)})
    nodes = inputs(quantize.quantised(two_convolutions(), found))
    assert nodes["p"] == ["r/dequantised"]
    assert nodes["out"][0] == "p"


@pytest.mark.parametrize("order", [["c2", "p"], ["p", "c2"]])
def test_what_is_added_to_a_convolution_is_rounded_before_its_pooling_too(order: list[str]) -> None:
    """A residual block behind the stem: conv -> relu -> pool, and pool + conv of it."""
    model = two_convolutions()
    nodes = list(model.graph.node)[:-1]
    nodes.append(helper.make_node("Conv", ["p", "w2", "b2"], ["c2"], kernel_shape=[1, 1]))
    nodes.append(helper.make_node("Add", order, ["out"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    found = quantize.Seen({"data": (0, 1), "r": (0, 1)}, {"data": np.zeros(1), "p": np.zeros(2)})
    assert inputs(quantize.quantised(model, found))["out"] == order


def test_of_two_convolutions_the_one_behind_is_rounded() -> None:
    model = two_convolutions()
    nodes = list(model.graph.node)[:-1]
    nodes += [helper.make_node("Conv", ["p", "w2", "b2"], [each], kernel_shape=[1, 1]) for each in ("c2", "c3")]
    nodes.append(helper.make_node("Add", ["c2", "c3"], ["out"]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    found = quantize.Seen(dict.fromkeys(["data", "r", "c3"], (0, 1)), {"data": np.zeros(1), "p": np.zeros(2)})
    assert inputs(quantize.quantised(model, found))["out"] == ["c2", "c3/dequantised"]


def test_what_is_seen_is_a_mean_over_the_images() -> None:
    outputs = [
        {"x/low": np.float32(-1), "x/high": np.float32(4), "y/channels": np.asarray([1, 2], dtype=np.float32)},
        {"x/low": np.float32(-3), "x/high": np.float32(8), "y/channels": np.asarray([3, 4], dtype=np.float32)},
    ]
    found = quantize.seen(outputs)
    assert found.ranges == {"x": (-2, 6)}
    assert found.channels["y"].tolist() == [2, 3]


def test_without_an_image() -> None:
    with pytest.raises(ValueError, match=r"^there is no image to calibrate with$"):
        quantize.seen([])


def test_int8_network_finds_what_the_float32_one_finds(trained: Run) -> None:
    model = trained.base / "model"
    photos = sorted((trained.base / "input" / "data" / "validation").iterdir())
    squares = [images.decode_square(photo.read_bytes(), 128)[0] for photo in photos]
    network = artifact.exported(model)
    int8 = calibrated(network, 128, squares[:10], 2).SerializeToString()
    assert len(int8) < 0.3 * len(network.SerializeToString())
    reference = predictor.load(model)
    engine = predictor.OpenVINOEngine(int8, 128, 0)
    detector = predictor.Predictor(engine, engine.anchors, 128, 0.45, 400)
    for square in squares[10:]:
        (expected,), (found,) = reference.detect(square[None]), detector.detect(square[None])
        sure = expected.above(0.6)
        for box, identity in zip(sure.boxes, sure.classes, strict=True):
            same = found.classes == identity
            assert iou(found.boxes[same], box[None]).max() > 0.5
