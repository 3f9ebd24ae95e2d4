"""The network in forms for use elsewhere: the deploy symbol that any MXNet program can run."""

import mxnet as mx

from ssd_algo.data.boxes import OFFSET_SCALES, SCORE_THRESHOLD
from ssd_algo.model.network import Network


def deploy_symbol(network: Network, num_classes: int, nms_threshold: float, nms_topk: int) -> mx.sym.Symbol:
    """The network with its detections defined inside the graph.

    Softmax; pairs of anchor and class with a score of at least `SCORE_THRESHOLD`; the best `nms_topk` of them over all
    classes; non-maximum suppression within a class; sorted by score; clipped to the image. `inference.predictor`
    computes the same in NumPy.

    Returns
    -------
    symbol
        Input `data`, float32 (B, 3, S, S), raw RGB 0-255. One output, float32 (B, nms_topk, 6): class, score, xmin,
        ymin, xmax, ymax as fractions, best first; rows without a detection are -1.
    """
    F = mx.sym
    with mx.name.NameManager():
        logits, offsets = network.symbol
        pairs = len(network.anchors) * num_classes
        kept = min(nms_topk, pairs)
        scores = F.slice_axis(F.softmax(logits, axis=2, name="class_scores"), axis=2, begin=1, end=None)
        best, pair = F.topk(F.reshape(scores, shape=(0, -1)), axis=1, k=kept, ret_typ="both", dtype="int32")
        # float64: float32 does not count beyond 2^24, and large inputs with many classes have more pairs
        pair = F.cast(pair, dtype="float64")
        anchor = F.floor((pair + 0.5) / num_classes)
        identity = F.cast(pair - anchor * num_classes, dtype="float32")
        anchor = F.cast(anchor, dtype="float32")
        present = best >= SCORE_THRESHOLD
        empty = F.zeros_like(best) - 1
        # stack, where and pad throughout: MXNet 1.9.1's oneDNN concat fails on some of these shapes
        rows = F.stack(
            F.where(present, identity, empty),
            F.where(present, best, empty),
            *_decoded(offsets, F.var("anchors", shape=(1, *network.anchors.shape)), anchor),
            axis=2,
        )
        rows = F.contrib.box_nms(
            rows, overlap_thresh=nms_threshold, valid_thresh=0, topk=-1, coord_start=2, score_index=1, id_index=0
        )
        column = F.reshape(F.contrib.arange_like(rows, axis=2), shape=(1, 1, -1))
        rows = F.where(F.broadcast_like(column >= 2, rows), F.clip(rows, 0, 1), rows)
        found = F.broadcast_like(F.slice_axis(rows, axis=2, begin=0, end=1) >= 0, rows)
        rows = F.where(found, rows, F.zeros_like(rows) - 1)
        padding = (0, 0, 0, 0, 0, nms_topk - kept, 0, 0)
        rows = F.pad(F.expand_dims(rows, axis=1), mode="constant", pad_width=padding, constant_value=-1)
        return F.reshape(rows, shape=(0, -1, 6), name="detections")


def _decoded(offsets: mx.sym.Symbol, anchors: mx.sym.Symbol, chosen: mx.sym.Symbol) -> list[mx.sym.Symbol]:
    """Box sides xmin, ymin, xmax, ymax, each (B, K), of the anchors with the indices `chosen` (B, K).

    `data.boxes.decode` as a graph; offsets are (B, A, 4), anchors (1, A, 4).
    """
    F = mx.sym
    image = F.broadcast_like(F.reshape(F.contrib.arange_like(chosen, axis=0), shape=(-1, 1)), chosen)
    x, y, width, height = _columns(F.gather_nd(offsets, F.stack(image, chosen, axis=0)))
    left, top, right, bottom = _columns(F.take(F.reshape(anchors, shape=(-3, 0)), chosen))
    low, high = [], []
    for start, end, shift, scale, axis in ((left, right, x, width, 0), (top, bottom, y, height, 1)):
        side = end - start
        centre = (start + end) / 2 + shift * OFFSET_SCALES[axis] * side
        half = F.exp(scale * OFFSET_SCALES[2 + axis]) * side / 2
        low.append(centre - half)
        high.append(centre + half)
    return low + high


def _columns(boxes: mx.sym.Symbol) -> list[mx.sym.Symbol]:
    """(B, K, 4) to four of (B, K)."""
    return [mx.sym.reshape(mx.sym.slice_axis(boxes, axis=2, begin=i, end=i + 1), shape=(0, 0)) for i in range(4)]
