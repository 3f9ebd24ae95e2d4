"""One inference thread: MXNet's executors are not thread-safe, and requests arrive on many threads."""

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ssd_algo.errors import NotReady
from ssd_algo.inference.predictor import Detections, Picture, Predictor

logger = logging.getLogger(__name__)


class InferenceThread:
    """Loads a predictor, warms it up and runs it, all on one thread of its own.

    Parameters
    ----------
    load : callable
        Makes the predictor; called on the thread.
    """

    def __init__(self, load: Callable[[], Predictor]) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self.loading: Future[Predictor] = self._executor.submit(_load_and_warm, load)

    def ready(self) -> bool:
        """Whether the model has answered a warm-up request."""
        return self.loading.done() and self.loading.exception() is None

    def detect(self, encoded: bytes) -> tuple[Picture, Detections]:
        """Decode an image on the calling thread, then detect on the inference thread.

        Raises
        ------
        NotReady
            While the model is being loaded.
        images.NotAnImage
        """
        if not self.ready():
            raise NotReady("The model is still being loaded; try again when /ping answers 200.")
        predictor = self.loading.result()
        picture = predictor.prepare(encoded)
        (detections,) = self._executor.submit(predictor.detect, picture.square[None]).result()
        return picture, detections


def _load_and_warm(load: Callable[[], Predictor]) -> Predictor:
    predictor = load()
    side = predictor.image_shape
    predictor.detect(np.zeros((1, side, side, 3), dtype=np.uint8))
    logger.info("The model is ready.")
    return predictor
