"""One inference thread that takes what is queued: engines are not thread-safe, and requests arrive on many threads."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.images import Pixels
from ssd_algo.errors import Busy, NotReady
from ssd_algo.inference.predictor import Predictor
from ssd_algo.serving.metrics import Metrics

logger = logging.getLogger(__name__)

Prediction = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True)
class Request:
    """Who waits for images: until when, seconds of `time.monotonic`, and whether it still does."""

    deadline: float
    is_gone: Callable[[], bool] = bool


@dataclass(frozen=True)
class _Image:
    square: Pixels
    request: Request
    answer: Future[Prediction] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """Loads a predictor, warms it up and runs it on one thread; a batch is what is queued when the last one is done.

    Parameters
    ----------
    load : callable
        Makes the predictor; called on the thread.
    most_requests : int
        That are taken at a time.
    metrics : Metrics

    Attributes
    ----------
    loading : Future of Predictor
    """

    def __init__(self, load: Callable[[], Predictor], most_requests: int, metrics: Metrics) -> None:
        self.loading: Future[Predictor] = Future()
        self._free, self._most = threading.BoundedSemaphore(most_requests), most_requests
        self._metrics = metrics
        self._queue: deque[_Image] = deque()
        self._wake = threading.Condition()
        self._last_start = float("inf")  # until when images must have been taken, once the server is to end
        self._since = time.monotonic()  # what runs now, loading or a batch, began then; 0 when idle
        self._thread = threading.Thread(target=self._run, args=(load,), name="inference", daemon=True)
        self._thread.start()

    def ready(self) -> bool:
        """Whether the model has answered a warm-up request."""
        return self.loading.done() and self.loading.exception() is None

    def is_alive(self) -> bool:
        """Whether the inference thread runs."""
        return self._thread.is_alive()

    def busy_for(self) -> float:
        """For how many seconds it has been at one batch, or at loading."""
        since = self._since
        return time.monotonic() - since if since else 0.0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for a request, to be held from before its body is read until it is answered.

        Raises
        ------
        Busy
            When there is none.
        """
        if not self._free.acquire(blocking=False):
            raise Busy(f"All {self._most} places for requests are taken; send it again in a second.")
        try:
            yield
        finally:
            self._free.release()

    def predictor(self, deadline: float) -> Predictor:
        """The predictor; waits while it is being loaded, until a time of `time.monotonic`.

        Raises
        ------
        NotReady
        """
        try:
            return self.loading.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError as error:
            raise NotReady("The model is still being loaded; try again when /ping answers 200.") from error

    def submit(self, square: Pixels, request: Request) -> Future[Prediction]:
        """Queue an image, (S, S, 3) RGB, for logits (A, C + 1) and offsets (A, 4).

        The future raises `Busy` when the request's time was over, or its sender gone, before it was its turn.
        """
        image = _Image(square, request)
        with self._wake:
            self._queue.append(image)
            self._metrics.queue.set(len(self._queue))
            self._wake.notify()
        return image.answer

    def finish(self, seconds: float) -> None:
        """The server is to end: what has not been begun within so many seconds is not begun any more."""
        self._last_start = time.monotonic() + seconds

    def _run(self, load: Callable[[], Predictor]) -> None:
        try:
            predictor = load()
            _warm(predictor, predictor.batches[0])
        except BaseException as error:
            self.loading.set_exception(error)
            return
        logger.info("The model is ready.")
        self.loading.set_result(predictor)
        sizes = self._sizes_that_run(predictor)
        while True:
            self._since = 0.0
            images = self._take(sizes[-1])
            if images:
                self._since = time.monotonic()
                self._answer(predictor, images)

    def _sizes_that_run(self, predictor: Predictor) -> list[int]:
        """Sizes of batches, warmed up unless somebody is waiting: the smallest, and larger ones up to what fails."""
        sizes = list(predictor.batches[:1])
        for size in predictor.batches[1:]:
            self._since = time.monotonic()
            try:
                if not self._queue:
                    _warm(predictor, size)
            except Exception as error:
                logger.warning("Batches of %d images cannot be run (%s); smaller ones can.", size, error)
                break
            sizes.append(size)
        return sizes

    def _take(self, most: int) -> list[_Image]:
        """Wait for images; those that nobody waits for any more are not among them."""
        with self._wake:
            while not self._queue:
                self._wake.wait()
            taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
            self._metrics.queue.set(len(self._queue))
        now = time.monotonic()
        images = []
        for image in taken:
            self._metrics.seconds("queue", now - image.since)
            if now > self._last_start:
                image.answer.set_exception(Busy("The server ends; send the request again, to another."))
            elif now > image.request.deadline:
                image.answer.set_exception(Busy("The request's time was over before it was its turn; send it again."))
            elif image.request.is_gone():
                image.answer.set_exception(Busy("The sender has closed the connection."))
            else:
                images.append(image)
        return images

    def _answer(self, predictor: Predictor, images: list[_Image]) -> None:
        size = next(size for size in predictor.batches if size >= len(images))
        batch = np.zeros((size, *images[0].square.shape), dtype=np.uint8)
        for index, image in enumerate(images):
            batch[index] = image.square
        started = time.monotonic()
        try:
            logits, offsets = predictor.forward(batch)
        except Exception as error:
            for image in images:
                image.answer.set_exception(error)
            return
        self._metrics.seconds("engine", time.monotonic() - started)
        self._metrics.batch_size.observe(len(images))
        for index, image in enumerate(images):
            image.answer.set_result((logits[index], offsets[index]))


def _warm(predictor: Predictor, size: int) -> None:
    """Run a size of a batch: the first time is slow."""
    side = predictor.image_shape
    predictor.forward(np.zeros((size, side, side, 3), dtype=np.uint8))
