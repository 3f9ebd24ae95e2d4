"""The network with int8 convolutions, calibrated on images (post-training quantisation).

Weights: symmetric, a scale for each output channel; activations: one scale for a tensor, from the mean over the images
of its largest value. The error that rounded weights make on the mean input goes into the bias (Nagel et al. 2019,
"Data-free quantization through weight equalization and bias correction", section 4.2).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_INT8, _UINT8 = 127, 255
# Processors without VNNI add two products in 16 bits: where inputs use all of their range, the first convolution, the
# weights leave a bit free.
_INT7 = 63


@dataclass
class Seen:
    """What a network's tensors were like.

    Attributes
    ----------
    ranges : dict
        Of each tensor to quantise, by name: means over images of its smallest and largest value.
    channels : dict
        Of each input of a convolution, by name: mean of each channel, (C,).
    """

    ranges: dict[str, tuple[float, float]]
    channels: dict[str, NDArray[np.float64]]


def observed(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with outputs that tell what its tensors are like: `NAME/low`, `NAME/high` and `NAME/channels`."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs = dict.fromkeys(node.input[0] for node in model.graph.node if node.op_type == "Conv")
    nodes = [
        helper.make_node("ReduceMean", [each], [f"{each}/channels"], keepdims=0, axes=[0, 2, 3]) for each in inputs
    ]
    for name in _to_quantise(model.graph):
        nodes.append(helper.make_node("ReduceMin", [name], [f"{name}/low"], keepdims=0))
        nodes.append(helper.make_node("ReduceMax", [name], [f"{name}/high"], keepdims=0))
    watched.graph.node.extend(nodes)
    watched.graph.output.extend(
        helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None) for node in nodes
    )
    return watched


def seen(observations: Iterable[Mapping[str, NDArray[np.float32]]]) -> Seen:
    """What the outputs of an `observed` model, run on one image after another, say on average.

    Raises
    ------
    ValueError
        When there is no image.
    """
    sums: dict[str, NDArray[np.float64]] = {}
    count = 0
    for outputs in observations:
        count += 1
        for name, value in outputs.items():
            sums[name] = sums.get(name, np.zeros(())) + value
    if not count:
        raise ValueError("there is no image to calibrate with")
    means = {name: value / count for name, value in sums.items()}
    names = [name.removesuffix("/low") for name in means if name.endswith("/low")]
    return Seen(
        {name: (float(means[f"{name}/low"]), float(means[f"{name}/high"])) for name in names},
        {name.removesuffix("/channels"): value for name, value in means.items() if name.endswith("/channels")},
    )


def quantised(model: onnx.ModelProto, found: Seen) -> onnx.ModelProto:
    """The model with int8 convolutions, as QuantizeLinear and DequantizeLinear; its inputs and outputs are the same."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    scales = {name: _activation_scale(*found.ranges[name]) for name in _to_quantise(model.graph)}
    nodes: list[onnx.NodeProto] = []
    initializers: dict[str, onnx.TensorProto] = {}
    first = True
    for node in graph.node:
        if node.op_type == "Conv":
            source, weight, bias = node.input
            channels, most = found.channels[source], _INT7 if first else _INT8
            nodes.append(_quantise_weights(node, values[weight], values[bias], channels, most, initializers))
            first = False
        for index, name in enumerate(node.input):
            if name in scales:
                node.input[index] = f"{name}/dequantised"
        nodes.append(node)
        if node.output[0] in scales:
            nodes.extend(_pair(node.output[0], *scales[node.output[0]], initializers))
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    graph.initializer.extend(initializers.values())
    graph.initializer.extend(
        each for each in model.graph.initializer if each.name in used and each.name not in initializers
    )
    return result


def _to_quantise(graph: onnx.GraphProto) -> list[str]:
    """Names of the tensors to quantise: inputs of convolutions, before a pooling, and what is added to one's output."""
    producers = {each.output[0]: each for each in graph.node}
    names = dict.fromkeys(_behind_pooling(each.input[0], producers) for each in graph.node if each.op_type == "Conv")
    for node in graph.node:
        added = [name for name in node.input if name in producers]
        # OpenVINO makes a sum part of the convolution in its first input, which then adds before it rounds.
        convolutions = [name for name in added if producers[name].op_type == "Conv"]
        if node.op_type == "Add" and len(added) == 2 and convolutions:
            (other,) = (name for name in added if name != convolutions[0])
            names[_behind_pooling(other, producers)] = None
    return list(names)


def _behind_pooling(name: str, producers: Mapping[str, onnx.NodeProto]) -> str:
    """The tensor that a chain of max-poolings began with: the largest of rounded values is the rounded largest."""
    while name in producers and producers[name].op_type == "MaxPool":
        name = producers[name].input[0]
    return name


def _activation_scale(low: float, high: float) -> tuple[float, type[np.uint8] | type[np.int8]]:
    if low >= 0:
        return max(high, 1e-6) / _UINT8, np.uint8
    return max(high, -low, 1e-6) / _INT8, np.int8


def _pair(
    name: str,
    scale: float,
    kind: type[np.uint8] | type[np.int8],
    initializers: dict[str, onnx.TensorProto],
) -> Iterator[onnx.NodeProto]:
    constants = [_add(initializers, f"{name}/scale", np.asarray(scale, dtype=np.float32))]
    constants.append(_add(initializers, f"{name}/zero", np.asarray(0, dtype=kind)))
    yield helper.make_node("QuantizeLinear", [name, *constants], [f"{name}/quantised"])
    yield helper.make_node("DequantizeLinear", [f"{name}/quantised", *constants], [f"{name}/dequantised"])


def _quantise_weights(
    node: onnx.NodeProto,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    channels: NDArray[np.float64],
    most: int,
    initializers: dict[str, onnx.TensorProto],
) -> onnx.NodeProto:
    """Give a convolution rounded weights, and a bias that makes up for the mean error; returns their dequantisation."""
    name = node.input[1]
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    scale = np.where(largest > 0, largest / most, 1).astype(np.float32)
    rounded = np.rint(weight / scale.reshape(-1, 1, 1, 1)).astype(np.int8)
    error = (rounded * scale.reshape(-1, 1, 1, 1) - weight).sum(axis=(2, 3), dtype=np.float64) @ channels
    constants = [
        _add(initializers, f"{name}/quantised", rounded),
        _add(initializers, f"{name}/scale", scale),
        _add(initializers, f"{name}/zero", np.zeros(len(scale), dtype=np.int8)),
    ]
    node.input[1], node.input[2] = (
        f"{name}/dequantised",
        _add(initializers, node.input[2], (bias - error).astype(np.float32)),
    )
    return helper.make_node("DequantizeLinear", constants, [f"{name}/dequantised"], axis=0)


def _add(initializers: dict[str, onnx.TensorProto], name: str, value: NDArray[np.generic]) -> str:
    initializers[name] = numpy_helper.from_array(value, name)
    return name
