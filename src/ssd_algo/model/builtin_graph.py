"""The built-in algorithm's own symbols as graphs of ours.

Its artifact holds the graph that it trained, with the heads `cls_prob`, `loc_loss`, `cls_label` and `det_out`; the
deployment script of the code that it descends from (zhreshold/mxnet-ssd) makes one that ends in `detection`. Either is
cut where its MultiBoxDetection begins, whatever its nodes are called.
"""

from dataclasses import dataclass

import numpy as np

from ssd_algo.data.boxes import OFFSET_SCALES, SCORE_THRESHOLD, Boxes
from ssd_algo.model import graph
from ssd_algo.model.graph import INPUT, NONSENSE, Node, numbers

_DETECTION = "MultiBoxDetection"
_PRIOR = "_contrib_MultiBoxPrior"
_MEAN = "data_mean"
# What maps of features go through, with no effect on their size.
_SAME_SIZE = frozenset(
    {"_copy", "Activation", "BatchNorm", "Dropout", "L2Normalization", "broadcast_mul", "broadcast_sub", "elemwise_add"}
)
_MOST_ANCHORS, _MOST_SIDE = 1_000_000, 10_000


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
        nodes = graph.parse(symbol)
        told = nodes[_only_detection(nodes)]["attrs"]
        found = MultiBoxDetection(
            float(told.get("nms_threshold", 0.5)),
            int(told.get("nms_topk", -1)),
            float(told.get("threshold", SCORE_THRESHOLD)),
            _is_true(told.get("force_suppress", "False")),
        )
        if (
            not 0 < found.nms_threshold <= 1
            or not 0 <= found.score_threshold < 1
            or abs(found.nms_topk) > _MOST_ANCHORS
            or not _is_true(told.get("clip", "True"))
            or not np.allclose(numbers(told.get("variances", "(0.1, 0.1, 0.2, 0.2)")), OFFSET_SCALES)
        ):
            raise ValueError(f"{_DETECTION} is told {told}")
        return found
    except NONSENSE as error:
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
        return _adopted(symbol, image_shape)
    except NONSENSE as error:
        raise ValueError(f"the symbol is not one of the built-in algorithm ({error!r})") from error


def _adopted(symbol: str, image_shape: int) -> BuiltinGraph:
    nodes = graph.parse(symbol)
    scores, offsets, anchors = (source for source, *_ in nodes[_only_detection(nodes)]["inputs"])
    logits = _logits(nodes, scores)
    kept = graph.reachable(nodes, [logits, offsets])
    graph.check_operators(nodes[number] for number in kept)
    has_mean = any(node["name"] == _MEAN for node in nodes)
    made, places = _with_mean(nodes, kept, has_mean)
    if _is_transposition(nodes[logits]):
        made.append(_node("_copy", "class_logits", [places[nodes[logits]["inputs"][0][0]]]))
    else:
        made.append(_node("transpose", "class_logits", [places[logits]], axes="(0, 2, 1)"))
    made.append(_node("Reshape", "box_offsets", [places[offsets]], shape="(0, -1, 4)"))
    return BuiltinGraph(
        graph.to_json(made, [len(made) - 2, len(made) - 1], symbol),
        _anchors(nodes, anchors, image_shape),
        _input_statistics(nodes),
        has_mean,
    )


def deployed(symbol: str, has_mean: bool) -> str:
    """The symbol that ends in its detections, (B, A, 6), with `data_mean` subtracted inside: what any MXNet runs.

    Raises
    ------
    One of NONSENSE
        Of a symbol that cannot be `adopted`.
    """
    nodes = graph.parse(symbol)
    detections = _only_detection(nodes)
    scores = nodes[detections]["inputs"][0][0]
    nodes[scores] = _node("softmax", nodes[scores]["name"], [_logits(nodes, scores)], axis="1")
    made, places = _with_mean(nodes, graph.reachable(nodes, [detections]), has_mean)
    return graph.to_json(made, [places[detections]], symbol)


def _logits(nodes: list[Node], scores: int) -> int:
    """The node whose softmax over the classes the scores are."""
    node = nodes[scores]
    told = node["attrs"]
    over_classes = {
        "SoftmaxOutput": _is_true(told.get("multi_output", "False")),
        "softmax": told.get("axis") == "1" and told.get("temperature", "None") in ("None", "1", "1.0"),
        "SoftmaxActivation": told.get("mode") == "channel",
    }
    if not over_classes.get(node["op"], False):
        raise ValueError(f"operator {node['op']} ({told}) before the detections")
    return int(node["inputs"][0][0])


def _only_detection(nodes: list[Node]) -> int:
    (number,) = (number for number, node in enumerate(nodes) if node["op"].endswith(_DETECTION))
    return number


def _is_true(text: str) -> bool:
    return text in ("True", "1", "true")


def _node(op: str, name: str, inputs: list[int], **attributes: str) -> Node:
    return {"op": op, "name": name, "attrs": attributes, "inputs": [[each, 0, 0] for each in inputs]}


def _is_transposition(node: Node) -> bool:
    return node["op"] == "transpose" and numbers(node["attrs"]["axes"]) == (0, 2, 1)


def _with_mean(nodes: list[Node], kept: list[int], has_mean: bool) -> tuple[list[Node], dict[int, int]]:
    """Nodes of a new graph, in which `data_mean` is subtracted from `data`, and the new places of the old."""
    made = [_node("null", INPUT, []), _node("null", _MEAN, [], __shape__="(1, 3, 1, 1)")]
    old_places = {node["name"]: number for number, node in enumerate(nodes)}
    places = {old_places[INPUT]: 0}
    if has_mean:
        places[old_places[_MEAN]] = 1
    else:
        made.append(_node("broadcast_sub", "normalised", [0, 1]))
        places[old_places[INPUT]] = 2
    for number in kept:
        old = nodes[number]
        if old["op"] == "null" and old["name"] in (INPUT, _MEAN):
            continue
        places[number] = len(made)
        # What only its own trainer understands goes; a variable's shape may be known from nowhere else.
        attributes = {
            name: value
            for name, value in old["attrs"].items()
            if name == "__shape__" or (old["op"] != "null" and not name.startswith("__"))
        }
        inputs = [[places[source], *rest] for source, *rest in old["inputs"]]
        made.append({"op": old["op"], "name": old["name"], "attrs": attributes, "inputs": inputs})
    return made, places


def _input_statistics(nodes: list[Node]) -> str | None:
    """The moving mean of a BatchNorm that `data` goes through before anything else."""
    number = next(number for number, node in enumerate(nodes) if node["name"] == INPUT)
    while True:  # each goes to one behind it
        consumers = [
            each for each, node in enumerate(nodes) if any(source[:2] == [number, 0] for source in node["inputs"])
        ]
        if len(consumers) != 1:
            return None
        (number,) = consumers
        node = nodes[number]
        if node["op"] == "BatchNorm":
            return str(nodes[node["inputs"][3][0]]["name"])
        if node["op"] != "_copy":
            return None


def _anchors(nodes: list[Node], end: int, image_shape: int) -> Boxes:
    """The anchors that reach the detections: of one MultiBoxPrior after the other."""
    found: list[Boxes] = []
    waiting = [end]
    while waiting:
        node = nodes[waiting.pop()]
        if node["op"] == _PRIOR:
            found.append(_prior(node["attrs"], _side(nodes, node["inputs"][0][0], image_shape)))
        elif node["op"] in ("Flatten", "Reshape", "Concat", "_copy"):
            waiting += [source for source, *_ in reversed(node["inputs"])]
        else:
            raise ValueError(f"operator {node['op']} between anchors and detections")
        if len(waiting) > len(nodes) or sum(map(len, found)) > _MOST_ANCHORS:
            raise ValueError("too many anchors")
    return np.concatenate(found)


def _prior(told: dict[str, str], side: int) -> Boxes:
    """Anchors of a square map of features, as MultiBoxPrior makes them: float32 (cells x anchors of a cell, 4).

    The order in a cell: each size with the first ratio, then the first size with each other ratio.
    """
    sizes, ratios, steps, (offset_y, offset_x) = (
        tuple(np.float32(each) for each in numbers(told.get(name, default)))
        for name, default in (("sizes", "1"), ("ratios", "1"), ("steps", "(-1, -1)"), ("offsets", "(0.5, 0.5)"))
    )
    step_y, step_x = (step if step > 0 else np.float32(1) / np.float32(side) for step in steps)
    roots = [np.sqrt(each) for each in ratios]
    shapes = [(size * roots[0], size / roots[0]) for size in sizes]
    shapes += [(sizes[0] * root, sizes[0] / root) for root in roots[1:]]
    if side * side * len(shapes) > _MOST_ANCHORS:
        raise ValueError("too many anchors")
    cells = np.arange(side, dtype=np.float32)
    y, x = np.meshgrid((cells + offset_y) * step_y, (cells + offset_x) * step_x, indexing="ij")
    centres = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    half = np.asarray(shapes, dtype=np.float32).reshape(1, -1, 2) / 2
    boxes = np.concatenate([centres - half, centres + half], axis=-1).reshape(-1, 4).astype(np.float32)
    return np.clip(boxes, 0, 1) if _is_true(told.get("clip", "False")) else boxes


def _side(nodes: list[Node], number: int, image_shape: int) -> int:
    """The side of a map of features, cells."""
    node, layers = nodes[number], []
    while node["name"] != INPUT:
        layers.append(node)
        # The first input that is no parameter: a scale may stand before the map that it scales.
        before = [nodes[source] for source, *_ in node["inputs"]]
        node = next(each for each in before if each["op"] != "null" or each["name"] == INPUT)
    side = image_shape
    for layer in reversed(layers):
        if layer["op"] in ("Convolution", "Pooling"):
            side = _smaller(side, layer["attrs"])
        elif layer["op"] not in _SAME_SIZE:
            raise ValueError(f"operator {layer['op']} before a map of features")
    return side


def _smaller(side: int, told: dict[str, str]) -> int:
    """What a convolution or pooling makes of a side."""
    kernel, stride, pad, dilation = (
        int(numbers(told.get(name, default))[0])
        for name, default in (("kernel", "1"), ("stride", "1"), ("pad", "0"), ("dilate", "1"))
    )
    room = side + 2 * pad - (dilation * (kernel - 1) + 1)
    up = told.get("pooling_convention", "valid") == "full"
    smaller = (-(-room // stride) if up else room // stride) + 1
    if not 0 < smaller <= _MOST_SIDE:
        raise ValueError(f"a map of features with a side of {smaller}")
    return smaller
