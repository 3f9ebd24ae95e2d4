"""Detections are defined once: the deploy symbol and the predictor's NumPy agree, and both with a naive loop."""

import mxnet as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from ssd_algo.data import boxes as geometry
from ssd_algo.inference.predictor import select
from ssd_algo.model import network
from ssd_algo.model.export import deploy_symbol


def run_symbol(
    symbol: mx.sym.Symbol, values: dict[str, NDArray[np.float32]], data: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    """Bind and run a symbol with MXNet's own means alone."""
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=data.shape)
    known = {name: mx.nd.array(value) for name, value in values.items()}
    executor.copy_params_from(known, known, allow_extra_params=True)
    return [output.asnumpy() for output in executor.forward(is_train=False, data=mx.nd.array(data))]


def naive_detections(
    logits: NDArray[np.float32], offsets: NDArray[np.float32], anchors: geometry.Boxes, threshold: float, topk: int
) -> list[list[float]]:
    """The definition, step by step."""
    pairs = []
    for anchor, row in enumerate(logits.astype(np.float64)):
        scores = np.exp(row) / np.exp(row).sum()
        pairs += [(-score, anchor, identity) for identity, score in enumerate(scores[1:]) if score >= 0.01]
    kept: list[list[float]] = []
    for negative, anchor, identity in sorted(pairs)[:topk]:
        box = geometry.decode(offsets[anchor : anchor + 1], anchors[anchor : anchor + 1])
        rivals = [np.asarray([row[2:]], dtype=np.float32) for row in kept if row[0] == identity]
        if all(geometry.iou(rival, box)[0, 0] <= threshold for rival in rivals):
            kept.append([identity, -negative, *box[0].tolist()])
    return [[*row[:2], *np.clip(row[2:], 0, 1)] for row in kept]


@pytest.fixture(scope="module")
def built() -> tuple[network.Network, dict[str, NDArray[np.float32]]]:
    detector = network.build_network("resnet-18", 128, 3)
    generator = np.random.default_rng(0)
    values = network.initial_parameters(detector, 128, generator) | network.constants(detector)
    for name, value in values.items():
        if name.endswith("_cls_pred_conv_weight"):  # no score so near to 1 that float32 knows no difference to others
            values[name] = value * 0.2
    return detector, values


@pytest.mark.parametrize("topk", [20, 400, 5000])
def test_symbol_select_and_naive_loop_agree(
    built: tuple[network.Network, dict[str, NDArray[np.float32]]], topk: int
) -> None:
    detector, values = built
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 128, 128)).astype(np.float32)
    logits, offsets = run_symbol(detector.symbol, values, images)
    (rows,) = run_symbol(deploy_symbol(detector, 3, 0.45, topk), values, images)
    assert rows.shape == (2, topk, 6)
    for image in range(2):
        found = select(logits[image], offsets[image], detector.anchors, 0.45, topk)
        table = np.concatenate([found.classes[:, None], found.scores[:, None], found.boxes], axis=1)
        assert 10 < len(table) <= topk
        assert (rows[image, len(table) :] == -1).all()
        assert (np.diff(table[:, 1]) <= 0).all()
        if topk > 400:  # among thousands some scores are equal, and their order is open
            assert rows[image, : len(table), 1] == pytest.approx(table[:, 1], abs=1e-4)
            continue
        assert rows[image, : len(table)] == pytest.approx(table, abs=1e-4)
        expected = naive_detections(logits[image], offsets[image], detector.anchors, 0.45, topk)
        assert table == pytest.approx(np.asarray(expected), abs=1e-4)


@pytest.mark.parametrize("image_shape", [128, 256, 300, 447, 512])
@pytest.mark.parametrize("base_network", ["vgg-16", "resnet-18", "resnet-34", "resnet-50", "resnet-101"])
def test_every_network_runs_as_a_deploy_symbol(base_network: str, image_shape: int) -> None:
    detector = network.build_network(base_network, image_shape, 4)
    generator = np.random.default_rng(0)
    values = network.initial_parameters(detector, image_shape, generator) | network.constants(detector)
    # BatchNorm's variances of 4 keep the activations of an untrained network small.
    values = {name: value * 4 if name.endswith("_moving_var") else value for name, value in values.items()}
    images = generator.integers(0, 256, (1, 3, image_shape, image_shape)).astype(np.float32)
    (rows,) = run_symbol(deploy_symbol(detector, 4, 0.45, 400), values, images)
    logits, offsets = run_symbol(detector.symbol, values, images)
    scores = select(logits[0], offsets[0], detector.anchors, 0.45, 400).scores
    assert 100 < len(scores) <= 400
    assert rows[0, : len(scores), 1] == pytest.approx(scores, abs=1e-4)
    assert (rows[0, len(scores) :] == -1).all()


def test_more_pairs_than_float32_counts() -> None:
    """24,564 anchors x 700 classes are 17,194,800 pairs, more than 2^24 = 16,777,216."""
    generator = np.random.default_rng(0)
    low = generator.uniform(0, 0.9, (24564, 2))
    anchors = np.concatenate([low, low + 0.05], axis=1).astype(np.float32)
    heads = mx.sym.Group(
        [mx.sym.var("class_logits", shape=(1, 24564, 701)), mx.sym.var("box_offsets", shape=(1, 24564, 4))]
    )
    logits = np.full((1, 24564, 701), -20, dtype=np.float32)
    logits[..., 0] = 0
    chosen = np.arange(24000, 24500)
    logits[0, chosen, 1 + chosen % 699] = np.linspace(2, 3, len(chosen))
    symbol = deploy_symbol(network.Network(heads, anchors), 700, 0.45, 400)
    values = {
        "class_logits": logits,
        "box_offsets": np.zeros((1, 24564, 4), dtype=np.float32),
        "anchors": anchors[None],
    }
    executor = symbol.bind(mx.cpu(), {name: mx.nd.array(value) for name, value in values.items()}, grad_req="null")
    rows = executor.forward(is_train=False)[0].asnumpy()[0]
    found = select(logits[0], values["box_offsets"][0], anchors, 0.45, 400)
    table = np.concatenate([found.classes[:, None], found.scores[:, None], found.boxes], axis=1)
    assert len(table) == 400
    assert rows == pytest.approx(table, abs=1e-4)


def test_no_detection_when_background_is_certain(
    built: tuple[network.Network, dict[str, NDArray[np.float32]]],
) -> None:
    detector, values = built
    certain = dict(values)
    for name, shape in network.parameter_shapes(detector, 128).items():
        if name.endswith("_cls_pred_conv_bias"):
            certain[name] = np.where(np.arange(shape[0]) % 4 == 0, 1000, 0).astype(np.float32)
    (rows,) = run_symbol(deploy_symbol(detector, 3, 0.45, 400), certain, np.zeros((1, 3, 128, 128), dtype=np.float32))
    assert (rows == -1).all()
    logits, offsets = run_symbol(detector.symbol, certain, np.zeros((1, 3, 128, 128), dtype=np.float32))
    assert len(select(logits[0], offsets[0], detector.anchors, 0.45, 400).scores) == 0
