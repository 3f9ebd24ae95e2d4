"""Charts as SVG that stands in a page and takes its colours from the page's style, light or dark.

They hold no text of a user's: what lines mean is said beside them.
"""

import colorsys
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from ssd_algo.data.draw import colour
from ssd_algo.evaluation.analysis import RECALLS, THRESHOLDS, Analysis, ClassCurves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (4.5, 2.8)  # inches of 72 pixels
_MARGINS = (0.19, 0.16, 0.98, 0.93)  # left, bottom, right, top of the axes, for numbers of seven signs
_MOST_COLOURS = 10  # classes that can be told apart
_MOST_LINES = 100

# Colours in matplotlib and what the page has in their place.
_TEXT, _EDGE, _MEAN = "#010101", "#020202", "#030303"
_SERIES = ("#040404", "#050505")
_IN_PAGE = {
    _TEXT: "currentColor",
    _EDGE: "var(--edge)",
    _MEAN: "var(--text)",
    _SERIES[0]: "var(--first)",
    _SERIES[1]: "var(--second)",
}
_CLASS = "#1{:05x}"

_ID = re.compile(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|PathCollection)_\d+"')


def coloured(analysis: Analysis) -> list[int]:
    """The classes whose lines have colours of their own: all of them, or none where they are too many."""
    shown = _shown(analysis)
    return list(shown) if len(shown) <= _MOST_COLOURS else []


def line_colours(analysis: Analysis) -> dict[int, tuple[str, str]]:
    """For each of these its colour on a light and on a dark page: the hue is that of the class in photos."""
    colours = {}
    for identity in coloured(analysis):
        hue, _, _ = colorsys.rgb_to_hls(*(each / 255 for each in colour(identity)))
        colours[identity] = (f"hsl({360 * hue:.0f} 75% 36%)", f"hsl({360 * hue:.0f} 85% 68%)")
    return colours


def _shown(analysis: Analysis) -> dict[int, ClassCurves]:
    return {identity: each for identity, each in analysis.curves.items() if each.objects}


def curves(analysis: Analysis) -> dict[str, Markup]:
    """Precision by recall, and F1 by score, of each class and of all."""
    shown = _shown(analysis)
    if not shown:
        return {}
    with _axes("recall", "precision") as (precision, drawn):
        for identity, each in _some(shown):
            _line(precision, identity, analysis, RECALLS, each.by_recall)
        if len(shown) > 1:
            mean = np.mean([each.by_recall for each in shown.values()], axis=0)
            precision.plot(RECALLS, mean, color=_MEAN, linewidth=2, linestyle=(0, (4, 2)))
        _from_nothing_to_one(precision)
        by_recall = drawn()
    with _axes("score", "F1") as (f1, drawn):
        for identity, each in _some(shown):
            _line(f1, identity, analysis, THRESHOLDS, each.f1)
            if each.threshold is not None and coloured(analysis):
                best = float(each.f1[np.searchsorted(THRESHOLDS, each.threshold)])
                f1.plot([each.threshold], [best], "o", color=_CLASS.format(identity), markersize=6)
        _from_nothing_to_one(f1)
        by_score = drawn()
    return {"precision": by_recall, "F1": by_score}


def _some(shown: dict[int, ClassCurves]) -> Iterator[tuple[int, ClassCurves]]:
    items = list(shown.items())
    return iter(items[:: -(-len(items) // _MOST_LINES)])


def _line(axes: "Axes", identity: int, analysis: Analysis, x: Any, y: Any) -> None:
    if coloured(analysis):
        axes.plot(x, y, color=_CLASS.format(identity), linewidth=1.8)
    else:
        axes.plot(x, y, color=_TEXT, linewidth=0.8, alpha=0.25)


def _from_nothing_to_one(axes: "Axes") -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)


def training(epochs: Sequence[dict[str, Any]]) -> dict[str, Markup]:
    """Loss, mAP, learning rate and throughput by epoch; empty without epochs."""
    if not epochs:
        return {}
    validated = [each for each in epochs if "validation" in each]
    numbers = [each["epoch"] for each in epochs]
    made = {
        "loss": _by_epoch(
            "loss", [(numbers, [each[name] for each in epochs]) for name in ("cross_entropy", "smooth_l1")]
        ),
        "rate": _by_epoch("learning rate", [(numbers, [each["learning_rate"] for each in epochs])]),
        "throughput": _by_epoch(
            "images a second", [(numbers, [each["examples"] / each["seconds"] for each in epochs])]
        ),
    }
    if validated:
        numbers = [each["epoch"] for each in validated]
        scores = [each["validation"] for each in validated]
        made["score"] = _by_epoch(
            "average precision",
            [(numbers, [each["mAP"] for each in scores]), (numbers, [each["coco"]["mean"] or 0.0 for each in scores])],
        )
    return made


def _by_epoch(label: str, series: Sequence[tuple[list[int], list[float]]]) -> Markup:
    with _axes("epoch", label) as (axes, drawn):
        for (x, y), shade in zip(series, _SERIES, strict=False):
            axes.plot(x, y, "o-" if len(x) <= 40 else "-", color=shade, linewidth=1.8, markersize=3)
        axes.set_ylim(bottom=0)
        _whole_epochs(axes)
        return drawn()


def _whole_epochs(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


@contextmanager
def _axes(x: str, y: str) -> Iterator[tuple["Axes", Any]]:
    """Axes to plot into, and what makes SVG of them; nothing of matplotlib's own state is changed."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it would tell of its list of fonts
    import matplotlib
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": y,  # ids are the same each time, and others in each chart
        "font.size": 9.5,
        "axes.edgecolor": _TEXT,
        "axes.labelcolor": _TEXT,
        "text.color": _TEXT,
        "xtick.color": _TEXT,
        "ytick.color": _TEXT,
        "grid.color": _EDGE,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "path.simplify": True,
        "font.family": "DejaVu Sans",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=_SIZE, dpi=72)
        figure.subplots_adjust(*_MARGINS)  # a layout that is computed would draw everything three times
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

        def drawn() -> Markup:
            text = StringIO()
            nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(text, format="svg", metadata=nothing)
            return _for_page(text.getvalue(), f"{y} by {x}")

        yield axes, drawn


def _for_page(svg: str, title: str) -> Markup:
    """Only the element itself, without what would touch the page around it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*|<metadata.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf'<svg \1 role="img" aria-label="{title}">', svg, count=1)
    svg = _ID.sub("", svg).replace("xlink:href", "href")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for ours, theirs in _IN_PAGE.items():
        svg = svg.replace(ours, theirs)
    svg = re.sub(r"#1([0-9a-f]{5})\b", lambda found: f"var(--class-{int(found[1], 16)})", svg)
    return Markup(svg)
