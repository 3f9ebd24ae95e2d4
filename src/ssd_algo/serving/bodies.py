"""A request's body: read with bounds, taken apart into images."""

import base64
import binascii
import io
import json
import time
from collections.abc import Iterator
from typing import Any

from gunicorn.http.errors import NoMoreData, ParseException

from ssd_algo.data import recordio
from ssd_algo.errors import RequestError, RequestTimeout, TooLarge
from ssd_algo.serving.worker import reading_until

_PART = 1 << 16  # bytes
# Of a body that nobody wants.
_MOST_DRAINED, _SECONDS_OF_DRAINING = 200_000_000, 2.0

# Of a request: their answers are in memory until it is answered.
MOST_IMAGES = 1000

RECORDS = "application/x-recordio"


def read(environ: dict[str, Any], most: int, deadline: float) -> bytes:
    """The body of a WSGI request, of at most so many bytes, read until a time of `time.monotonic`.

    Raises
    ------
    TooLarge, RequestTimeout, RequestError
    """
    stream, length = environ["wsgi.input"], int(environ.get("CONTENT_LENGTH") or 0)
    body = bytearray()
    while length <= most and len(body) <= most and (part := _part(stream, deadline)):
        body += part
    if max(length, len(body)) > most:
        raise TooLarge(
            f"The request's body has more than {most / 2**20:g} MB; send a smaller image, or set "
            "SAGEMAKER_MAX_PAYLOAD_IN_MB."
        )
    if len(body) < length:
        raise RequestError(f"The request's body ended after {len(body)} of {length} bytes; send all of it.")
    return bytes(body)


def _part(stream: Any, deadline: float) -> bytes:
    """The next bytes of the body; empty at its end."""
    try:
        with reading_until(deadline):
            return bytes(stream.read(_PART))
    except TimeoutError as error:
        raise RequestTimeout("The request's body did not arrive in time; send it faster.") from error
    except NoMoreData as error:
        raise RequestError("The request's body ended before its last chunk; send all of it.") from error
    except (ParseException, OSError) as error:
        raise RequestError(f"The request's body cannot be read ({error}); send it as HTTP/1.1 says.") from error


def discard(environ: dict[str, Any]) -> None:
    """Read what is left of a body: who is still sending does not listen, nor could use the connection again."""
    deadline, size = time.monotonic() + _SECONDS_OF_DRAINING, 0
    try:
        while size < _MOST_DRAINED and (part := _part(environ["wsgi.input"], deadline)):
            size += len(part)
    except RequestError:
        return


def images(body: bytes, media_type: str) -> Iterator[bytes | RequestError]:
    """The encoded images of a body with many; in the place of one that cannot be had, why.

    `application/jsonlines`: on each line a string of base64, or an object with such a string as `image`.
    `application/x-recordio`: records that are images, or that pack or im2rec made; their labels do not matter.

    Raises
    ------
    RequestError
        When what follows cannot be found, or there are more than `MOST_IMAGES`.
    """
    for count, each in enumerate(_of_records(body) if media_type == RECORDS else _of_lines(body)):
        if count == MOST_IMAGES:
            raise RequestError(f"The request's body has more than {MOST_IMAGES} images; send them in several requests.")
        yield each


def _of_records(body: bytes) -> Iterator[bytes | RequestError]:
    try:
        for _, payload in recordio.read_records(io.BytesIO(body), len(body)):
            yield _of_record(payload)
    except recordio.BrokenRecord as error:
        raise RequestError(f"Record {error.number} of the request's body cannot be read: {error}.") from error


def _of_record(payload: bytes) -> bytes:
    if payload.startswith((b"\xff\xd8", b"\x89PNG")):
        return payload
    return recordio.image_of(payload) or payload


def _of_lines(body: bytes) -> Iterator[bytes | RequestError]:
    for number, line in enumerate(io.BytesIO(body), 1):
        if line.strip():
            yield _of_line(number, line)


def _of_line(number: int, line: bytes) -> bytes | RequestError:
    try:
        value = json.loads(line)
        return base64.b64decode(value["image"] if isinstance(value, dict) else value, validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        return RequestError(
            f'Line {number} of the request\'s body is no image in base64; send "..." or {{"image": "..."}}.'
        )
