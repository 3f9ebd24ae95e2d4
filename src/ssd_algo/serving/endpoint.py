"""An endpoint of the platform, asked what is in an image: one of ours or of the built-in algorithm's."""

import json
from typing import Any

import numpy as np

from ssd_algo.contract import api
from ssd_algo.data.images import Pixels
from ssd_algo.errors import RequestError, UserError
from ssd_algo.inference.predictor import Detections
from ssd_algo.serving import negotiation
from ssd_algo.serving.app import as_annotation

# The form that we want, and the one that the built-in knows too.
_FORMS: tuple[str, ...] = (f"{negotiation.JSON};annotation=1;names=1", negotiation.JSON)


class Endpoint:
    """An endpoint of the platform.

    Parameters
    ----------
    name : str
    region : str or None
        None: as boto3 is configured.

    Raises
    ------
    UserError
        When there is no region.
    """

    def __init__(self, name: str, region: str | None) -> None:
        self._name, self._forms = name, _FORMS
        with api.told("invoke_endpoint"):
            self._client = api.client("sagemaker-runtime", region)

    def detect(self, encoded: bytes, image: Pixels, threshold: float) -> dict[str, Any]:
        """What `serving.app.as_annotation` makes of the answer; an endpoint without names has ids in their place.

        Parameters
        ----------
        encoded : bytes
        image : uint8 (H, W, 3), the same

        Raises
        ------
        RequestError
            When the endpoint does not take the image.
        UserError
            When it cannot be asked, fails, or is none that detects.
        """
        body = self._body(encoded, threshold)
        height, width = image.shape[:2]
        try:
            return _answer(json.loads(body), width, height, threshold)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise UserError(
                f"endpoint {self._name} answers with something else than detections; give one that hosts a detector of "
                "this image or of the built-in algorithm."
            ) from error

    def _body(self, encoded: bytes, threshold: float) -> bytes:
        """The answer in the first form that is given; from then on there is only that one."""
        for form in self._forms:
            try:
                body = self._ask(encoded, form, threshold)
            except RequestError:  # because of the form, or of the image
                if form == self._forms[-1]:
                    raise
            else:
                self._forms = (form,)
                return body
        raise AssertionError("there is a form")

    def _ask(self, encoded: bytes, accept: str, threshold: float) -> bytes:
        request = {
            "EndpointName": self._name,
            "ContentType": "application/x-image",
            "Accept": accept,
            "CustomAttributes": f"threshold={threshold}",
            "Body": encoded,
        }
        with api.told("invoke_endpoint"):
            try:
                return bytes(self._client.invoke_endpoint(**request)["Body"].read())
            except self._client.exceptions.ModelError as error:
                if 400 <= int(error.response.get("OriginalStatusCode", 0)) < 500:
                    raise RequestError(_reason(str(error.response.get("OriginalMessage", "")))) from error
                raise


def _reason(message: str) -> str:
    """The sentence of a server like ours; of others what they say."""
    try:
        return str(json.loads(message)["error"])
    except (ValueError, TypeError, KeyError):
        return message


def _answer(document: dict[str, Any], width: int, height: int, threshold: float) -> dict[str, Any]:
    if "prediction" in document:
        rows = np.asarray(document["prediction"], dtype=np.float64).reshape(-1, 6)
        rows = rows[np.argsort(-rows[:, 1], kind="stable")]
        found = Detections(rows[:, 2:].astype(np.float32), rows[:, 1].astype(np.float32), rows[:, 0].astype(np.int64))
        return as_annotation(width, height, found.above(threshold), {})
    annotations = []
    for each in document["annotations"]:
        identity, score = int(each["class_id"]), float(each["score"])
        if score >= threshold:
            place = {name: int(each[name]) for name in ("left", "top", "width", "height")}
            name = str(each.get("class_name", identity))
            annotations.append({"class_id": identity, "class_name": name, "score": score, **place})
    return {"image_size": [{"width": width, "height": height, "depth": 3}], "annotations": annotations}
