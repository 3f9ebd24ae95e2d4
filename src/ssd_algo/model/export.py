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
        pair = F.cast(pair, dtype="float32")
        anchor = F.floor((pair + 0.5) / num_classes)
        image = F.reshape(F.contrib.arange_like(best, axis=0), shape=(-1, 1))
        index = F.stack(F.broadcast_like(image, anchor), anchor, axis=0)
        anchors = F.var("anchors", shape=(1, *network.anchors.shape))
        boxes = F.gather_nd(_decoded(offsets, anchors), index)
        empty = F.zeros_like(best) - 1
        present = best >= SCORE_THRESHOLD
        rows = F.concat(
            F.expand_dims(F.where(present, pair - anchor * num_classes, empty), axis=2),
            F.expand_dims(F.where(present, best, empty), axis=2),
            boxes,
            dim=2,
        )
        rows = F.contrib.box_nms(
            rows, overlap_thresh=nms_threshold, valid_thresh=0, topk=-1, coord_start=2, score_index=1, id_index=0
        )
        found = F.slice_axis(rows, axis=2, begin=0, end=1) >= 0
        clipped = F.concat(
            F.slice_axis(rows, axis=2, begin=0, end=2), F.clip(F.slice_axis(rows, axis=2, begin=2, end=6), 0, 1), dim=2
        )
        rows = F.where(F.broadcast_like(found, clipped), clipped, F.zeros_like(clipped) - 1)
        if kept < nms_topk:
            rows = F.concat(
                rows,
                F.tile(F.slice_axis(F.zeros_like(rows), axis=1, begin=0, end=1) - 1, (1, nms_topk - kept, 1)),
                dim=1,
            )
        return F.identity(rows, name="detections")


def _decoded(offsets: mx.sym.Symbol, anchors: mx.sym.Symbol) -> mx.sym.Symbol:
    """Boxes (B, A, 4) from offsets (B, A, 4) and anchors (1, A, 4): `data.boxes.decode` as a graph."""
    low = mx.sym.slice_axis(anchors, axis=2, begin=0, end=2)
    sides = mx.sym.slice_axis(anchors, axis=2, begin=2, end=4) - low
    shift = mx.sym.slice_axis(offsets, axis=2, begin=0, end=2) * OFFSET_SCALES[0]
    scale = mx.sym.slice_axis(offsets, axis=2, begin=2, end=4) * OFFSET_SCALES[2]
    centre = mx.sym.broadcast_add(mx.sym.broadcast_mul(shift, sides), low + sides / 2)
    half = mx.sym.broadcast_mul(mx.sym.exp(scale), sides) / 2
    return mx.sym.concat(centre - half, centre + half, dim=2)
