"""The built-in algorithm's own symbols as graphs of ours.

Its artifact holds the graph that it trained, with the heads `cls_prob`, `loc_loss`, `cls_label` and `det_out`; the
deployment script of the code that it descends from (zhreshold/mxnet-ssd) makes one that ends in `detection`. Either is
cut where its MultiBoxDetection begins, whatever its nodes are called.
"""

import ast
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_algo.data.boxes import OFFSET_SCALES, SCORE_THRESHOLD, Boxes

_DETECTION = "MultiBoxDetection"
_PRIOR = "_contrib_MultiBoxPrior"
_SOFTMAXES = ("SoftmaxOutput", "softmax", "SoftmaxActivation")
_MEAN = "data_mean"
# What maps of features go through, with no effect on their size.
_SAME_SIZE = (
    "_copy",
    "Activation",
    "BatchNorm",
    "Dropout",
    "L2Normalization",
    "broadcast_mul",
    "broadcast_sub",
    "elemwise_add",
)

_Node = dict[str, Any]


@dataclass(frozen=True)
class MultiBoxDetection:
    """How the operator of this name makes detections; `inference.predictor.select_multibox` does the same.

    Attributes
    ----------
    nms_threshold : float
    nms_topk : int
        Anchors that enter suppression; below 1: all.
    score_threshold : float
    across_classes : bool
        Whether a box suppresses those of other classes too.
    """

    nms_threshold: float
    nms_topk: int
    score_threshold: float
    across_classes: bool


@dataclass(frozen=True)
class BuiltinGraph:
    """A symbol of the built-in's in our form.

    Attributes
    ----------
    symbol : str
        MXNet's JSON with the outputs `class_logits` (B, A, C + 1) and `box_offsets` (B, A, 4). `data_mean`
        (1, 3, 1, 1) is subtracted from its `data`.
    anchors : float32 (A, 4)
    input_statistics : str or None
        The moving mean of a BatchNorm on the input, if there is one.
    has_mean : bool
        Whether the symbol had a `data_mean` of its own.
    """

    symbol: str
    anchors: Boxes
    input_statistics: str | None
    has_mean: bool


def detection(symbol: str) -> MultiBoxDetection | None:
    """What a symbol's MultiBoxDetection is told; None where it has none, as ours.

    Raises
    ------
    ValueError
        When the symbol is none, or its operator is told what no model of the built-in has.
    """
    if _DETECTION not in symbol:
        return None
    try:
        nodes = json.loads(symbol)["nodes"]
        attributes = _attributes(nodes[_only_detection(nodes)])
        offset_scales = ast.literal_eval(attributes.get("variances", "(0.1, 0.1, 0.2, 0.2)"))
        if not np.allclose(offset_scales, OFFSET_SCALES):
            raise ValueError(f"variances {offset_scales}")
        return MultiBoxDetection(
            float(attributes.get("nms_threshold", 0.5)),
            int(attributes.get("nms_topk", -1)),
            float(attributes.get("threshold", SCORE_THRESHOLD)),
            attributes.get("force_suppress", "False") in ("True", "1", "true"),
        )
    except (ValueError, KeyError, TypeError, IndexError, SyntaxError, RecursionError) as error:
        raise ValueError(f"the symbol is not one of the built-in algorithm ({error!r})") from error


def adopted(symbol: str, image_shape: int) -> BuiltinGraph:
    """Cut a symbol of the built-in's before its detections.

    Parameters
    ----------
    symbol : str
        MXNet's JSON.
    image_shape : int
        Side S of its input, pixels.

    Raises
    ------
    ValueError
        When it is no such symbol.
    """
    try:
        return _adopted(json.loads(symbol), image_shape)
    except (ValueError, KeyError, TypeError, IndexError, SyntaxError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"the symbol is not one of the built-in algorithm ({error!r})") from error


def _adopted(graph: dict[str, Any], image_shape: int) -> BuiltinGraph:
    nodes: list[_Node] = graph["nodes"]
    scores, offsets, anchors = (each[0] for each in nodes[_only_detection(nodes)]["inputs"])
    if nodes[scores]["op"] not in _SOFTMAXES:
        raise ValueError(f"operator {nodes[scores]['op']} before the detections")
    logits = nodes[scores]["inputs"][0][0]
    has_mean = any(node["name"] == _MEAN for node in nodes)
    kept = _without_data(nodes, [logits, offsets])
    made, numbers = _with_mean(nodes, kept, has_mean)
    if _is_transposition(nodes[logits]):
        made.append(_node("_copy", "class_logits", [numbers[nodes[logits]["inputs"][0][0]]]))
    else:
        made.append(_node("transpose", "class_logits", [numbers[logits]], axes="(0, 2, 1)"))
    made.append(_node("Reshape", "box_offsets", [numbers[offsets]], shape="(0, -1, 4)"))
    return BuiltinGraph(
        _as_json(made, [len(made) - 2, len(made) - 1], graph),
        _anchors(nodes, anchors, image_shape),
        _input_statistics(nodes),
        has_mean,
    )


def deployed(symbol: str, graph: BuiltinGraph) -> str:
    """The symbol that ends in its detections, (B, A, 6), with `data_mean` subtracted inside: what any MXNet runs.

    Raises
    ------
    ValueError
        As `adopted`.
    """
    original = json.loads(symbol)
    nodes: list[_Node] = original["nodes"]
    detections = _only_detection(nodes)
    scores = nodes[detections]["inputs"][0][0]
    nodes[scores] = _node("softmax", nodes[scores]["name"], [nodes[scores]["inputs"][0][0]], axis="1")
    made, numbers = _with_mean(nodes, _without_data(nodes, [detections]), graph.has_mean)
    return _as_json(made, [numbers[detections]], original)


def with_classes(symbol: str, num_classes: int) -> str:
    """The same graph for another number of classes: `class_logits` comes from convolutions whose filters follow."""
    graph = json.loads(symbol)
    nodes: list[_Node] = graph["nodes"]
    waiting = [next(number for number, node in enumerate(nodes) if node["name"] == "class_logits")]
    reshaped, heads = [], []
    while waiting:
        node = nodes[waiting.pop()]
        if node["op"] == "Convolution":
            heads.append(node)
            continue
        if node["op"].lower() == "reshape":
            reshaped.append(node)
        waiting += [each[0] for each in node["inputs"]]
    old = ast.literal_eval(_attributes(reshaped[0])["shape"])[-1]
    for node in reshaped:
        node["attrs"] = _attributes(node) | {"shape": f"(0, -1, {num_classes + 1})"}
    for node in heads:
        filters = int(_attributes(node)["num_filter"]) // old * (num_classes + 1)
        node["attrs"] = _attributes(node) | {"num_filter": str(filters)}
    return json.dumps(graph)


def _only_detection(nodes: list[_Node]) -> int:
    (number,) = (number for number, node in enumerate(nodes) if node["op"].endswith(_DETECTION))
    return number


def _attributes(node: _Node) -> dict[str, str]:
    """An operator's settings, under whichever of the names that releases of MXNet gave them."""
    return dict(node.get("attrs") or node.get("attr") or node.get("param") or {})


def _node(op: str, name: str, inputs: list[int], **attributes: str) -> _Node:
    return {"op": op, "name": name, "attrs": attributes, "inputs": [[each, 0, 0] for each in inputs]}


def _is_transposition(node: _Node) -> bool:
    return node["op"] == "transpose" and ast.literal_eval(_attributes(node)["axes"]) == (0, 2, 1)


def _without_data(nodes: list[_Node], ends: list[int]) -> list[int]:
    """Numbers of the nodes that others are made of, in their order; less `data` and its mean."""
    found: set[int] = set()
    waiting = list(ends)
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting.extend(each[0] for each in nodes[number]["inputs"])
    return [number for number in sorted(found) if nodes[number]["name"] not in ("data", _MEAN)]


def _with_mean(nodes: list[_Node], kept: list[int], has_mean: bool) -> tuple[list[_Node], dict[int, int]]:
    """Nodes of a new graph, in which `data_mean` is subtracted from `data`, and the new numbers of the old."""
    made = [_node("null", "data", []), _node("null", _MEAN, [], __shape__="(1, 3, 1, 1)")]
    names = {node["name"]: number for number, node in enumerate(nodes)}
    numbers = {names["data"]: 0}
    if has_mean:
        numbers[names[_MEAN]] = 1
    else:
        made.append(_node("broadcast_sub", "normalised", [0, 1]))
        numbers[names["data"]] = 2
    for number in kept:
        old = nodes[number]
        numbers[number] = len(made)
        # What only its own trainer understands goes; a variable's shape may be known from nowhere else.
        attributes = _attributes(old)
        kept_of_them = {
            name: value
            for name, value in attributes.items()
            if name == "__shape__" or (old["op"] != "null" and not name.startswith("__"))
        }
        inputs = [[numbers[source], *rest] for source, *rest in old["inputs"]]
        made.append({"op": old["op"], "name": old["name"], "attrs": kept_of_them, "inputs": inputs})
    return made, numbers


def _as_json(nodes: list[_Node], heads: list[int], original: dict[str, Any]) -> str:
    return json.dumps(
        {
            "nodes": nodes,
            "arg_nodes": [number for number, node in enumerate(nodes) if node["op"] == "null"],
            "heads": [[each, 0, 0] for each in heads],
            "attrs": original.get("attrs", {}),  # the release that wrote it, by which MXNet reads it
        }
    )


def _input_statistics(nodes: list[_Node]) -> str | None:
    """The moving mean of a BatchNorm that `data` goes through before anything else."""
    number = next(number for number, node in enumerate(nodes) if node["name"] == "data")
    while True:
        consumers = [(each, node) for each, node in enumerate(nodes) if [number, 0] in [i[:2] for i in node["inputs"]]]
        if len(consumers) != 1:
            return None
        number, node = consumers[0]
        if node["op"] == "BatchNorm":
            return str(nodes[node["inputs"][3][0]]["name"])
        if node["op"] != "_copy":
            return None


def _anchors(nodes: list[_Node], number: int, image_shape: int) -> Boxes:
    """The anchors that reach the detections: of one MultiBoxPrior after the other."""
    node = nodes[number]
    if node["op"] == _PRIOR:
        return _prior(_attributes(node), _side(nodes, node["inputs"][0][0], image_shape))
    if node["op"].lower() not in ("flatten", "reshape", "concat"):
        raise ValueError(f"operator {node['op']} between anchors and detections")
    return np.concatenate([_anchors(nodes, each[0], image_shape) for each in node["inputs"]])


def _prior(attributes: dict[str, str], side: int) -> Boxes:
    """Anchors of a square map of features, as MultiBoxPrior makes them: float32 (cells x anchors of a cell, 4).

    The order in a cell: each size with the first ratio, then the first size with each other ratio.
    """
    sizes, ratios, steps, (offset_y, offset_x) = (
        tuple(np.float32(each) for each in _numbers(attributes.get(name, default)))
        for name, default in (
            ("sizes", "(1,)"),
            ("ratios", "(1,)"),
            ("steps", "(-1, -1)"),
            ("offsets", "(0.5, 0.5)"),
        )
    )
    step_y, step_x = (step if step > 0 else np.float32(1) / np.float32(side) for step in steps)
    roots = [np.sqrt(each) for each in ratios]
    shapes = [(size * roots[0], size / roots[0]) for size in sizes] + [
        (sizes[0] * root, sizes[0] / root) for root in roots[1:]
    ]
    cells = np.arange(side, dtype=np.float32)
    y, x = np.meshgrid((cells + offset_y) * step_y, (cells + offset_x) * step_x, indexing="ij")
    centres = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    half = np.asarray(shapes, dtype=np.float32).reshape(1, -1, 2) / 2
    boxes = np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4).astype(np.float32)
    return np.clip(boxes, 0, 1) if attributes.get("clip", "False") in ("True", "1", "true") else boxes


def _numbers(text: str) -> tuple[float, ...]:
    value = ast.literal_eval(text)
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _side(nodes: list[_Node], number: int, image_shape: int) -> int:
    """The side of a map of features, cells."""
    node = nodes[number]
    if node["name"] == "data":
        return image_shape
    attributes = _attributes(node)
    # The first input that is no parameter: a scale may stand before the map that it scales.
    source = next(each[0] for each in node["inputs"] if nodes[each[0]]["op"] != "null" or _is_data(nodes[each[0]]))
    side = _side(nodes, source, image_shape)
    if node["op"] in _SAME_SIZE:
        return side
    if node["op"] not in ("Convolution", "Pooling"):
        raise ValueError(f"operator {node['op']} before a map of features")
    kernel, stride, pad, dilation = (
        _numbers(attributes.get(name, default))[0]
        for name, default in (("kernel", "1"), ("stride", "1"), ("pad", "0"), ("dilate", "1"))
    )
    room = side + 2 * pad - (dilation * (kernel - 1) + 1)
    up = attributes.get("pooling_convention", "valid") == "full"
    return int(-(-room // stride) if up else room // stride) + 1


def _is_data(node: _Node) -> bool:
    return bool(node["name"] == "data")
