"""From encoded images to detections, the same for validation and for serving."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import images
from ssd_algo.data.boxes import SCORE_THRESHOLD, Boxes, clip, decode, non_maximum_suppression
from ssd_algo.inference.engines import MXNetEngine, Predictions, devices
from ssd_algo.model import artifact


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


class Predictor:
    """A detector.

    Parameters
    ----------
    engine : callable
        uint8 (B, S, S, 3) to logits (B, A, C + 1) and offsets (B, A, 4).
    anchors : float32 (A, 4)
    image_shape : int
        Side S of the network's input, pixels.
    nms_threshold, nms_topk
        As the hyperparameters of these names.
    """

    def __init__(
        self,
        engine: Callable[[NDArray[np.uint8]], Predictions],
        anchors: Boxes,
        image_shape: int,
        nms_threshold: float,
        nms_topk: int,
    ) -> None:
        self._engine, self._anchors, self.image_shape = engine, anchors, image_shape
        self._nms_threshold, self._nms_topk = nms_threshold, nms_topk

    def prepare(self, encoded: bytes) -> Picture:
        """Decode an image and resize it for the network.

        Raises
        ------
        images.NotAnImage
        """
        image = images.decode(encoded)
        return Picture(images.to_square(image, self.image_shape), width=image.shape[1], height=image.shape[0])

    def detect(self, squares: NDArray[np.uint8]) -> list[Detections]:
        """Detections of each square, (B, S, S, 3) RGB."""
        return [self.select(*each) for each in zip(*self.forward(squares), strict=True)]

    def forward(self, squares: NDArray[np.uint8]) -> Predictions:
        """What the network says of squares, (B, S, S, 3) RGB: logits (B, A, C + 1) and offsets (B, A, 4)."""
        return self._engine(squares)

    def select(self, logits: NDArray[np.float32], offsets: NDArray[np.float32]) -> Detections:
        """The detections of one image from what the network says of it, (A, C + 1) and (A, 4)."""
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
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    scores = (exponentials[:, 1:] / exponentials.sum(axis=1, keepdims=True)).reshape(-1)
    pairs = np.flatnonzero(scores >= SCORE_THRESHOLD)
    pairs = pairs[np.argsort(-scores[pairs], kind="stable")[:nms_topk]]
    anchor, classes = np.divmod(pairs, logits.shape[1] - 1)
    boxes = decode(offsets[anchor], anchors[anchor])
    kept = non_maximum_suppression(boxes, classes, nms_threshold)
    return Detections(clip(boxes[kept], 1, 1), scores[pairs[kept]], classes[kept])


def load(directory: Path) -> Predictor:
    """The predictor of an artifact, on the first GPU if there is one, else on the CPU.

    Raises
    ------
    UserError
        When the artifact is incomplete or damaged.
    """
    description = artifact.describe(directory)
    parameters = artifact.load_parameters(directory)
    symbol = artifact.load_symbol(directory)
    engine = MXNetEngine(symbol, devices()[0], parameters)
    return Predictor(
        engine, parameters["anchors"][0], description.image_shape, description.nms_threshold, description.nms_topk
    )
