"""What headers ask for."""

import pytest

from ssd_algo.errors import NotAcceptable, RequestError
from ssd_algo.serving.negotiation import Form, Wish, accepted, wished

JSON, LINES = "application/json", "application/jsonlines"


@pytest.mark.parametrize(
    ("header", "form"),
    [
        ("", Form(JSON)),
        ("*/*", Form(JSON)),
        ("application/*", Form(JSON)),
        ("application/json", Form(JSON)),
        ("APPLICATION/JSON; Annotation=1", Form(JSON, annotation=True)),
        ("application/json;annotation=1;names=1", Form(JSON, annotation=True, names=True)),
        ("application/json;annotation=0;names=1", Form(JSON, names=True)),
        ("text/html, application/jsonlines", Form(LINES)),
        ("application/jsonlines;q=0.5, application/json;q=0.9", Form(JSON)),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8", Form(JSON)),
        ("application/json;annotation=1, */*;q=0.1", Form(JSON, annotation=True)),
    ],
)
def test_accepted(header: str, form: Form) -> None:
    assert accepted(header, JSON) == form


def test_the_default_counts_where_all_are_alike() -> None:
    assert accepted("", "application/json;names=1") == Form(JSON, names=True)
    assert accepted("*/*", LINES) == Form(LINES)
    assert accepted(JSON, LINES) == Form(JSON)


@pytest.mark.parametrize(
    "header",
    [
        "text/csv",
        "application/json;q=0",
        "application/json;q=0, */*",
        "*/*;q=0",
        "image/*",
        ";;;",
        "application/x-recordio",
    ],
)
def test_not_acceptable(header: str) -> None:
    with pytest.raises(NotAcceptable) as caught:
        accepted(header, JSON)
    assert str(caught.value) == (
        "The answer can be application/json, with ;annotation=1 and ;names=1 if wanted, or application/jsonlines, but "
        f"Accept is {header}."
    )


@pytest.mark.parametrize(
    ("attributes", "wish"),
    [
        ("", Wish()),
        ("trace-id", Wish()),
        ("threshold=0.5", Wish(0.5)),
        ("c000b4f9-df62=x, Threshold = 0.25 ; max_detections=7", Wish(0.25, 7)),
    ],
)
def test_wished(attributes: str, wish: Wish) -> None:
    assert wished(attributes) == wish


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ("threshold=high", "The custom attribute threshold is high; it must be a score from 0 to 1."),
        ("threshold=1.1", "The custom attribute threshold is 1.1; it must be a score from 0 to 1."),
        ("threshold=nan", "The custom attribute threshold is nan; it must be a score from 0 to 1."),
        ("max_detections=0", "The custom attribute max_detections is 0; it must be a whole number from 1."),
        ("max_detections=²", "The custom attribute max_detections is ²; it must be a whole number from 1."),
    ],
)
def test_wrong_wishes(attributes: str, sentence: str) -> None:
    with pytest.raises(RequestError) as caught:
        wished(attributes)
    assert str(caught.value) == sentence
