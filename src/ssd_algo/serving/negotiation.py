"""What a request's headers ask for: the form of the answer, and which detections."""

from dataclasses import dataclass

from werkzeug.http import parse_accept_header, parse_options_header

from ssd_algo.errors import NotAcceptable, RequestError

JSON, LINES = "application/json", "application/jsonlines"
_FORMS = (JSON, LINES)
_ANY = ("*/*", "application/*")


@dataclass(frozen=True)
class Form:
    """How to answer.

    Attributes
    ----------
    media_type : str
        `application/json` or `application/jsonlines`.
    annotation : bool
        In the form of the training annotations: whole pixels.
    names : bool
        With the names of classes.
    """

    media_type: str
    annotation: bool = False
    names: bool = False


def accepted(header: str, default: str) -> Form:
    """The form that an Accept header prefers; `default`, a media type, where all are alike to it.

    Raises
    ------
    NotAcceptable
    """
    choices = [(*parse_options_header(each), quality) for each, quality in parse_accept_header(header.strip() or "*/*")]
    refused = {media_type.lower() for media_type, _, quality in choices if quality <= 0}
    for media_type, parameters, _ in choices:
        media_type = media_type.lower()
        if media_type in _ANY and media_type not in refused:
            media_type, parameters = parse_options_header(default)
        if media_type in _FORMS and media_type not in refused:
            return Form(media_type, parameters.get("annotation") == "1", parameters.get("names") == "1")
    raise NotAcceptable(
        f"The answer can be {JSON}, with ;annotation=1 and ;names=1 if wanted, or {LINES}, but Accept is {header}."
    )


@dataclass(frozen=True)
class Wish:
    """Which detections to answer with."""

    threshold: float = 0.0
    max_detections: int | None = None


def wished(attributes: str) -> Wish:
    """What custom attributes, `threshold=0.5, max_detections=10`, ask for; others are the caller's own.

    Raises
    ------
    RequestError
    """
    given = {}
    for part in attributes.replace(";", ",").split(","):
        name, equals, value = part.partition("=")
        if equals:
            given[name.strip().lower()] = value.strip()
    return Wish(_threshold(given.get("threshold", "0")), _count(given.get("max_detections")))


def _threshold(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise RequestError(f"The custom attribute threshold is {text}; it must be a score from 0 to 1.")
    return value


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise RequestError(f"The custom attribute max_detections is {text}; it must be a whole number from 1.")
    return int(text)
