"""Targets and loss against naive loops that can be checked by eye."""

import mxnet as mx
import numpy as np
import pytest
from numpy.typing import NDArray

from ssd_algo.data import boxes as geometry
from ssd_algo.data.anchors import anchors as make_anchors
from ssd_algo.model import targets

ANCHORS = make_anchors(128, [(8, 8), (4, 4), (2, 2)])
CLASSES = 3


def random_truth(generator: np.random.Generator, images: int, most: int) -> tuple[NDArray[np.float32], ...]:
    """Boxes (B, G, 4) and classes (B, G), the last image without objects, padded with -1."""
    low = generator.uniform(0, 0.7, (images, most, 2))
    boxes = np.concatenate([low, low + generator.uniform(0.05, 0.3, (images, most, 2))], axis=2).astype(np.float32)
    classes = generator.integers(0, CLASSES, (images, most)).astype(np.float32)
    for image in range(images):
        count = int(generator.integers(1, most + 1)) if image < images - 1 else 0
        boxes[image, count:], classes[image, count:] = 0, -1
    return boxes, classes


def naive_match(boxes: NDArray[np.float32], classes: NDArray[np.float32]) -> list[int]:
    """For each anchor of an image the index of its box, -1 for background."""
    real = [index for index in range(len(classes)) if classes[index] >= 0]
    chosen = []
    for anchor in range(len(ANCHORS)):
        best, found = targets.MATCH_IOU, -1
        for index in real:
            overlap = geometry.iou(ANCHORS[anchor : anchor + 1], boxes[index : index + 1])[0, 0]
            if overlap > best:
                best, found = overlap, index
        chosen.append(found)
    wanted: dict[int, list[tuple[float, int]]] = {}
    for index in real:
        overlaps = geometry.iou(ANCHORS, boxes[index : index + 1])[:, 0]
        wanted.setdefault(int(overlaps.argmax()), []).append((float(overlaps.max()), index))
    for anchor, candidates in wanted.items():
        chosen[anchor] = max(candidates)[1]
    return chosen


def naive_loss(
    logits: NDArray[np.float32], offsets: NDArray[np.float32], boxes: NDArray[np.float32], classes: NDArray[np.float32]
) -> tuple[float, float, int, int]:
    """Cross entropy, smooth L1, number of positives and of chosen anchors of an image."""
    chosen = naive_match(boxes, classes)
    log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    positives = [anchor for anchor, index in enumerate(chosen) if index >= 0]
    negatives = [anchor for anchor, index in enumerate(chosen) if index < 0]
    negatives.sort(key=lambda anchor: log_probability[anchor, 0])
    negatives = negatives[: 3 * max(len(positives), 1)]
    cross_entropy = -sum(log_probability[anchor, 0] for anchor in negatives)
    smooth_l1 = 0.0
    for anchor in positives:
        cross_entropy -= log_probability[anchor, int(classes[chosen[anchor]]) + 1]
        (a, b) = geometry.to_centre(ANCHORS[anchor : anchor + 1])[0], geometry.to_centre(boxes[chosen[anchor]][None])[0]
        wanted = [(b[0] - a[0]) / a[2] / 0.1, (b[1] - a[1]) / a[3] / 0.1]
        wanted += [np.log(b[2] / a[2]) / 0.2, np.log(b[3] / a[3]) / 0.2]
        for each, value in zip(offsets[anchor], wanted, strict=True):
            distance = abs(each - value)
            smooth_l1 += distance**2 / 2 if distance < 1 else distance - 0.5
    return cross_entropy, smooth_l1, len(positives), len(positives) + len(negatives)


@pytest.mark.parametrize("seed", range(5))
def test_loss_is_that_of_a_naive_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    boxes, classes = random_truth(generator, images=4, most=6)
    logits = generator.normal(0, 2, (4, len(ANCHORS), CLASSES + 1)).astype(np.float32)
    offsets = generator.normal(0, 2, (4, len(ANCHORS), 4)).astype(np.float32)
    arrays = [mx.nd.array(each) for each in (logits, offsets, ANCHORS[None], boxes, classes)]
    loss, parts = targets.detection_loss(mx.nd, *arrays)
    for image in range(4):
        expected = naive_loss(logits[image], offsets[image], boxes[image], classes[image])
        assert parts[image].asnumpy() == pytest.approx([expected[0], expected[1], expected[3]], rel=1e-4)
        assert loss[image].asscalar() == pytest.approx((expected[0] + expected[1]) / max(expected[2], 1), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_targets_are_those_of_multi_box_target_where_that_is_defined(seed: int) -> None:
    """Images with objects, no two of which want the same anchor: MXNet's operator gives the second another one."""
    generator = np.random.default_rng(seed)
    boxes, classes = random_truth(generator, images=9, most=4)
    best = [[int(geometry.iou(ANCHORS, box[None])[:, 0].argmax()) for box in each] for each in boxes]
    counts = (classes >= 0).sum(axis=1)
    alone = [len(set(each[:count])) == count > 0 for each, count in zip(best, counts, strict=True)]
    boxes, classes = boxes[alone], classes[alone]
    assert len(boxes) >= 3
    logits = mx.nd.array(generator.normal(0, 2, (len(boxes), len(ANCHORS), CLASSES + 1)))
    truths, anchors = (mx.nd.array(boxes), mx.nd.array(classes)), mx.nd.array(ANCHORS[None])
    positive, matched, matched_classes = targets.match(mx.nd, anchors, *truths)
    background_loss = -mx.nd.log_softmax(logits, axis=2)[:, :, 0]
    negative = targets.hard_negatives(mx.nd, positive, background_loss).asnumpy()
    positive = positive.asnumpy()
    ours = np.where(positive, matched_classes.asnumpy() + 1, np.where(negative, 0, -1))
    rows = np.concatenate([classes[:, :, None], boxes], axis=2)
    rows[classes < 0] = -1
    theirs_offsets, _, theirs = mx.nd.contrib.MultiBoxTarget(
        anchors,
        mx.nd.array(rows),
        logits.transpose((0, 2, 1)),
        overlap_threshold=targets.MATCH_IOU,
        negative_mining_ratio=targets.NEGATIVES_PER_POSITIVE,
        negative_mining_thresh=targets.MATCH_IOU,
        variances=geometry.OFFSET_SCALES,
    )
    assert (ours == theirs.asnumpy()).all()
    offsets = targets.encode(mx.nd, anchors, matched).asnumpy()
    expected = theirs_offsets.asnumpy().reshape(offsets.shape)
    assert offsets[positive > 0] == pytest.approx(expected[positive > 0], abs=1e-5)


def test_two_boxes_that_want_one_anchor() -> None:
    # Both lie best with the 2x2 map's first anchor; the better fitting one gets it.
    anchor = ANCHORS[-16]
    boxes = np.stack([anchor + np.asarray([0, 0, 0.05, 0.05]), anchor]).astype(np.float32)[None]
    classes = np.asarray([[0, 1]], dtype=np.float32)
    positive, matched, matched_classes = targets.match(
        mx.nd, *(mx.nd.array(each) for each in (ANCHORS[None], boxes, classes))
    )
    assert positive[0, -16].asscalar() == 1
    assert matched_classes[0, -16].asscalar() == 1
    assert matched[0, -16].asnumpy() == pytest.approx(anchor)


def test_encode_is_the_inverse_of_decode() -> None:
    generator = np.random.default_rng(0)
    low = generator.uniform(0, 0.7, (len(ANCHORS), 2))
    boxes = np.concatenate([low, low + generator.uniform(0.01, 0.3, (len(ANCHORS), 2))], axis=1).astype(np.float32)
    offsets = targets.encode(mx.nd, mx.nd.array(ANCHORS[None]), mx.nd.array(boxes[None])).asnumpy()[0]
    assert geometry.decode(offsets, ANCHORS) == pytest.approx(boxes, abs=1e-5)


def test_image_without_objects_teaches_background_and_no_box() -> None:
    generator = np.random.default_rng(0)
    logits = mx.nd.array(generator.normal(0, 2, (1, len(ANCHORS), CLASSES + 1)))
    offsets = mx.nd.array(generator.normal(0, 2, (1, len(ANCHORS), 4)))
    boxes, classes = mx.nd.zeros((1, 2, 4)), mx.nd.zeros((1, 2)) - 1
    for each in (logits, offsets):
        each.attach_grad()
    with mx.autograd.record():
        loss, parts = targets.detection_loss(mx.nd, logits, offsets, mx.nd.array(ANCHORS[None]), boxes, classes)
    loss.backward()
    assert parts[0, 1].asscalar() == 0
    assert parts[0, 2].asscalar() == 3  # three negatives, as if there were one positive
    assert loss.asscalar() > 0
    assert (offsets.grad.asnumpy() == 0).all()
    taught = np.abs(logits.grad.asnumpy()).sum(axis=2)[0] > 0
    assert taught.sum() == 3
    assert (logits.grad.asnumpy()[0, taught, 0] < 0).all()  # background becomes likelier


def test_box_without_area_gives_a_finite_loss_and_gradient() -> None:
    logits, offsets = mx.nd.zeros((1, len(ANCHORS), CLASSES + 1)), mx.nd.zeros((1, len(ANCHORS), 4))
    for each in (logits, offsets):
        each.attach_grad()
    boxes = mx.nd.array([[[0.5, 0.5, 0.5, 0.5]]])
    with mx.autograd.record():
        loss, _ = targets.detection_loss(mx.nd, logits, offsets, mx.nd.array(ANCHORS[None]), boxes, mx.nd.zeros((1, 1)))
    loss.backward()
    assert np.isfinite(loss.asscalar())
    assert np.isfinite(offsets.grad.asnumpy()).all()
