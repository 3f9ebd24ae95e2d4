"""The HTTP contract: routes, content types, JSON shapes, error to status."""

import logging
from typing import Any

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException
from werkzeug.http import parse_options_header

from ssd_algo.data.images import NotAnImage
from ssd_algo.errors import RequestError, UnsupportedMediaType
from ssd_algo.inference.predictor import Detections, Picture
from ssd_algo.serving.batcher import InferenceThread

logger = logging.getLogger(__name__)

# The empty one stands for a request without a content type; the bytes decide what the image is.
_CONTENT_TYPES = ("image/jpeg", "image/png", "application/x-image", "")


def create_app(inference: InferenceThread) -> Flask:
    """The server's application over an inference thread."""
    app = Flask(__name__)
    app.json.sort_keys = False  # type: ignore[attr-defined]

    @app.get("/ping")
    def ping() -> Response:
        return Response(status=200 if inference.ready() else 503)

    @app.post("/invocations")
    def invocations() -> Response:
        if request.mimetype not in _CONTENT_TYPES:
            raise UnsupportedMediaType(
                f"The content type {request.mimetype} is not supported; send an image as image/jpeg, image/png or "
                "application/x-image."
            )
        try:
            picture, detections = inference.detect(request.get_data())
        except NotAnImage as error:
            raise RequestError(
                f"The request's body is not an image: {error}; send a JPEG or PNG file's bytes."
            ) from error
        return jsonify(as_annotation(picture, detections) if _wants_annotation() else as_prediction(detections))

    @app.errorhandler(RequestError)
    def refused(error: RequestError) -> tuple[Response, int]:
        return jsonify(error=str(error)), error.http_status

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=str(error.description)), error.code or 500

    @app.errorhandler(Exception)
    def failed(error: Exception) -> tuple[Response, int]:
        logger.error("A request failed.", exc_info=error)
        return jsonify(error=f"The server failed on this request ({type(error).__name__}); its log says more."), 500

    return app


def _wants_annotation() -> bool:
    """Whether the Accept header asks for `application/json;annotation=1`."""
    return any(
        parse_options_header(part)[1].get("annotation") == "1" for part in request.headers.get("Accept", "").split(",")
    )


def as_prediction(detections: Detections) -> dict[str, Any]:
    """`{"prediction": [[class, score, xmin, ymin, xmax, ymax], ...]}`, corners as fractions, best first."""
    return {
        "prediction": [
            [float(identity), float(score), *map(float, box)]
            for identity, score, box in zip(detections.classes, detections.scores, detections.boxes, strict=True)
        ]
    }


def as_annotation(picture: Picture, detections: Detections) -> dict[str, Any]:
    """The form of the training annotations: whole pixels of the upright picture, with scores, best first."""
    annotations = []
    for identity, score, box in zip(detections.classes, detections.scores, detections.boxes, strict=True):
        left, right = round(float(box[0]) * picture.width), round(float(box[2]) * picture.width)
        top, bottom = round(float(box[1]) * picture.height), round(float(box[3]) * picture.height)
        annotations.append(
            {
                "class_id": int(identity),
                "score": float(score),
                "left": left,
                "top": top,
                "width": right - left,
                "height": bottom - top,
            }
        )
    return {
        "image_size": [{"width": picture.width, "height": picture.height, "depth": 3}],
        "annotations": annotations,
    }
