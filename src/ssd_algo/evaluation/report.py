"""report.html: what a detector was trained on, where it errs, and what to do next, in one file.

Every number in it stands in the metrics that it is made of, and carries its place there.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from ssd_algo.data.draw import WHITE, Mark, colour, draw
from ssd_algo.data.findings import printable
from ssd_algo.data.images import NotAnImage, Pixels, decode
from ssd_algo.data.samples import Sample
from ssd_algo.evaluation import charts
from ssd_algo.evaluation.analysis import KINDS, Analysis, analyse, describe, lessons, per_image
from ssd_algo.evaluation.evaluate import Compared

_TEMPLATE = Path(__file__).with_name("report.html.jinja")

_PHOTO_SIDE = 512  # pixels
_QUALITY = 80
_FEW_BOXES = 8  # of an image, which all get labels
_MOST_LABELS = 40  # of an image; more would cover each other

# Beyond these a table says no more.
_MOST_ROWS = 200
_MOST_CLASSES_IN_MATRIX = 20
_MOST_CONFUSIONS = 30

# What each kind of photos is there for.
_LESSONS = {
    "most missed": ("Most missed", "The images with the most objects that are not found."),
    "labels in doubt": (
        "Labels in doubt",
        "More is found where nothing is labelled than there are labels: are some missing?",
    ),
    "surest mistakes": ("Surest mistakes", "The false detections with the highest scores."),
    "most confused": ("Most confused", "Boxes that fit, with another class."),
    "best": ("Best", "Where most is right."),
}

_ERRORS = {
    "localisation": "the class is right, but the box does not fit",
    "confusion": "the box fits an object of another class",
    "both": "neither box nor class fit",
    "duplicate": "the object had been found already, with a higher score",
    "background": "nothing is labelled there",
    "missed": "objects of which nothing is found, not even with a wrong box or class",
}


@dataclass(frozen=True)
class Evaluated:
    """Detections of labelled images, looked at.

    Attributes
    ----------
    described : dict
        For the key `evaluation` of the metrics.
    analysis : Analysis
    samples : the images, None for those that are not at hand; in the analysis' order
    """

    described: dict[str, Any]
    analysis: Analysis
    samples: Sequence[Sample | None]


def evaluated(
    score: dict[str, Any],
    compared: Sequence[Compared],
    samples: Sequence[Sample | None],
    class_names: dict[int, str],
    iou_threshold: float,
) -> Evaluated:
    """Look at detections of labelled images.

    Parameters
    ----------
    score : dict
        What `evaluate.describe` says of the same.
    compared, samples : one of each for each image, in the same order
    iou_threshold : float
        That of the score.
    """
    analysis = analyse([each for each, _ in compared], [each for _, each in compared], iou_threshold)
    described = describe(analysis, class_names)
    classes = {identity: score["classes"].get(identity, {}) | each for identity, each in described["classes"].items()}
    tally = per_image(analysis)
    photos = [
        {
            "image": lesson.image,
            "name": printable(sample.name),
            "why": lesson.why,
            "right": int(tally.right[lesson.image]),
            "false": int(tally.false[lesson.image]),
            "missed": int(tally.missed[lesson.image]),
        }
        for lesson in lessons(analysis, [place for place, sample in enumerate(samples) if sample is not None])
        if (sample := samples[lesson.image]) is not None
    ]
    return Evaluated(score | described | {"classes": classes, "photos": photos}, analysis, samples)


def render(metrics: dict[str, Any], of: Evaluated | None) -> str:
    """The report.

    Parameters
    ----------
    metrics : dict
        The whole of metrics.json; all of its parts may be missing. `of.described` is its `evaluation`.
    of : Evaluated or None
        None where there are no detections to show.
    """
    environment = Environment(
        autoescape=True, finalize=_printable, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"number": _Numbers(metrics), "hexadecimal": _hexadecimal}
    classes = metrics.get("evaluation", {}).get("classes", {})
    names = {int(identity): each["name"] for identity, each in classes.items()}
    context: dict[str, Any] = {
        "m": metrics,
        "names": names,
        "training": charts.training(metrics.get("epochs", [])),
        "curves": charts.curves(of.analysis) if of else {},
        "coloured": charts.coloured(of.analysis) if of else [],
        "lines": charts.line_colours(of.analysis) if of else {},
        "photos": _photos(of, names) if of else [],
        "kinds": _ERRORS,
        "table": _rows(metrics.get("evaluation")),
        "confusion": _confusion(metrics.get("evaluation")),
        "most_rows": _MOST_ROWS,
        "most_labels": _MOST_LABELS,
    }
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(context)


def _printable(value: object) -> object:
    """What is shown of a value: names are anybody's, and may have bytes in them that are no text."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


class _Numbers:
    """Shows a number of the metrics by its place: keys and indices with dots between."""

    def __init__(self, metrics: dict[str, Any]) -> None:
        self._metrics = metrics

    def __call__(self, path: str, digits: int = 0, percent: bool = False) -> Markup:
        value: Any = self._metrics
        for part in path.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        if value is None:
            return Markup("–")  # noqa: RUF001
        text = f"{100 * value:.{digits}f} %" if percent else f"{value:,.{digits}f}"
        return Markup(f'<data data-metric="{escape(path)}" value="{escape(json.dumps(value))}">{escape(text)}</data>')


def _rows(evaluation: dict[str, Any] | None) -> list[str]:
    """Ids of classes for a table, the weakest first."""
    if evaluation is None:
        return []
    classes = evaluation["classes"]
    return sorted(classes, key=lambda each: (not classes[each]["objects"], classes[each].get("AP", 0)))[:_MOST_ROWS]


def _confusion(evaluation: dict[str, Any] | None) -> dict[str, Any]:
    """Classes (None is the background) and places of the counts by row and column; or, of many classes, places only."""
    if evaluation is None:
        return {}
    classes: list[int | None] = [*sorted(map(int, evaluation["classes"]))]
    places = {(row["truth"], row["found"]): place for place, row in enumerate(evaluation["confusion"])}
    if len(classes) <= _MOST_CLASSES_IN_MATRIX:
        classes = [*classes, None]
        totals = {
            truth: sum(row["count"] for row in evaluation["confusion"] if row["truth"] == truth) for truth in classes
        }
        return {"classes": classes, "places": places, "totals": totals}
    confused = [place for (truth, found), place in places.items() if None not in (truth, found) and truth != found]
    return {"most": confused[:_MOST_CONFUSIONS]}


def _photos(of: Evaluated, names: dict[int, str]) -> list[dict[str, Any]]:
    """The kinds of photos: title, text, and the photos of the kind with their place in the metrics."""
    kinds: dict[str, list[dict[str, Any]]] = {why: [] for why in _LESSONS}
    for place, photo in enumerate(of.described["photos"]):
        sample = of.samples[photo["image"]]
        assert sample is not None
        picture = _photo(sample, photo["image"], of.analysis, names)
        if picture is not None:
            kinds[photo["why"]].append({"place": place, "source": _data_uri(picture), "shape": picture.shape})
    return [
        {"title": title, "text": text, "photos": kinds[why]} for why, (title, text) in _LESSONS.items() if kinds[why]
    ]


def _photo(sample: Sample, image: int, analysis: Analysis, names: dict[int, str]) -> Pixels | None:
    """The image, small, with truth and detections; None where it cannot be decoded any more."""
    try:
        encoded = sample.encoded()
        width, height = sample.size or decode(encoded).shape[1::-1]
        reduction = max([each for each in (1, 2, 4, 8) if max(width, height) >= each * _PHOTO_SIDE], default=1)
        picture = decode(encoded, reduction)
    except (NotAnImage, OSError):
        return None
    scale = _PHOTO_SIDE / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrinks = picture.shape[1] > size[0]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return draw(np.asarray(small, dtype=np.uint8), _marks(image, analysis, names, scale))


def _marks(image: int, analysis: Analysis, names: dict[int, str], scale: float) -> list[Mark]:
    """Solid what is found, in its class's colour, and dashed what is labelled; what is wrong has a label."""
    errors = analysis.errors
    found, objects = np.flatnonzero(errors.found.image == image), np.flatnonzero(errors.objects.image == image)
    false = sorted((row for row in found if errors.kinds[row] in KINDS), key=lambda row: -errors.found.scores[row])
    right = [row for row in found if errors.kinds[row] == "right"]
    present = [row for row in objects if not errors.objects.ignored[row]]
    missed = [row for row in present if not errors.hit[row]]
    few = len(false) + len(present) <= _FEW_BOXES

    def detection(row: int, labelled: bool) -> Mark:
        identity = int(errors.found.classes[row])
        label = f"{names.get(identity, identity)} {errors.found.scores[row]:.2f}" if labelled else ""
        return Mark(errors.found.boxes[row] * scale, colour(identity), label)

    def truth(row: int, labelled: bool) -> Mark:
        identity = int(errors.objects.classes[row])
        label = str(names.get(identity, identity)) if labelled else ""
        return Mark(errors.objects.boxes[row] * scale, WHITE, label, dashed=True)

    return [
        *(detection(row, place < _MOST_LABELS) for place, row in enumerate(false)),
        *(truth(row, place < _MOST_LABELS) for place, row in enumerate(missed, len(false))),
        *(detection(row, few) for row in right),
        *(truth(row, False) for row in present if errors.hit[row]),
    ]


def _data_uri(picture: Pixels) -> str:
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert done
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode()


def _hexadecimal(identity: int) -> str:
    """A class's colour in the photos, for CSS."""
    return "#{:02x}{:02x}{:02x}".format(*colour(identity))
