"""From encoded images to detections, the same for validation and for serving."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import images
from ssd_algo.data.boxes import SCORE_THRESHOLD, Boxes, clip, decode, non_maximum_suppression
from ssd_algo.errors import UserError
from ssd_algo.inference.engines import Engine, MultiDeviceEngine, MXNetEngine, OpenVINOEngine, Predictions
from ssd_algo.model import artifact
from ssd_algo.model.builtin_graph import MultiBoxDetection

logger = logging.getLogger(__name__)

# The least difference of two logits, of a class and of background, at which the class can reach SCORE_THRESHOLD.
_LEAST_MARGIN = np.float32(np.log(SCORE_THRESHOLD / (1 - SCORE_THRESHOLD)) - 1e-3)

# Sizes of a batch to a device: OpenVINO gains little from more, a GPU is idle with less.
_CPU_BATCHES, _GPU_BATCHES = (1, 2, 4), (1, 2, 4, 8)


@dataclass(frozen=True)
class Picture:
    """A decoded image: the network's square input and the upright image's size in pixels."""

    square: NDArray[np.uint8]
    width: int
    height: int


@dataclass(frozen=True)
class Detections:
    """Objects found in an image, best first: boxes float32 (K, 4) as fractions, scores (K,), classes int64 (K,)."""

    boxes: Boxes
    scores: NDArray[np.float32]
    classes: NDArray[np.int64]

    def above(self, threshold: float, most: int | None = None) -> "Detections":
        """Those with at least this score, and at most so many."""
        count = int(np.count_nonzero(self.scores >= threshold))
        count = count if most is None else min(count, most)
        return Detections(self.boxes[:count], self.scores[:count], self.classes[:count])


class Predictor:
    """A detector.

    Parameters
    ----------
    engine : Engine
    anchors : float32 (A, 4)
    image_shape : int
        Side S of the network's input, pixels.
    nms_threshold, nms_topk
        As the hyperparameters of these names.
    batches : ascending sizes
        Of the batches to give; a smaller number of images is filled up.
    multibox : MultiBoxDetection or None
        How a network of the built-in's makes detections; None: as `select`.
    """

    def __init__(
        self,
        engine: Engine,
        anchors: Boxes,
        image_shape: int,
        nms_threshold: float,
        nms_topk: int,
        batches: tuple[int, ...] = (1,),
        multibox: MultiBoxDetection | None = None,
    ) -> None:
        self._engine, self._anchors, self.image_shape, self.batches = engine, anchors, image_shape, batches
        self._nms_threshold, self._nms_topk, self._multibox = nms_threshold, nms_topk, multibox

    def prepare(self, encoded: bytes) -> Picture:
        """Decode an image that anyone may have sent, and resize it for the network.

        Raises
        ------
        images.NotAnImage
        """
        return Picture(*images.decode_square(encoded, self.image_shape))

    def detect(self, squares: NDArray[np.uint8]) -> list[Detections]:
        """Detections of each square, (B, S, S, 3) RGB."""
        return [self.select(*each) for each in zip(*self.forward(squares), strict=True)]

    def forward(self, squares: NDArray[np.uint8]) -> Predictions:
        """What the network says of squares, (B, S, S, 3) RGB: logits (B, A, C + 1) and offsets (B, A, 4)."""
        return self._engine(squares)

    def select(self, logits: NDArray[np.float32], offsets: NDArray[np.float32]) -> Detections:
        """The detections of one image from what the network says of it, (A, C + 1) and (A, 4)."""
        if self._multibox is not None:
            return select_multibox(logits, offsets, self._anchors, self._multibox)
        return select(logits, offsets, self._anchors, self._nms_threshold, self._nms_topk)


def select(
    logits: NDArray[np.float32],
    offsets: NDArray[np.float32],
    anchors: Boxes,
    nms_threshold: float,
    nms_topk: int,
) -> Detections:
    """The detections of one image from the network's output; `model.export.deploy_symbol` has the definition.

    Parameters
    ----------
    logits : float32 (A, C + 1), background first
    offsets : float32 (A, 4)
    anchors : float32 (A, 4)
    """
    # Few anchors have a class that can reach the threshold, whatever the other classes are: the others need no softmax.
    possible = np.unique(np.flatnonzero(logits[:, 1:] - logits[:, :1] >= _LEAST_MARGIN) // (logits.shape[1] - 1))
    logits, offsets, anchors = logits[possible], offsets[possible], anchors[possible]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (exponentials[:, 1:] / exponentials.sum(axis=1, keepdims=True)).reshape(-1)
    pairs = np.flatnonzero(scores >= SCORE_THRESHOLD)
    if len(pairs) > nms_topk:
        least = np.partition(scores[pairs], -nms_topk)[-nms_topk]
        pairs = pairs[scores[pairs] >= least]
    pairs = pairs[np.argsort(-scores[pairs], kind="stable")[:nms_topk]]
    anchor, classes = np.divmod(pairs, logits.shape[1] - 1)
    boxes = decode(offsets[anchor], anchors[anchor])
    kept = non_maximum_suppression(boxes, classes, nms_threshold)
    return Detections(clip(boxes[kept], 1, 1), scores[pairs[kept]], classes[kept])


def select_multibox(
    logits: NDArray[np.float32], offsets: NDArray[np.float32], anchors: Boxes, how: MultiBoxDetection
) -> Detections:
    """The detections of one image as MXNet's operator MultiBoxDetection makes them (multibox_detection.cc, 1.9.1).

    Each anchor has its best class only; boxes are clipped before suppression, which begins at the threshold itself.

    Parameters
    ----------
    logits : float32 (A, C + 1), background first
    offsets : float32 (A, 4)
    anchors : float32 (A, 4)
    """
    best = logits[:, 1:].argmax(axis=1)
    margins = logits[np.arange(len(best)), best + 1] - logits[:, 0]
    # Most anchors are background, whatever the other classes are: they need no softmax.
    least = -np.inf if how.score_threshold == 0 else np.log(how.score_threshold / (1 - how.score_threshold)) - 1e-3
    possible = np.flatnonzero(margins >= least)
    logits, best = logits[possible], best[possible]
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    every = exponentials[np.arange(len(best)), best + 1] / exponentials.sum(axis=1)
    chosen = np.flatnonzero(every >= np.float32(how.score_threshold))
    chosen = chosen[np.argsort(-every[chosen], kind="stable")]
    if how.nms_topk > 0:
        chosen = chosen[: how.nms_topk]
    anchor, scores, classes = possible[chosen], every[chosen], best[chosen]
    boxes = clip(decode(offsets[anchor], anchors[anchor]), 1, 1)
    groups = np.zeros_like(classes) if how.across_classes else classes
    below = float(np.nextafter(np.float32(how.nms_threshold), np.float32(0)))
    kept = non_maximum_suppression(boxes, groups, below)
    return Detections(boxes[kept], scores[kept], classes[kept])


def load(
    directory: Path,
    precision: artifact.Precision = "float32",
    gpus: int = 0,
    threads: int = 0,
    input_mean: artifact.Mean | None = None,
) -> Predictor:
    """The predictor of an artifact: MXNet on the GPUs where there are some, else OpenVINO on the CPU.

    MXNet also takes what is too large for OpenVINO's file.

    Parameters
    ----------
    directory : Path
    precision : str
        `int8` takes the calibrated network; of the CPU only.
    gpus : int
        How many to use.
    threads : int
        Of the CPU; 0: one for each core.
    input_mean : three numbers or None
        As `artifact.read` takes it.

    Raises
    ------
    UserError
        When the artifact is incomplete or damaged.
    """
    described = artifact.describe(directory)
    if gpus or not artifact.fits_network_file(directory):
        return load_reference(directory, gpus, input_mean)
    network, file = artifact.network(directory, precision, input_mean)
    if file.name not in artifact.NETWORK_FILES.values():
        logger.info(
            "The model has no network for serving, as older ones and the built-in's: it was made of its symbol."
        )
    try:
        engine = OpenVINOEngine(network, described.image_shape, threads)
    except ValueError as error:
        raise UserError(f"{file} is damaged and cannot be loaded; unpack the model.tar.gz again.") from error
    return Predictor(
        engine,
        engine.anchors,
        described.image_shape,
        described.nms_threshold,
        described.nms_topk,
        _CPU_BATCHES,
        described.multibox,
    )


def load_reference(directory: Path, gpus: int = 0, input_mean: artifact.Mean | None = None) -> Predictor:
    """The predictor of an artifact in MXNet, on so many GPUs; 0 is the CPU, to compare OpenVINO with.

    Raises
    ------
    UserError
        When the artifact is incomplete or damaged.
    """
    import mxnet as mx

    model = artifact.read(directory, input_mean)
    described, parameters = model.description, model.parameters
    if model.preprocessing:
        logger.info("%s", model.preprocessing)
    try:
        symbol = artifact.load_symbol(model.symbol)
    except ValueError as error:
        raise artifact.not_usable(directory) from error
    contexts = [mx.gpu(index) for index in range(gpus)] or [mx.cpu()]
    engines = [MXNetEngine(symbol, context, parameters) for context in contexts]
    return Predictor(
        MultiDeviceEngine(engines),
        parameters["anchors"][0],
        described.image_shape,
        described.nms_threshold,
        described.nms_topk,
        tuple(size * len(engines) for size in _GPU_BATCHES),
        described.multibox,
    )
