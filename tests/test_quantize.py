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
    found = {
        "data": quantize.Range(-2.54, 1.0, np.asarray([0.5])),
        "r": quantize.Range(0.0, 5.1, np.asarray([10.0, 20.0])),
    }
    model = quantize.quantised(two_convolutions(), found)
    onnx.checker.check_model(model)
    assert constant(model, "data/scale") == pytest.approx(2.54 / 127)  # has negative values: int8
    assert constant(model, "data/zero").dtype == np.int8
    assert constant(model, "r/scale") == pytest.approx(5.1 / 255)  # behind a ReLU: uint8
    assert constant(model, "r/zero").dtype == np.uint8
    assert constant(model, "w1/quantised").ravel().tolist() == [63, -63]  # the first has 7 bits, a scale a channel
    assert constant(model, "w1/scale") == pytest.approx([1 / 63, 2 / 63])
    assert constant(model, "w2/quantised").ravel().tolist() == [38, 127]  # 0.3 * 127 = 38.1
    # 38 / 127 - 0.3 = -0.000787 for inputs of 10 on average, and nothing for the other: 0.5 + 0.00787
    assert constant(model, "b2") == pytest.approx([0.5 + (0.3 - 38 / 127) * 10])


def test_a_tensor_is_rounded_before_its_pooling() -> None:
    found = {name: quantize.Range(0, 1, np.zeros(channels)) for name, channels in (("data", 1), ("r", 2))}
    nodes = {node.output[0]: node for node in quantize.quantised(two_convolutions(), found).graph.node}
    assert nodes["p"].input[0] == "r/dequantised"
    assert nodes["out"].input[0] == "p"


def test_ranges_are_means_over_the_images() -> None:
    seen = [
        {"x/low": np.float32(-1), "x/high": np.float32(4), "x/channels": np.asarray([1, 2], dtype=np.float32)},
        {"x/low": np.float32(-3), "x/high": np.float32(8), "x/channels": np.asarray([3, 4], dtype=np.float32)},
    ]
    found = quantize.ranges(seen)["x"]
    assert (found.low, found.high, found.channels.tolist()) == (-2, 6, [2, 3])


def test_without_an_image() -> None:
    with pytest.raises(ValueError, match=r"^there is no image to calibrate with$"):
        quantize.ranges([])


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
