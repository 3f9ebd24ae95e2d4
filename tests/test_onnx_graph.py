"""The network as ONNX, in OpenVINO, says what MXNet says."""

import json
from typing import Any

import mxnet as mx
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from ssd_algo.inference.engines import MXNetEngine, OpenVINOEngine
from ssd_algo.model import graph, network, onnx_graph
from ssd_algo.model.onnx_graph import to_onnx


def drawn(detector: network.Network, side: int) -> dict[str, NDArray[np.float32]]:
    """Parameters as a training may leave them: BatchNorm has seen something."""
    generator = np.random.default_rng(0)
    values = network.initial_parameters(detector, side, generator) | network.constants(detector)
    for name, value in values.items():
        if name.endswith("_moving_var"):
            values[name] = generator.uniform(0.5, 2, value.shape).astype(np.float32)
        if name.endswith(("_moving_mean", "_beta")):
            values[name] = generator.normal(0, 0.2, value.shape).astype(np.float32)
    return values


@pytest.mark.parametrize(("base_network", "side"), [("resnet-18", 128), ("resnet-50", 256), ("vgg-16", 300)])
def test_openvino_says_what_mxnet_says(base_network: str, side: int) -> None:
    detector = network.build_network(base_network, side, 3)
    values = drawn(detector, side)
    images = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    model = to_onnx(detector.symbol.tojson(), values, side)
    onnx.checker.check_model(model)
    engine = OpenVINOEngine(model.SerializeToString(), side, 0)
    weights = {name: value for name, value in values.items() if name != "anchors"}
    expected = MXNetEngine(detector.symbol, mx.cpu(), weights)(images)
    assert (engine.anchors == detector.anchors).all()
    for ours, reference in zip(engine(images), expected, strict=True):
        assert ours.shape == reference.shape
        assert np.abs(ours - reference).max() < 1e-4 * np.abs(reference).max()


def test_one_engine_takes_batches_of_all_sizes() -> None:
    detector = network.build_network("resnet-18", 128, 3)
    engine = OpenVINOEngine(to_onnx(detector.symbol.tojson(), drawn(detector, 128), 128).SerializeToString(), 128, 1)
    images = np.random.default_rng(1).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    logits, offsets = engine(images)
    for index in range(3):
        alone, _ = engine(images[index : index + 1])
        assert np.abs(alone[0] - logits[index]).max() < 1e-3
    assert offsets.shape == (3, len(detector.anchors), 4)


def test_batch_norm_that_follows_no_convolution_and_whose_gamma_is_fixed() -> None:
    """Its own small graph, against MXNet: scale and shift of three channels."""
    data = mx.sym.var("data")
    normalised = mx.sym.BatchNorm(data, name="bn", fix_gamma=True, eps=1e-3)
    logits = mx.sym.reshape(mx.sym.transpose(normalised, axes=(0, 2, 3, 1)), shape=(0, -1, 3), name="class_logits")
    offsets = mx.sym.reshape(mx.sym.transpose(data * 2, axes=(0, 2, 3, 1)), shape=(0, -1, 3), name="box_offsets")
    values = {
        "bn_gamma": np.asarray([5, 6, 7], dtype=np.float32),
        "bn_beta": np.asarray([1, 2, 3], dtype=np.float32),
        "bn_moving_mean": np.asarray([10, 20, 30], dtype=np.float32),
        "bn_moving_var": np.asarray([4 - 1e-3, 1 - 1e-3, 0.25 - 1e-3], dtype=np.float32),
        "anchors": np.zeros((1, 4, 4), dtype=np.float32),
    }
    model = to_onnx(mx.sym.Group([logits, offsets]).tojson(), values, 2)
    engine = OpenVINOEngine(model.SerializeToString(), 2, 1)
    found, doubled = engine(np.full((1, 2, 2, 3), 40, dtype=np.uint8))
    # (40 - 10) / 2 + 1, (40 - 20) / 1 + 2, (40 - 30) / 0.5 + 3: gamma counts as 1
    assert found[0] == pytest.approx(np.tile([16.0, 22.0, 23.0], (4, 1)), rel=1e-5)
    assert (doubled == 80).all()


def changed(**change: Any) -> str:
    """The JSON of a network, with a node changed."""
    document = json.loads(network.build_network("resnet-18", 128, 3).symbol.tojson())
    node = next(each for each in document["nodes"] if each["op"] == "Activation")
    node.update(change)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("symbol", "sentence"),
    [
        (
            changed(op="Custom"),
            "the graph is not one that training writes (ValueError('operator Custom of resnetv1b_relu0_fwd'))",
        ),
        (
            changed(attrs={"act_type": "tanh"}),
            "the graph is not one that training writes (ValueError('act_type tanh of resnetv1b_relu0_fwd'))",
        ),
        ("{}", "the graph is not one that training writes (KeyError('nodes'))"),
        ('{"nodes": []}', "the graph is not one that training writes (ValueError('not one input data'))"),
    ],
)
def test_other_graphs_are_refused(symbol: str, sentence: str) -> None:
    detector = network.build_network("resnet-18", 128, 3)
    values = drawn(detector, 128)
    with pytest.raises(ValueError) as caught:
        to_onnx(symbol, values, 128)
    assert str(caught.value) == sentence


def test_bytes_that_are_no_network() -> None:
    with pytest.raises(ValueError, match=r"^it is no network that OpenVINO can run \("):
        OpenVINOEngine(b"no network", 128, 1)


def test_every_operator_that_a_network_may_have_is_converted() -> None:
    assert set(onnx_graph._OPERATORS) == graph.OPERATORS
