"""report.html: of a training, of anything else, and as a browser shows it."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser, Page, running
from conftest import SMALL, Run, read_images, train

from ssd_algo import demo
from ssd_algo.data.samples import Sample
from ssd_algo.evaluation.evaluate import Compared, describe, score
from ssd_algo.evaluation.matching import Scored, Truth
from ssd_algo.evaluation.remarks import remarks
from ssd_algo.evaluation.report import Evaluated, evaluated, render

MOST_BYTES = 8_000_000


class Shown(HTMLParser):
    """What stands in a page: numbers and texts with their places, addresses, tags, text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str, str]] = []
        self.texts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self._number: dict[str, str] | None = None
        self._text: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        given = {name: value or "" for name, value in attrs}
        self.addresses += [value for name, value in given.items() if name in ("src", "href", "action", "data")]
        if "data-metric" in given:
            self._number = given
        if "data-text" in given:
            self._text = given["data-text"]

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._number is not None:
            self.numbers.append((self._number["data-metric"], self._number["value"], data))
            self._number = None
        if self._text is not None:
            self.texts[self._text] = data
            self._text = None


def at(metrics: Any, path: str) -> Any:
    for part in path.split("."):
        metrics = metrics[int(part) if isinstance(metrics, list) else part]
    return metrics


def assert_equal_to_metrics(shown: Shown, metrics: dict[str, Any]) -> None:
    """Every number is the one of the metrics, but for the digits that are shown."""
    for path, value, text in shown.numbers:
        number = at(metrics, path)
        assert json.loads(value) == number, path
        digits = text.removesuffix(" %").replace(",", "")
        decimals = len(digits.partition(".")[2])
        scale = 100 if text.endswith(" %") else 1
        assert float(digits) == pytest.approx(number * scale, abs=0.5 * 10**-decimals + 1e-9), path
    for path, text in shown.texts.items():
        assert text == at(metrics, path)


def assert_whole_by_itself(shown: Shown) -> None:
    assert "script" not in shown.tags
    assert not any(each.startswith("on") for each in shown.attributes)
    assert all(each.startswith(("#", "data:image/")) for each in shown.addresses)


@pytest.fixture(scope="module")
def output(trained: Run) -> Path:
    return trained.base / "output" / "data"


@pytest.fixture(scope="module")
def metrics(output: Path) -> dict[str, Any]:
    return json.loads((output / "metrics.json").read_text())


def test_a_training_leaves_a_report(trained: Run, output: Path, metrics: dict[str, Any]) -> None:
    page = (output / "report.html").read_text(encoding="utf-8")
    assert len(page.encode()) < MOST_BYTES
    shown = Shown(page)
    assert_whole_by_itself(shown)
    assert len(shown.numbers) > 100
    assert_equal_to_metrics(shown, metrics)
    assert set(shown.texts) == {f"remarks.{place}.text" for place in range(len(metrics["remarks"]))}
    for section in ("Classes", "Errors", "Photos to learn from", "The training", "The data", "Where the time went"):
        assert section in shown.text
    assert page.count("data:image/jpeg;base64,") == len(metrics["evaluation"]["photos"]) == 24
    assert page.count("<svg") == 6
    assert f"The report of the training is in {output / 'report.html'}\n" in trained.out


def test_the_metrics_are_those_of_the_kept_model(metrics: dict[str, Any], trained: Run) -> None:
    evaluation = metrics["evaluation"]
    best = metrics["epochs"][metrics["best"]["epoch"]]["validation"]
    assert {name: evaluation[name] for name in best if name != "classes"} == {
        name: each for name, each in best.items() if name != "classes"
    }
    for identity, each in best["classes"].items():
        assert each.items() <= evaluation["classes"][identity].items()
    assert evaluation["images"] == 30
    assert evaluation["objects"] == sum(each["objects"] for each in best["classes"].values())
    errors = evaluation["errors"]
    assert errors["right"] / evaluation["detections"] == pytest.approx(evaluation["precision"])
    assert errors["right"] / evaluation["objects"] == pytest.approx(evaluation["recall"])
    names = {f"validation/validation-{number:04d}.jpg" for number in range(30)}
    assert {each["name"] for each in evaluation["photos"]} <= names
    assert metrics["data"]["train"]["images"] == 160
    assert metrics["hyperparameters"]["epochs"] == "6"
    assert metrics["time"]["steps_seconds"] == pytest.approx(
        sum(each["seconds"] - each["waited_seconds"] for each in metrics["epochs"])
    )


def test_the_history_has_a_row_an_epoch(output: Path, metrics: dict[str, Any]) -> None:
    with (output / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for row, entry in zip(rows, metrics["epochs"], strict=True):
        expected = {
            name: entry[name] for name in ("epoch", "cross_entropy", "smooth_l1", "learning_rate", "validation_seconds")
        }
        expected |= {
            "images_a_second": entry["examples"] / entry["seconds"],
            "waited_share": entry["waited_seconds"] / entry["seconds"],
            "mAP": entry["validation"]["mAP"],
            "coco_mAP": entry["validation"]["coco"]["mean"],
            "training_seconds": entry["seconds"],
        }
        assert {name: float(value) for name, value in row.items()} == expected


def test_the_report_is_made_again(trained: Run, metrics: dict[str, Any], tmp_path: Path) -> None:
    """From what a training leaves; its network is then the one that is served, which differs by rounding.

    Nothing is left beside it, in a home or among temporary files.
    """
    for name in ("model", "output"):
        shutil.copytree(trained.base / name, tmp_path / name)
    (tmp_path / "input").symlink_to(trained.base / "input")
    written = tmp_path / "output" / "data"
    (written / "report.html").unlink()
    del metrics["evaluation"], metrics["remarks"]
    (written / "metrics.json").write_text(json.dumps(metrics))
    command = [sys.executable, "-m", "ssd_algo.cli", "report", str(tmp_path)]
    home, temporary = tmp_path / "home", tmp_path / "temporary"
    home.mkdir()
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "MPLCONFIGDIR"}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (0, f"{written / 'report.html'}\n"), done.stderr
    assert [*home.iterdir(), *temporary.iterdir()] == []
    again = json.loads((written / "metrics.json").read_text())
    assert again["evaluation"]["mAP"] == pytest.approx(again["best"]["mAP"], abs=1e-3)
    assert again["epochs"] == metrics["epochs"]
    shown = Shown((written / "report.html").read_text(encoding="utf-8"))
    assert_whole_by_itself(shown)
    assert_equal_to_metrics(shown, again)
    (written / "metrics.json").unlink()
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        f"ClientError: {written / 'metrics.json'} is missing; give the folder of a training, which has input, model and "
        "output in it.\n",
    )


def test_a_report_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    demo.write_channels(tmp_path / "input" / "data", 8, 4, np.random.default_rng(0))
    in_the_way = tmp_path / "output" / "data" / "report.html"
    in_the_way.mkdir(parents=True)
    run = train(tmp_path, SMALL | {"mini_batch_size": "4"})
    assert run.code == 0, run.err
    assert (
        f"The report cannot be made ([Errno 21] Is a directory: '{in_the_way.with_name('.report.html.part')}' -> '{in_the_way}'); the model itself is whole.\n"
        in run.out
    )
    assert "Training finished: " in run.out.rstrip().splitlines()[-1]
    assert (tmp_path / "output" / "model.tar.gz").is_file()


def example(
    classes: int, images: int, names: dict[int, str], samples: list[Sample] | None = None
) -> tuple[dict[str, Any], Evaluated]:
    """Metrics and detections of random images: some right, some beside, some of another class."""
    generator = np.random.default_rng(0)
    pairs: list[Compared] = []
    for _ in range(images):
        low = generator.uniform(0, 80, (4, 2)).astype(np.float32)
        boxes, identities = np.concatenate([low, low + 30], axis=1), generator.integers(0, classes, 4)
        moved = boxes + generator.normal(0, 4, (4, 4)).astype(np.float32)
        guessed = np.where(generator.random(4) < 0.8, identities, generator.integers(0, classes, 4))
        found = Scored(moved, generator.random(4).astype(np.float32), guessed)
        pairs.append((Truth(boxes, identities, np.zeros(4, dtype=bool)), found))
    of = evaluated(describe(score(pairs, 0.5), names), pairs, samples or [None] * images, names, 0.5)
    document: dict[str, Any] = {"evaluation": of.described}
    return document | {"remarks": remarks(document)}, of


HOSTILE = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "$x^2$", "a\nb\x00", "\udcff")


def test_names_come_out_as_text(shapes: Path) -> None:
    """Of classes, files and hyperparameters, and what the check says of them."""
    images = read_images(shapes, "validation").samples
    samples = [
        Sample(f"validation/{name}", each.file, each.offset, each.boxes, each.classes, each.difficult, each.size)
        for name, each in zip(HOSTILE, images, strict=False)
    ]
    document, of = example(len(HOSTILE), len(samples), dict(enumerate(HOSTILE)), samples)
    figures = {"images": 1, "images_without_objects": 0, "skipped": 0, "objects": 1, "objects_per_image": None}
    figures |= {"side": None, "different_sizes": 0, "sizes": {}}
    figures["classes"] = {
        str(place): {"name": name, "objects": 1, "images": 1, "side": 9.0} for place, name in enumerate(HOSTILE)
    }
    document["data"] = {
        "train": figures,
        "validation": figures,
        "images_in_both_channels": 0,
        "warnings": [{"rule": name, "count": 1, "first": name} for name in HOSTILE],
    }
    document["hyperparameters"] = {"base_network": HOSTILE[0], "image_shape": "300"} | {name: name for name in HOSTILE}
    page = render(document, of)
    shown = Shown(page)
    assert_whole_by_itself(shown)
    assert page.count("<img") == len(of.described["photos"]) == len(samples)
    for name in (HOSTILE[0], HOSTILE[1], HOSTILE[2], HOSTILE[3], r"a\nb\x00", r"\udcff"):
        assert name in shown.text
    assert_equal_to_metrics(shown, document)
    page.encode()


@pytest.mark.parametrize("classes", [1, 80, 300])
def test_any_number_of_classes(classes: int) -> None:
    document, of = example(classes, 100, {})
    page = render(document, of)
    shown = Shown(page)
    assert_whole_by_itself(shown)
    assert_equal_to_metrics(shown, document)
    assert len(page) < 2_000_000
    assert ("these are the 200 weakest" in page) == (classes > 200)


def test_without_anything_to_show() -> None:
    page = render({}, None)
    assert "There was no validation whose detections are at hand" in page
    nothing = evaluated(describe(score([], 0.5), {}), [], [], {}, 0.5)
    document = {"evaluation": nothing.described, "remarks": remarks({"evaluation": nothing.described})}
    assert document["remarks"] == []
    assert_equal_to_metrics(Shown(render(document, nothing)), document)


def test_it_is_silent_without_a_folder_of_ones_own() -> None:
    code = "from ssd_algo.evaluation import charts; assert charts.training([{'epoch': 0, 'cross_entropy': 1.0, 'smooth_l1': 1.0, 'learning_rate': 0.1, 'examples': 8, 'seconds': 2.0}])"
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MPLCONFIGDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | {"HOME": "/dev/null"}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with running() as started:
        yield started


# The least contrast of a text with what is behind it, as WCAG 2.1 defines it; and which text that is.
LEAST_CONTRAST = """(() => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const over = (colour, below) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = `rgb(${below})`; context.fillRect(0, 0, 1, 1);
        context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
        return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const behind = element => element === null ? [255, 255, 255]
        : over(getComputedStyle(element).backgroundColor, behind(element.parentElement));
    const light = colour => [0.2126, 0.7152, 0.0722].reduce((sum, share, place) => {
        const value = colour[place] / 255;
        return sum + share * (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    }, 0);
    for (const each of document.querySelectorAll("details")) each.open = true;
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let least = [Infinity, ""];
    while (walker.nextNode()) {
        const text = walker.currentNode, element = text.parentElement;
        if (!text.data.trim() || !element.checkVisibility()) continue;
        const style = getComputedStyle(element), ground = behind(element);
        const drawn = over(element.closest("svg") ? style.fill : style.color, ground);
        const [dark, bright] = [light(drawn), light(ground)].sort((one, other) => one - other);
        const contrast = (bright + 0.05) / (dark + 0.05);
        if (contrast < least[0]) least = [contrast, text.data];
    }
    return least;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_can_be_read_in_a_browser(browser: Browser, output: Path, width: int, scheme: str) -> None:
    page = Page(browser, (output / "report.html").as_uri())
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrast, text = page.evaluate(LEAST_CONTRAST)
    assert contrast >= 4.5, text
    assert page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(20, 23, 26)"}[scheme]
    # Its policy keeps the page from nothing that it does, and nobody is asked for anything.
    assert page.events("Log.entryAdded") == []
    requests = [event["request"]["url"] for event in page.events("Network.requestWillBeSent")]
    assert all(url.startswith(("file:", "data:")) for url in requests)
    browser.call("Target.closeTarget", targetId=page.target)
