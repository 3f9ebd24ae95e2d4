"""Anchors and boxes to training targets, and the loss (Liu et al. 2016, section 2.2).

Everything is an array operation over the whole batch, part of the training graph: no host synchronisation, and each
image is normalised by itself, so that splitting a batch over devices changes nothing.
"""

import json
from typing import Any

import mxnet as mx

from ssd_algo.data.boxes import OFFSET_SCALES
from ssd_algo.model.network import Network, to_input

MATCH_IOU = 0.5
NEGATIVES_PER_POSITIVE = 3

# What the training graph takes, in this order, with its type.
INPUTS = {"images": "uint8", "boxes": "float32", "classes": "float32", "weights": "float32"}


def match(F: Any, anchors: Any, boxes: Any, classes: Any) -> tuple[Any, Any, Any]:
    """Assign ground truth to anchors.

    Each box gets the anchor with which it has the highest IoU (where two boxes want the same, the one with the higher
    IoU gets it); every other anchor gets the box with which it overlaps most, if their IoU is above `MATCH_IOU`.

    Parameters
    ----------
    F : mxnet.nd or mxnet.sym
    anchors : float32 (1, A, 4), corners
    boxes : float32 (B, G, 4), corners
    classes : float32 (B, G), -1 where there is no box

    Returns
    -------
    positive : float32 (B, A), 1 where the anchor has a box
    matched_boxes : float32 (B, A, 4), of any value where there is none
    matched_classes : float32 (B, A)
    """
    # Anchors are on the last axis throughout: MXNet's operators are several times slower where that one is short.
    real = F.expand_dims(classes >= 0, axis=2)
    overlap = F.broadcast_mul(_iou(F, anchors, boxes), real)
    best_anchor = F.argmax(overlap, axis=2, keepdims=True)
    index = F.reshape(F.contrib.arange_like(anchors, axis=1), shape=(1, 1, -1))
    forced = F.broadcast_mul(F.broadcast_equal(index, best_anchor), real)
    score = overlap + 2 * forced
    best_box = F.argmax(score, axis=1)
    positive = F.pick(score, best_box, axis=1) > MATCH_IOU
    truth = F.reshape(F.concat(boxes, F.expand_dims(classes, axis=2), dim=2), shape=(-3, 0))
    first = F.slice_axis(F.contrib.arange_like(classes), axis=1, begin=0, end=1)  # row of each image's first box
    matched = F.take(truth, F.broadcast_add(first, best_box), mode="clip")
    return (
        positive,
        F.slice_axis(matched, axis=2, begin=0, end=4),
        F.reshape(F.slice_axis(matched, axis=2, begin=4, end=5), shape=(0, 0)),
    )


def _iou(F: Any, anchors: Any, boxes: Any) -> Any:
    """IoU of every box (B, G, 4) with every anchor (1, A, 4): (B, G, A)."""
    a = [F.expand_dims(F.reshape(F.slice_axis(anchors, axis=2, begin=i, end=i + 1), shape=(0, 0)), 1) for i in range(4)]
    b = [F.slice_axis(boxes, axis=2, begin=i, end=i + 1) for i in range(4)]
    width = F.relu(F.broadcast_sub(F.broadcast_minimum(b[2], a[2]), F.broadcast_maximum(b[0], a[0])))
    height = F.relu(F.broadcast_sub(F.broadcast_minimum(b[3], a[3]), F.broadcast_maximum(b[1], a[1])))
    shared = width * height
    areas = F.broadcast_add((b[2] - b[0]) * (b[3] - b[1]), (a[2] - a[0]) * (a[3] - a[1]))
    return shared / (areas - shared)


def encode(F: Any, anchors: Any, boxes: Any) -> Any:
    """Offsets of boxes (B, A, 4) from their anchors (1, A, 4), both as corners: the inverse of `data.boxes.decode`."""
    anchor_centre, anchor_sides = _centre(F, anchors)
    box_centre, box_sides = _centre(F, boxes)
    shift = F.broadcast_div(F.broadcast_sub(box_centre, anchor_centre), anchor_sides) / OFFSET_SCALES[0]
    # The floor keeps boxes without extent, of padding, from becoming -inf.
    scale = F.log(F.maximum(F.broadcast_div(box_sides, anchor_sides), 1e-6)) / OFFSET_SCALES[2]
    return F.concat(shift, scale, dim=2)


def _centre(F: Any, boxes: Any) -> tuple[Any, Any]:
    low = F.slice_axis(boxes, axis=2, begin=0, end=2)
    high = F.slice_axis(boxes, axis=2, begin=2, end=4)
    return (low + high) / 2, high - low


def hard_negatives(F: Any, positive: Any, background_loss: Any) -> Any:
    """The negatives with the highest loss, three for each positive of the image, (B, A) of 0 and 1.

    An image without objects counts as one with a single match, so that it teaches what background looks like.
    """
    wanted = NEGATIVES_PER_POSITIVE * F.maximum(F.sum(positive, axis=1, keepdims=True), 1)
    candidates = F.where(positive, F.zeros_like(positive) - 1, background_loss)
    # One sort: all above the loss of the last one wanted, and of those equal to it the first that there is room for.
    last = F.pick(F.sort(candidates, axis=1, is_ascend=False), wanted - 1, axis=1, keepdims=True, mode="clip")
    above, equal = F.broadcast_greater(candidates, last), F.broadcast_equal(candidates, last)
    room = wanted - F.sum(above, axis=1, keepdims=True)
    chosen = above + equal * F.broadcast_lesser_equal(F.cumsum(equal, axis=1), room)
    return chosen * (1 - positive)


def detection_loss(F: Any, logits: Any, offsets: Any, anchors: Any, boxes: Any, classes: Any) -> tuple[Any, Any]:
    """Cross entropy over positives and hard negatives plus smooth L1 over positives, an image at a time.

    Parameters
    ----------
    logits : float32 (B, A, C + 1), background first
    offsets : float32 (B, A, 4)
    anchors, boxes, classes
        As in `match`.

    Returns
    -------
    loss : float32 (B,)
        Sum over the image's chosen anchors, divided by its number of positives (at least 1).
    parts : float32 (B, 3), no gradient
        Summed cross entropy, summed smooth L1, number of chosen anchors.
    """
    positive, matched_boxes, matched_classes = (F.BlockGrad(each) for each in match(F, anchors, boxes, classes))
    log_probability = F.log_softmax(logits, axis=2)
    background_loss = -F.reshape(F.slice_axis(log_probability, axis=2, begin=0, end=1), shape=(0, 0))
    negative = F.BlockGrad(hard_negatives(F, positive, background_loss))
    target = positive * (matched_classes + 1)
    cross_entropy = -F.pick(log_probability, target, axis=2) * (positive + negative)
    distance = F.smooth_l1(offsets - F.BlockGrad(encode(F, anchors, matched_boxes)), scalar=1.0)
    # where() and not a product: the distance at an anchor without a box may be anything.
    smooth_l1 = F.where(positive, F.sum(distance, axis=2), F.zeros_like(positive))
    sums = [F.sum(each, axis=1) for each in (cross_entropy, smooth_l1, positive + negative)]
    loss = (sums[0] + sums[1]) / F.maximum(F.sum(positive, axis=1), 1)
    return loss, F.BlockGrad(F.stack(*sums, axis=1))


def training_symbol(network: Network, frozen: frozenset[str]) -> mx.sym.Symbol:
    """The whole training step up to the loss as one graph.

    Inputs: `images` uint8 (B, S, S, 3) RGB, `boxes` float32 (B, G, 4) as fractions, `classes` float32 (B, G) with -1
    for padding, `weights` float32 (B,), 0 for an image that only fills the batch.
    Outputs: loss (B,) and parts (3,) summed over the batch, both weighted.

    A BatchNorm layer of which anything but beta is frozen keeps its statistics too.
    """
    images, boxes, classes, weights = (mx.sym.var(name, dtype=dtype) for name, dtype in INPUTS.items())
    logits, offsets = _with_frozen_statistics(network.symbol, frozen)(data=to_input(images))
    anchors = mx.sym.var("anchors", shape=(1, *network.anchors.shape))
    loss, parts = detection_loss(mx.sym, logits, offsets, anchors, boxes, classes)
    weighted_parts = mx.sym.sum(mx.sym.broadcast_mul(parts, mx.sym.expand_dims(weights, axis=1)), axis=0)
    return mx.sym.Group([loss * weights, weighted_parts])


def _with_frozen_statistics(symbol: mx.sym.Symbol, frozen: frozenset[str]) -> mx.sym.Symbol:
    graph = json.loads(symbol.tojson())
    for node in graph["nodes"]:
        if node["op"] == "BatchNorm":
            _data, gamma, _beta, mean, variance = (graph["nodes"][each[0]]["name"] for each in node["inputs"])
            if not frozen.isdisjoint((gamma, mean, variance)):
                node["attrs"]["use_global_stats"] = "True"
    return mx.sym.load_json(json.dumps(graph))
