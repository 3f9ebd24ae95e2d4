"""The page of `serve` in a real browser: headless Chromium, driven over its DevTools protocol."""

import base64
import io
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, Browser, running
from browser import Page as Tab
from PIL import Image

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


class Page(Tab):
    """The server's page."""

    def choose(self, file: Path) -> str:
        """The state that the page gets to with a file chosen with its button."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])
        return self.settled()

    def settled(self) -> str:
        """The state that the page gets to."""
        return self.evaluate(
            """new Promise(done => {
                const look = () => {
                    const { state } = document.body.dataset;
                    state === "waiting" ? setTimeout(look, 20) : done(state);
                };
                look();
            })"""
        )

    def move_slider(self, threshold: float) -> None:
        self.evaluate(f"threshold.value = {threshold}; threshold.dispatchEvent(new Event('input'))")

    def message(self) -> str:
        return self.evaluate("message.innerText")

    def boxes(self) -> list[list[float]]:
        """Left, top, width and height of the boxes that are seen, as parts of the photo, the topmost first."""
        return self.evaluate(
            """(() => {
                const photo = document.querySelector("#photo").getBoundingClientRect();
                const boxes = [...document.querySelectorAll(".box")].filter(box => box.checkVisibility());
                return boxes.map(box => box.getBoundingClientRect()).map(box => [
                    (box.left - photo.left) / photo.width, (box.top - photo.top) / photo.height,
                    box.width / photo.width, box.height / photo.height]).reverse();
            })()"""
        )

    def rows(self) -> list[list[str]]:
        """The cells of the table's rows that are seen."""
        return self.evaluate(
            """[...document.querySelectorAll("tbody tr")].filter(row => row.checkVisibility())
                .map(row => [...row.cells].map(cell => cell.innerText))"""
        )

    def picture(self) -> Image.Image:
        """What is seen where the photo is."""
        place = self.evaluate("document.querySelector('#photo').getBoundingClientRect().toJSON()")
        clip = {side: place[side] for side in ("x", "y", "width", "height")} | {"scale": 1}
        said = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        return Image.open(io.BytesIO(base64.b64decode(said["data"]))).convert("RGB")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running() as started:
        yield started


@pytest.fixture
def open_page(browser: Browser, url: str) -> Iterator[Callable[[], Page]]:
    """Opens the server's page in a new tab."""
    pages: list[Page] = []

    def opened() -> Page:
        pages.append(Page(browser, f"{url}/"))
        return pages[-1]

    yield opened
    for page in pages:
        browser.call("Target.closeTarget", targetId=page.target)


@pytest.fixture
def photo(shapes: Path) -> Path:
    return shapes / "validation" / "validation-0000.jpg"


def ask(url: str, file: Path) -> Any:
    """The JSON of the answer to a file as the page asks for it."""
    headers = {"Content-Type": "application/x-image", "Accept": "application/json;annotation=1;names=1"}
    request = urllib.request.Request(f"{url}/invocations", file.read_bytes(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)


@pytest.mark.parametrize("turned", [False, True])
def test_the_page_draws_what_the_server_answers(
    open_page: Callable[[], Page], url: str, photo: Path, tmp_path: Path, turned: bool
) -> None:
    with Image.open(photo) as upright:
        upright.load()
    if turned:  # lies on its side, and its EXIF says so
        photo, exif = tmp_path / "turned.jpg", Image.Exif()
        exif[0x0112] = 6
        upright.transpose(Image.Transpose.ROTATE_90).save(photo, quality=95, exif=exif)
    answer = ask(url, photo)
    size, detections = answer["image_size"][0], answer["annotations"]
    assert (size["width"], size["height"]) == (200, 160)
    likely = [each for each in detections if each["score"] >= 0.5]
    assert 0 < len(likely) < len(detections)

    page = open_page()
    assert page.choose(photo) == "done"

    for shown, threshold in ((likely, None), (detections, 0.01)):
        if threshold is not None:
            page.move_slider(threshold)
        sides = [[each[side] for side in ("left", "top", "width", "height")] for each in shown]
        assert page.rows() == [
            [each["class_name"], f"{each['score']:.2f}", *map(str, box)] for each, box in zip(shown, sides, strict=True)
        ]
        assert len(page.boxes()) == len(shown)
        np.testing.assert_allclose(page.boxes(), np.array(sides) / [200, 160, 200, 160], atol=0.01)
    page.move_slider(1)
    # Small, for the noise that the photo has is smoothed when it is shown larger.
    seen, expected = (np.asarray(each.resize((25, 20)), dtype=np.float64) for each in (page.picture(), upright))
    assert np.abs(seen - expected).mean() < 5


@pytest.mark.parametrize(
    "event",
    ["new ClipboardEvent('paste', { clipboardData })", "new DragEvent('drop', { dataTransfer: clipboardData })"],
)
def test_a_photo_is_pasted_or_dropped(open_page: Callable[[], Page], url: str, photo: Path, event: str) -> None:
    page = open_page()

    page.evaluate(
        f"""(() => {{
            const bytes = Uint8Array.from(atob("{base64.b64encode(photo.read_bytes()).decode()}"), each => each.charCodeAt());
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "<i>photo</i>.jpg"));
            document.dispatchEvent({event});
        }})()"""
    )

    assert page.settled() == "done"
    page.move_slider(0.01)
    assert len(page.boxes()) == len(ask(url, photo)["annotations"])
    assert page.message().startswith("<i>photo</i>.jpg, 200 × 160, answered in ")  # noqa: RUF001


def test_the_answer_is_downloaded_as_it_came(
    browser: Browser, open_page: Callable[[], Page], url: str, photo: Path, tmp_path: Path
) -> None:
    page = open_page()
    assert page.choose(photo) == "done"
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), eventsEnabled=True)

    page.evaluate("download.click()")

    browser.wait_for("Browser.downloadProgress", state="completed")
    assert json.loads((tmp_path / "validation-0000.json").read_text()) == ask(url, photo)


def test_a_class_is_switched_off_and_on(open_page: Callable[[], Page], photo: Path) -> None:
    page = open_page()
    assert page.choose(photo) == "done"
    page.move_slider(0.01)
    rows = page.rows()
    name = rows[0][0]
    click = (
        f"[...document.querySelectorAll('#classes button')].find(each => each.innerText.startsWith('{name}: ')).click()"
    )

    page.evaluate(click)
    left = [row for row in rows if row[0] != name]
    assert (page.rows(), len(page.boxes())) == (left, len(left))

    page.evaluate(click)
    assert (page.rows(), len(page.boxes())) == (rows, len(rows))


def test_what_is_no_image_gets_the_servers_sentence(open_page: Callable[[], Page], url: str, tmp_path: Path) -> None:
    file = tmp_path / "letter.jpg"
    file.write_text("Dear server, this is no image.")
    page = open_page()

    assert page.choose(file) == "failed"

    assert page.message() == ask(url, file)["error"]
    assert (page.rows(), page.boxes()) == ([], [])


def test_a_photo_that_is_refused_leaves_nothing_of_the_one_before(
    open_page: Callable[[], Page], photo: Path, tmp_path: Path
) -> None:
    page = open_page()
    assert page.choose(photo) == "done"
    rows = page.rows()
    (tmp_path / "empty.png").touch()

    assert page.choose(tmp_path / "empty.png") == "failed"

    assert (page.rows(), page.boxes()) == ([], [])
    assert page.choose(photo) == "done"
    assert (page.rows(), len(page.boxes())) == (rows, len(rows))


def test_a_server_that_is_gone_is_told(open_page: Callable[[], Page], photo: Path) -> None:
    page = open_page()
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)

    assert page.choose(photo) == "failed"

    assert page.message() == "The server cannot be reached; is it still running?"


def test_nothing_is_asked_of_anybody_else(open_page: Callable[[], Page], url: str, photo: Path) -> None:
    page = open_page()
    assert page.choose(photo) == "done"

    requests = [event["request"] for event in page.events("Network.requestWillBeSent")]
    assert {f"{url}/", f"{url}/invocations"} <= {request["url"] for request in requests}
    for request in requests:
        assert request["url"].startswith((f"{url}/", "blob:", "data:"))
    # Its policy keeps the page from nothing that it does.
    assert page.events("Log.entryAdded") == []


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(open_page: Callable[[], Page], photo: Path, width: int) -> None:
    page = open_page()
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    assert page.choose(photo) == "done"
    page.move_slider(0.01)

    assert page.evaluate("innerWidth") == width
    assert page.evaluate("document.documentElement.scrollWidth") <= width
