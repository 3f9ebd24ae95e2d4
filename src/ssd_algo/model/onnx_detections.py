"""Decoding and suppression behind the network as ONNX, so that any runtime gives the served detections.

`mx.onnx` makes of MXNet's suppression one across classes, and of its top-k one of each class. Here both are as
`inference.predictor` has them.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ssd_algo.data.boxes import OFFSET_SCALES, SCORE_THRESHOLD
from ssd_algo.model.builtin_graph import MultiBoxDetection
from ssd_algo.model.graph import OUTPUTS
from ssd_algo.model.onnx_graph import ANCHORS

OUTPUT = "detections"


def with_detections(
    network: onnx.ModelProto, nms_threshold: float, nms_topk: int, multibox: MultiBoxDetection | None
) -> onnx.ModelProto:
    """The network with detections as its only output.

    Parameters
    ----------
    network : onnx.ModelProto
        As `model.onnx_graph` or `model.quantize` makes it.
    nms_threshold, nms_topk
        As the hyperparameters of these names.
    multibox : MultiBoxDetection or None
        How a network of the built-in's makes detections.

    Returns
    -------
    onnx.ModelProto
        Input `data`, float32 (N, 3, S, S), raw RGB 0-255. Output `detections`, float32 (N, K, 6): class, score, xmin,
        ymin, xmax, ymax as fractions, best first; rows without a detection are -1. K is `nms_topk`, or less where the
        network has less to choose from.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    weights = {each.name: each for each in model.graph.initializer}
    anchors = numpy_helper.to_array(weights[f"{ANCHORS}_value"])[0]
    classes = _foreground_classes(model)
    tail = _Tail(model.graph)
    if multibox is None:
        found = tail.best_pairs(nms_topk, len(anchors), classes)
        least, iou, across, clip_first = SCORE_THRESHOLD, np.float32(nms_threshold), False, False
    else:
        found = tail.best_anchors(multibox.nms_topk, len(anchors), classes)
        # It begins to suppress at the threshold itself, the operator above it.
        iou = np.nextafter(np.float32(multibox.nms_threshold), np.float32(0))
        least, across, clip_first = multibox.score_threshold, multibox.across_classes, True
    tail.detections(*found, anchors, 1 if across else classes, least, iou, clip_first)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["N", "K", 6]))
    return model


def _foreground_classes(model: onnx.ModelProto) -> int:
    """Read off the shape that the class logits get."""
    shapes = {each.name: each for each in model.graph.initializer}
    makers = {node.output[0]: node for node in model.graph.node}
    node = makers[OUTPUTS[0]]
    while node.op_type != "Reshape":
        node = makers[node.input[0]]
    return int(numpy_helper.to_array(shapes[node.input[1]])[-1]) - 1


class _Tail:
    """Nodes behind a graph's; K is the number of candidates."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        for node in [node for node in graph.node if node.output[0] == ANCHORS]:  # an output that goes
            graph.node.remove(node)
            graph.initializer.remove(next(each for each in graph.initializer if each.name == node.input[0]))

    def _emit(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"detect_{len(self._graph.node)}"
        made = [name, *(f"{name}_{number}" for number in range(1, outputs))]
        self._graph.node.append(helper.make_node(op, inputs, made, name=name, **attributes))
        return name

    def _constant(self, value: NDArray[np.generic] | list[int]) -> str:
        array = np.asarray(value, dtype=np.int64) if isinstance(value, list) else value
        name = f"detect_constant_{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _number(self, value: float) -> str:
        return self._constant(np.asarray(value, dtype=np.float32))

    def _unsqueezed(self, name: str, axis: int) -> str:
        return self._emit("Unsqueeze", name, self._constant([axis]))

    def _top(self, scores: str, wanted: int, there_are: int) -> tuple[str, str]:
        count = min(wanted, there_are) if wanted > 0 else there_are
        best = self._emit("TopK", scores, self._constant([count]), outputs=2, axis=1)
        return best, f"{best}_1"

    def _scores(self) -> str:
        """Of the foreground classes, (N, A, C)."""
        every = self._emit("Softmax", OUTPUTS[0], axis=2)
        return self._emit("Slice", every, self._constant([1]), self._constant([2**31]), self._constant([2]))

    def best_pairs(self, topk: int, anchors: int, classes: int) -> tuple[str, str, str]:
        """Scores, anchors and classes, each (N, K), of the best pairs of anchor and class."""
        flat = self._emit("Reshape", self._scores(), self._constant([0, -1]))
        best, pair = self._top(flat, topk, anchors * classes)
        count = self._constant(np.asarray(classes, dtype=np.int64))
        anchor = self._emit("Div", pair, count)
        return best, anchor, self._emit("Sub", pair, self._emit("Mul", anchor, count))

    def best_anchors(self, topk: int, anchors: int, classes: int) -> tuple[str, str, str]:
        """Scores, anchors and classes, each (N, K), of the best anchors, each with its best class."""
        scores = self._scores()
        of_anchor = self._emit("ReduceMax", scores, axes=[2], keepdims=0)
        best, anchor = self._top(of_anchor, topk, anchors)
        identity = self._emit("ArgMax", scores, axis=2, keepdims=0)
        return best, anchor, self._emit("GatherElements", identity, anchor, axis=1)

    def detections(
        self,
        best: str,
        anchor: str,
        identity: str,
        anchors: NDArray[np.float32],
        groups: int,
        least_score: float,
        iou: np.float32,
        clip_first: bool,
    ) -> None:
        """Boxes, suppression within each of the groups, and rows in order."""
        boxes = self._boxes(anchor, anchors)
        clipped = self._emit("Clip", boxes, self._number(0), self._number(1))
        present = self._emit("GreaterOrEqual", best, self._number(least_score))
        alone = self._emit("Where", present, best, self._number(0))
        scores = self._unsqueezed(alone, 1)  # (N, 1, K)
        if groups > 1:
            group = self._constant(np.arange(groups, dtype=np.int64).reshape(1, -1, 1))
            own = self._emit("Equal", self._unsqueezed(identity, 1), group)
            scores = self._emit("Where", own, scores, self._number(0))  # (N, C, K): each in its own class only
        most = int(np.iinfo(np.int32).max)
        kept = self._emit(
            "NonMaxSuppression",
            clipped if clip_first else boxes,
            scores,
            self._constant([most]),
            self._constant(np.asarray([iou], dtype=np.float32)),
            self._constant(np.asarray([least_score / 2], dtype=np.float32)),  # above the zeros, whatever equal means
        )
        place = self._emit("Gather", kept, self._constant([0, 2]), axis=1)  # image and candidate
        ones = self._emit("Expand", self._number(1), self._emit("Slice", self._emit("Shape", place), *self._first()))
        mask = self._emit("ScatterND", self._emit("Mul", best, self._number(0)), place, ones)
        is_kept = self._emit("Greater", mask, self._number(0.5))
        order = self._order(self._emit("Where", is_kept, best, self._number(-1)), best)
        columns = [self._unsqueezed(each, 2) for each in (self._emit("Cast", identity, to=TensorProto.FLOAT), best)]
        rows = self._emit("Concat", *columns, clipped, axis=2)
        rows = self._emit("Where", self._unsqueezed(is_kept, 2), rows, self._number(-1))
        ordered = self._emit("GatherND", rows, self._unsqueezed(order, 2), batch_dims=1)
        self._graph.node.append(helper.make_node("Identity", [ordered], [OUTPUT], name=OUTPUT))

    def _first(self) -> tuple[str, str]:
        return self._constant([0]), self._constant([1])

    def _order(self, ranks: str, like: str) -> str:
        """Indices (N, K), the highest ranks first."""
        count = self._emit("Slice", self._emit("Shape", like), self._constant([1]), self._constant([2]))
        return f"{self._emit('TopK', ranks, count, outputs=2, axis=1)}_1"

    def _boxes(self, anchor: str, anchors: NDArray[np.float32]) -> str:
        """`data.boxes.decode` of the chosen anchors: (N, K, 4)."""
        offsets = self._emit("GatherND", OUTPUTS[1], self._unsqueezed(anchor, 2), batch_dims=1)
        scaled = self._emit("Mul", offsets, self._constant(np.asarray(OFFSET_SCALES, dtype=np.float32)))
        sides = anchors[:, 2:] - anchors[:, :2]
        centre_of_anchor, side_of_anchor = (
            self._emit("Gather", self._constant(each), anchor, axis=0) for each in (anchors[:, :2] + sides / 2, sides)
        )
        shift, scale = (
            self._emit("Slice", scaled, self._constant([low]), self._constant([low + 2]), self._constant([2]))
            for low in (0, 2)
        )
        centre = self._emit("Add", centre_of_anchor, self._emit("Mul", shift, side_of_anchor))
        side = self._emit("Mul", side_of_anchor, self._emit("Exp", scale))
        half = self._emit("Mul", side, self._number(0.5))
        return self._emit("Concat", self._emit("Sub", centre, half), self._emit("Add", centre, half), axis=2)
