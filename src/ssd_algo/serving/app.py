"""The HTTP contract: routes, content types, JSON shapes, error to status."""

import json
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from ssd_algo.data.findings import printable
from ssd_algo.data.images import NotAnImage
from ssd_algo.errors import Busy, RequestError, UnsupportedMediaType
from ssd_algo.inference.predictor import Detections, Picture, Predictor
from ssd_algo.serving import bodies, negotiation
from ssd_algo.serving.batcher import Batcher, Prediction, Request
from ssd_algo.serving.metrics import Metrics
from ssd_algo.serving.negotiation import Form, Wish

logger = logging.getLogger(__name__)

# The empty one stands for a request without a content type; the bytes decide what the image is.
_IMAGE = ("image/jpeg", "image/png", "application/x-image", "")
_IMAGES = (negotiation.LINES, bodies.RECORDS)
_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"

# MB of requests at a time that the platform's batch transform allows, and how many requests.
_MOST_TRANSFERRED, _MOST_TRANSFORMS = 100, 16

_PIECE = 1 << 16  # bytes of an answer

_LONGEST_PATH = 100  # characters of it in a sentence
_ROUTES = "POST /invocations, GET /ping, GET /execution-parameters, GET /metrics and GET /"

_Answer = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes
    ----------
    requests : int
        At a time.
    payload_mb : int
        Of a body, 2^20 bytes each.
    seconds : float
        From its headers to its turn; after so many of one batch the inference thread counts as hung.
    decoders : int
        Images that are decoded at a time.
    """

    requests: int = 64
    payload_mb: int = 25
    seconds: float = 60.0
    decoders: int = 2


def create_app(
    batcher: Batcher, limits: Limits, metrics: Metrics, class_names: dict[int, str], default_accept: str
) -> Flask:
    """The server's application over an inference thread.

    Parameters
    ----------
    class_names : dict
        Class id to name.
    default_accept : str
        Media type of the answer where the request does not say.
    """
    app = Flask(__name__, static_folder=None)
    decoding = threading.BoundedSemaphore(limits.decoders)
    page = resources.files(__package__).joinpath("page.html").read_bytes()

    @app.before_request
    def begin() -> None:
        g.started = time.monotonic()

    @app.after_request
    def end(response: Response) -> Response:
        route = request.url_rule.rule if request.url_rule else "other"
        metrics.request(route, response.status_code, time.monotonic() - g.started)
        if response.status_code >= 400:
            bodies.discard(request.environ)
        if response.status_code == 503:
            response.headers["Retry-After"] = "1"
        attributes = request.headers.get(_ATTRIBUTES)
        if attributes:
            response.headers[_ATTRIBUTES] = attributes
        return response

    @app.get("/ping")
    def ping() -> Response:
        healthy = batcher.ready() and batcher.is_alive() and batcher.busy_for() < limits.seconds
        return Response(status=200 if healthy else 503)

    @app.get("/execution-parameters")
    def execution_parameters() -> Response:
        payload = min(limits.payload_mb, _MOST_TRANSFERRED)
        transforms = min(_MOST_TRANSFERRED // payload, _MOST_TRANSFORMS, limits.requests)
        parameters = {
            "MaxConcurrentTransforms": transforms,
            "BatchStrategy": "SINGLE_RECORD",
            "MaxPayloadInMB": payload,
        }
        return _json(parameters)

    @app.get("/metrics")
    def prometheus() -> Response:
        return Response(metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/")
    def try_it() -> Response:
        headers = {
            "Cache-Control": "no-cache",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "frame-ancestors 'none'",
        }
        return Response(page, headers=headers, mimetype="text/html")

    @app.post("/invocations")
    def invocations() -> Response:
        if request.mimetype not in (*_IMAGE, *_IMAGES):
            raise UnsupportedMediaType(
                f"The content type {request.mimetype} is not supported; send an image as image/jpeg, image/png or "
                f"application/x-image, or many as {' or '.join(_IMAGES)}."
            )
        form = negotiation.accepted(request.headers.get("Accept", ""), default_accept)
        wish = negotiation.wished(request.headers.get(_ATTRIBUTES, ""))
        deadline = g.started + limits.seconds
        connection = request.environ.get("gunicorn.socket")
        with batcher.place():
            body = bodies.read(request.environ, limits.payload_mb * 2**20, deadline)
            metrics.seconds("read", time.monotonic() - g.started)
            if not body:
                raise RequestError("The request's body is empty; send a JPEG or PNG file's bytes.")
            predictor = batcher.predictor(deadline)

            def waiting() -> Request:
                """From now on: each image of a request has its own time."""
                until = time.monotonic() + limits.seconds
                return Request(until, lambda: connection is not None and is_closed(connection))

            answering = _Answering(batcher, predictor, waiting, form, wish, class_names, decoding, metrics)
            if request.mimetype in _IMAGES:
                return _many(answering.many(bodies.images(body, request.mimetype)), form)
            return _json(answering.one(body), media_type=form.media_type)

    @app.errorhandler(RequestError)
    def refused(error: RequestError) -> Response:
        return _json({"error": str(error)}, error.http_status)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        sentence = str(error.description)
        if error.code in (404, 405):
            path = request.path if len(request.path) <= _LONGEST_PATH else f"{request.path[:_LONGEST_PATH]}…"
            sentence = f"There is no {request.method} {printable(path)}; there are {_ROUTES}."
        response = _json({"error": sentence}, error.code or 500)
        response.headers.extend(error.get_headers() if error.code == 405 else [])  # which methods there are
        response.content_type = negotiation.JSON
        return response

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Response:
        logger.error("A request failed.", exc_info=error)
        sentence = f"The server failed on this request ({type(error).__name__}); its log says more."
        return _json({"error": sentence}, 500)

    return app


class _Answering:
    """What is done for the images of one request."""

    def __init__(
        self,
        batcher: Batcher,
        predictor: Predictor,
        waiting: Callable[[], Request],
        form: Form,
        wish: Wish,
        class_names: dict[int, str],
        decoding: threading.BoundedSemaphore,
        metrics: Metrics,
    ) -> None:
        self._batcher, self._predictor, self._waiting, self._metrics = batcher, predictor, waiting, metrics
        self._form, self._wish, self._class_names, self._decoding = form, wish, class_names, decoding

    def one(self, encoded: bytes) -> _Answer:
        """The answer for an image.

        Raises
        ------
        RequestError
        """
        return self._finish(*self._begin(encoded))

    def many(self, encoded: Iterable[bytes | RequestError]) -> Iterator[_Answer]:
        """The answers for images, in order; as many as make a batch are queued at a time."""
        begun: deque[tuple[Picture, Future[Prediction]] | RequestError] = deque()
        for number, each in enumerate(encoded, 1):
            begun.append(self._try_to_begin(each, f"Image {number} of the request's body"))
            if len(begun) == self._predictor.batches[-1]:
                yield self._finish_or_say(begun.popleft())
        while begun:
            yield self._finish_or_say(begun.popleft())

    def _try_to_begin(
        self, encoded: bytes | RequestError, what: str
    ) -> tuple[Picture, Future[Prediction]] | RequestError:
        try:
            return encoded if isinstance(encoded, RequestError) else self._begin(encoded, what)
        except RequestError as error:
            return error

    def _finish_or_say(self, begun: tuple[Picture, Future[Prediction]] | RequestError) -> _Answer:
        return {"error": str(begun)} if isinstance(begun, RequestError) else self._finish(*begun)

    def _begin(self, encoded: bytes, what: str = "The request's body") -> tuple[Picture, Future[Prediction]]:
        request = self._waiting()
        if not self._decoding.acquire(timeout=request.deadline - time.monotonic()):
            raise Busy("The request's time was over before its image could be decoded; send it again.")
        started = time.monotonic()
        try:
            picture = self._predictor.prepare(encoded)
        except NotAnImage as error:
            raise RequestError(f"{what} is not an image: {error}; send a JPEG or PNG file's bytes.") from error
        finally:
            self._decoding.release()
        self._metrics.seconds("decode", time.monotonic() - started)
        return picture, self._batcher.submit(picture.square, request)

    def _finish(self, picture: Picture, prediction: Future[Prediction]) -> _Answer:
        logits, offsets = prediction.result()
        started = time.monotonic()
        found = self._predictor.select(logits, offsets).above(self._wish.threshold, self._wish.max_detections)
        selected = time.monotonic()
        self._metrics.seconds("detections", selected - started)
        names = self._class_names if self._form.names else None
        answer = (
            as_annotation(picture.width, picture.height, found, names)
            if self._form.annotation
            else as_prediction(found, names)
        )
        self._metrics.seconds("answer", time.monotonic() - selected)
        return answer


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side has closed a connection, which cannot be waiting for an answer then."""
    try:
        poll = select.poll()  # recv alone would wait for as long as the socket's time limit says
        poll.register(connection, select.POLLIN)
        return bool(poll.poll(0)) and connection.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


def _json(document: _Answer, status: int = 200, media_type: str = negotiation.JSON) -> Response:
    return Response(json.dumps(document) + "\n", status, content_type=media_type)


def _many(answers: Iterable[_Answer], form: Form) -> Response:
    lines = [json.dumps(each) for each in answers]  # text at once: the numbers take several times as much memory
    if not lines:
        raise RequestError("The request's body has no image; send at least one.")
    is_json = form.media_type == negotiation.JSON
    text = f'{{"predictions": [{", ".join(lines)}]}}\n' if is_json else "".join(f"{line}\n" for line in lines)
    body = text.encode()
    pieces = (body[start : start + _PIECE] for start in range(0, len(body), _PIECE))  # each has its time to be taken
    return Response(pieces, content_type=form.media_type, headers={"Content-Length": str(len(body))})


def as_prediction(detections: Detections, class_names: dict[int, str] | None = None) -> _Answer:
    """`{"prediction": [[class, score, xmin, ymin, xmax, ymax], ...]}`, corners as fractions, best first.

    With `class_names` also `"class_names": [...]`, one a row.
    """
    rows = np.column_stack([detections.classes, detections.scores, detections.boxes]).astype(np.float64)
    answer: _Answer = {"prediction": rows.tolist()}
    if class_names is not None:
        answer["class_names"] = [_name(class_names, identity) for identity in detections.classes]
    return answer


def as_annotation(
    width: int, height: int, detections: Detections, class_names: dict[int, str] | None = None
) -> _Answer:
    """The form of the training annotations: whole pixels of the upright image, with scores, best first.

    With `class_names` each also has its `class_name`.
    """
    sides = np.asarray([width, height] * 2, dtype=np.float64)
    corners = np.rint(detections.boxes.astype(np.float64) * sides).astype(np.int64).tolist()
    annotations = []
    for identity, score, (left, top, right, bottom) in zip(detections.classes, detections.scores, corners, strict=True):
        name = {} if class_names is None else {"class_name": _name(class_names, identity)}
        place = {"left": left, "top": top, "width": right - left, "height": bottom - top}
        annotations.append({"class_id": int(identity), **name, "score": float(score), **place})
    size = {"width": width, "height": height, "depth": 3}
    return {"image_size": [size], "annotations": annotations}


def _name(class_names: dict[int, str], identity: int) -> str:
    return class_names.get(int(identity), str(int(identity)))
