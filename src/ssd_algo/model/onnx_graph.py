"""The network as ONNX, from the saved symbol and its parameters.

`mx.onnx` needs protobuf's last release but ten, half a minute for a network and mxnet itself; the graph up to logits
and offsets has a dozen operators.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ssd_algo.model.graph import INPUT, NONSENSE, OUTPUTS, parse, reachable

ANCHORS = "anchors"

# What any runtime of the last five years takes.
_OPSET, _IR_VERSION = 13, 8


@dataclass(frozen=True)
class _Node:
    """An operator, variable or constant of MXNet's graph; `inputs` are numbers of nodes."""

    name: str
    op: str
    attributes: Mapping[str, str]
    inputs: tuple[int, ...]

    def __getitem__(self, name: str) -> Any:
        return ast.literal_eval(self.attributes[name])

    def get(self, name: str, default: Any) -> Any:
        return self[name] if name in self.attributes else default


def to_onnx(symbol: str, parameters: Mapping[str, NDArray[np.float32]], image_shape: int) -> onnx.ModelProto:
    """The graph from `data` to `class_logits` and `box_offsets`.

    BatchNorm and a factor before a convolution become part of its weights.

    Parameters
    ----------
    symbol : str
        MXNet's JSON, which may go on behind the two.
    parameters : dict
        Values of its variables by name.
    image_shape : int
        Side S of the input, pixels.

    Returns
    -------
    onnx.ModelProto
        Input `data`, float32 (N, 3, S, S), raw RGB 0-255; outputs `class_logits` float32 (N, A, C + 1), background
        first, `box_offsets` float32 (N, A, 4), and the constant `anchors` float32 (1, A, 4).

    Raises
    ------
    ValueError
        When the graph is not one that training writes.
    """
    try:
        parsed = parse(symbol)
        numbers = {node["name"]: number for number, node in enumerate(parsed)}
        needed = reachable(parsed, [numbers[name] for name in OUTPUTS])
        nodes = [
            _Node(each["name"], each["op"], each["attrs"], tuple(source for source, *_ in each["inputs"]))
            for each in parsed
        ]
        graph = _Converter(nodes, needed, parameters).graph(image_shape)
    except NONSENSE as error:
        raise ValueError(f"the graph is not one that training writes ({error!r})") from error
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION, producer_name="ssd-algo")


class _Converter:
    def __init__(self, nodes: list[_Node], needed: list[int], parameters: Mapping[str, NDArray[np.float32]]) -> None:
        self._all, self._needed, self._parameters = nodes, needed, parameters
        self._consumers = {number: [] for number in self._needed}  # type: dict[int, list[int]]
        for number in self._needed:
            for source in nodes[number].inputs:
                self._consumers[source].append(number)
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def graph(self, image_shape: int) -> onnx.GraphProto:
        for number in self._needed:
            node = self._all[number]
            if node.op != "null" and not self._is_part_of_convolution(number):
                if node.op not in _OPERATORS:
                    raise ValueError(f"operator {node.op} of {node.name}")
                _OPERATORS[node.op](self, number, node)
        data = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["N", 3, image_shape, image_shape])
        logits, offsets = OUTPUTS
        outputs = [
            helper.make_tensor_value_info(logits, TensorProto.FLOAT, ["N", "anchors", "classes"]),
            helper.make_tensor_value_info(offsets, TensorProto.FLOAT, ["N", "anchors", 4]),
        ]
        anchors: NDArray[np.float32] = self._parameters[ANCHORS]
        self._emit("Identity", [self._constant(f"{ANCHORS}_value", anchors)], ANCHORS)
        outputs.append(helper.make_tensor_value_info(ANCHORS, TensorProto.FLOAT, anchors.shape))
        return helper.make_graph(self._nodes, "ssd", [data], outputs, list(self._initializers.values()))

    def _is_part_of_convolution(self, number: int) -> bool:
        node = self._all[number]
        if node.op == "BatchNorm":
            return self._is_alone_behind_convolution(number)
        return node.op == "_mul_scalar" and all(
            self._all[each].op == "Convolution" and self._all[each].inputs[0] == number
            for each in self._consumers[number]
        )

    def _is_alone_behind_convolution(self, number: int) -> bool:
        source = self._all[number].inputs[0]
        return self._all[source].op == "Convolution" and self._consumers[source] == [number]

    def _emit(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _tensor(self, number: int) -> str:
        """The name of a node's output; a parameter becomes a constant."""
        node = self._all[number]
        if node.op == "null" and node.name != INPUT:
            return self._constant(node.name, self._parameters[node.name])
        return node.name

    def _value(self, number: int) -> NDArray[np.float32]:
        return self._parameters[self._all[number].name]

    def convolution(self, number: int, node: _Node) -> None:
        if node.attributes.get("layout", "NCHW") not in ("NCHW", "None"):
            raise ValueError(f"layout of {node.name}")
        source, weight = node.inputs[0], self._value(node.inputs[1])
        bias = np.zeros(len(weight), dtype=np.float32) if len(node.inputs) < 3 else self._value(node.inputs[2])
        factor = self._all[source]
        if factor.op == "_mul_scalar" and self._is_part_of_convolution(source):
            weight, source = weight * np.float32(factor["scalar"]), factor.inputs[0]
        output = node.name
        (behind, *_) = self._consumers[number] or [number]
        if self._all[behind].op == "BatchNorm" and self._is_alone_behind_convolution(behind):
            scale, shift = self._scale_and_shift(self._all[behind])
            weight, bias = weight * scale.reshape(-1, 1, 1, 1), bias * scale + shift
            output = self._all[behind].name
        pads, kernel = node.get("pad", (0, 0)), node["kernel"]
        self._emit(
            "Conv",
            [
                self._tensor(source),
                self._constant(f"{node.name}_weight", weight.astype(np.float32)),
                self._constant(f"{node.name}_bias", bias.astype(np.float32)),
            ],
            output,
            kernel_shape=kernel,
            strides=node.get("stride", (1, 1)),
            dilations=node.get("dilate", (1, 1)),
            pads=(*pads, *pads),
            group=node.get("num_group", 1),
        )

    def _scale_and_shift(self, node: _Node) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What BatchNorm does in inference: x scale + shift."""
        if node.get("axis", 1) != 1:
            raise ValueError(f"axis of {node.name}")
        gamma, beta, mean, variance = (self._value(each).astype(np.float64) for each in node.inputs[1:])
        if node.get("fix_gamma", True):
            gamma = np.ones_like(gamma)
        scale = gamma / np.sqrt(variance + node.get("eps", 1e-3))
        return scale.astype(np.float32), (beta - mean * scale).astype(np.float32)

    def batch_norm(self, number: int, node: _Node) -> None:
        scale, shift = (each.reshape(1, -1, 1, 1) for each in self._scale_and_shift(node))
        scaled = self._emit(
            "Mul",
            [self._tensor(node.inputs[0]), self._constant(f"{node.name}_scale", scale)],
            f"{node.name}_scaled",
        )
        self._emit("Add", [scaled, self._constant(f"{node.name}_shift", shift)], node.name)

    def activation(self, number: int, node: _Node) -> None:
        if node.attributes["act_type"] != "relu":
            raise ValueError(f"act_type {node.attributes['act_type']} of {node.name}")
        self._emit("Relu", [self._tensor(node.inputs[0])], node.name)

    def pooling(self, number: int, node: _Node) -> None:
        convention = node.attributes.get("pooling_convention", "valid")
        is_max = node.attributes.get("pool_type", "max") == "max" and not node.get("global_pool", False)
        if not is_max or convention not in ("valid", "full"):
            raise ValueError(f"the kind of pooling of {node.name}")
        pads = node.get("pad", (0, 0))
        self._emit(
            "MaxPool",
            [self._tensor(node.inputs[0])],
            node.name,
            kernel_shape=node["kernel"],
            strides=node.get("stride", (1, 1)),
            pads=(*pads, *pads),
            ceil_mode=int(convention == "full"),
        )

    def multiply_by_number(self, number: int, node: _Node) -> None:
        factor = self._constant(f"{node.name}_factor", np.asarray(node["scalar"], dtype=np.float32))
        self._emit("Mul", [self._tensor(node.inputs[0]), factor], node.name)

    def transpose(self, number: int, node: _Node) -> None:
        self._emit("Transpose", [self._tensor(node.inputs[0])], node.name, perm=node["axes"])

    def reshape(self, number: int, node: _Node) -> None:
        shape = self._constant(f"{node.name}_shape", np.asarray(node["shape"], dtype=np.int64))
        self._emit("Reshape", [self._tensor(node.inputs[0]), shape], node.name)

    def flatten(self, number: int, node: _Node) -> None:
        self._emit("Flatten", [self._tensor(node.inputs[0])], node.name, axis=1)

    def nothing(self, number: int, node: _Node) -> None:
        self._emit("Identity", [self._tensor(node.inputs[0])], node.name)

    def concat(self, number: int, node: _Node) -> None:
        self._emit("Concat", [self._tensor(each) for each in node.inputs], node.name, axis=node.get("dim", 1))

    def normalise(self, number: int, node: _Node) -> None:
        """x / sqrt(sum over the channels of x^2 + eps)."""
        if node.attributes.get("mode") != "channel":
            raise ValueError(f"mode of {node.name}")
        x, eps = self._tensor(node.inputs[0]), np.asarray(node.get("eps", 1e-10), dtype=np.float32)
        squares = self._emit("ReduceSumSquare", [x], f"{node.name}_squares", axes=[1], keepdims=1)
        above = self._emit("Add", [squares, self._constant(f"{node.name}_eps", eps)], f"{node.name}_above_zero")
        self._emit("Div", [x, self._emit("Sqrt", [above], f"{node.name}_norm")], node.name)

    def elementwise(self, number: int, node: _Node) -> None:
        op = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"}[node.op.rsplit("_", 1)[-1]]
        self._emit(op, [self._tensor(each) for each in node.inputs], node.name)


_OPERATORS: dict[str, Callable[[_Converter, int, _Node], None]] = {
    "Convolution": _Converter.convolution,
    "BatchNorm": _Converter.batch_norm,
    "Activation": _Converter.activation,
    "Pooling": _Converter.pooling,
    "_mul_scalar": _Converter.multiply_by_number,
    "transpose": _Converter.transpose,
    "Reshape": _Converter.reshape,
    "Flatten": _Converter.flatten,
    "_copy": _Converter.nothing,
    "Dropout": _Converter.nothing,  # outside of training
    "Concat": _Converter.concat,
    "L2Normalization": _Converter.normalise,
    "elemwise_add": _Converter.elementwise,
    "broadcast_add": _Converter.elementwise,
    "broadcast_sub": _Converter.elementwise,
    "broadcast_mul": _Converter.elementwise,
    "broadcast_div": _Converter.elementwise,
}
