"""`ssd-algo predict`: pictures and lines of JSON, by a model and by an endpoint."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import terminal
from click.testing import CliRunner, Result
from conftest import Run
from test_builtin import make
from test_request import away  # noqa: F401

from ssd_algo import demo
from ssd_algo.cli import main
from ssd_algo.data.draw import colour
from ssd_algo.data.images import decode
from ssd_algo.data.photos import draw_annotations

NAMED = "application/json;annotation=1;names=1"


def predict(*arguments: object) -> Result:
    done = CliRunner().invoke(main, ["predict", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def lines(done: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def photos(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `a` and `b`, each with two photos of the same names, and in `b` a folder with a PNG."""
    some = sorted((trained.base / "input" / "data" / "validation").iterdir())[:4]
    for folder, chosen in (("a", some[:2]), ("b", some[2:])):
        (tmp_path / folder / "deeper").mkdir(parents=True)
        for name, photo in zip(("one.jpg", "two.JPG"), chosen, strict=True):
            shutil.copy(photo, tmp_path / folder / name)
    (tmp_path / "a" / "deeper").rmdir()
    (tmp_path / "b" / "notes.txt").write_text("no photo")
    cv2.imwrite(str(tmp_path / "b" / "deeper" / "three.png"), cv2.imread(str(some[0])))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_pictures_and_lines_are_what_is_served(trained: Run, photos: Path, url: str) -> None:
    done = predict(trained.base / "model", "a", "b", "--threshold", "0.3")
    assert (done.exit_code, done.stderr) == (0, "")
    found = lines(done)
    names = ["a/one.jpg", "a/two.JPG", "b/deeper/three.png", "b/one.jpg", "b/two.JPG"]
    assert [each["file"] for each in found] == names
    assert sum(len(each["annotations"]) for each in found) > 5
    for line in found:
        served = demo.post_image(url, Path(line.pop("file")).read_bytes(), NAMED)
        served["annotations"] = [each for each in served["annotations"] if each["score"] >= 0.3]
        assert line["image_size"] == served["image_size"] == [{"width": 200, "height": 160, "depth": 3}]
        assert len(line["annotations"]) == len(served["annotations"])
        for ours, theirs in zip(line["annotations"], served["annotations"], strict=True):
            assert ours.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-4)
            assert ours == theirs
    made = Path("predictions")
    assert sorted(str(each.relative_to(made)) for each in made.rglob("*") if each.is_file()) == names
    annotations = lines(done)[2]["annotations"]
    expected = draw_annotations(decode(Path("b/deeper/three.png").read_bytes()), annotations)
    assert (decode(Path("predictions/b/deeper/three.png").read_bytes()) == expected).all()
    assert (expected == colour(annotations[0]["class_id"])).all(axis=2).sum() > 100
    assert decode(Path("predictions/a/one.jpg").read_bytes()).shape == (160, 200, 3)
    # What has been made is no photo to look at.
    again = predict(trained.base / "model", ".", "--threshold", "0.3")
    assert [each["file"] for each in lines(again)] == names


def test_patterns_and_int8_of_an_archive(trained: Run, photos: Path) -> None:
    archive = trained.base / "output" / "model.tar.gz"
    done = predict(
        archive, "b/**/*.[jJp]*", "a/one.jpg", "b/one.jpg", "--output", "seen/by int8", "--precision", "int8"
    )
    assert done.exit_code == 0
    assert [each["file"] for each in lines(done)] == ["b/deeper/three.png", "b/one.jpg", "b/two.JPG", "a/one.jpg"]
    assert Path("seen/by int8/b/deeper/three.png").is_file()
    done = predict(archive, "b/deeper", "--output", "seen")
    assert done.exit_code == 0
    assert Path("seen/three.png").is_file()


def test_where_little_is_found_a_lower_threshold_is_named(trained: Run, photos: Path) -> None:
    done = predict(trained.base / "model", "a", "--threshold", "0.9999")
    assert [each["annotations"] for each in lines(done)] == [[], []]
    assert (done.exit_code, done.stderr) == (
        0,
        "In 2 of 2 photos nothing has a score of at least 0.9999. A lower --threshold may show more; the report of a "
        "training, or of `ssd-algo evaluate`, says where to cut the scores.\n",
    )


def test_what_is_no_image_keeps_none_from_its_turn(trained: Run, photos: Path) -> None:
    Path("a/broken.jpg").write_bytes(b"no image")
    Path("gone.jpg").symlink_to("nowhere")
    done = predict(trained.base / "model", "gone.jpg", "a")
    assert done.exit_code == 2
    assert done.stderr == (
        "ClientError: gone.jpg: the file cannot be read (No such file or directory); replace or leave out the image.\n"
        "ClientError: a/broken.jpg: the 8 bytes are no image that can be decoded; replace or leave out the image.\n"
    )
    assert [each["file"] for each in lines(done)] == ["a/one.jpg", "a/two.JPG"]


def test_a_model_of_the_built_in(photos: Path) -> None:
    make(photos / "model", "resnet-50", 128)
    done = predict("model", "a/one.jpg", "--threshold", "0")
    assert done.exit_code == 0
    (line,) = lines(done)
    assert {each["class_name"] for each in line["annotations"]} <= {"0", "1", "2"}
    assert len(line["annotations"]) > 10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{model}"], "there are no images to look at; give MODEL and IMAGES, or --endpoint NAME and IMAGES."),
        (["{model}", "c"], "there is no file or folder c, nor any that it is a pattern of; check the path."),
        (["{model}", "empty"], "empty holds no photo (.jpg, .jpeg, .png); check the path."),
        (
            ["{model}", "a", "--output", "a"],
            "the photo a/one.jpg would be overwritten; give another folder as --output.",
        ),
        (
            ["a", "b"],
            "a holds no model: model_algo_1-symbol.json, model_algo_1-0000.params, hyperparams.json missing; unpack a model.tar.gz made by training there.",
        ),
    ],
)
def test_what_cannot_be_done(trained: Run, photos: Path, arguments: list[str], sentence: str) -> None:
    Path("empty").mkdir()
    before = Path("a/one.jpg").read_bytes()
    done = predict(*(each.format(model=trained.base / "model") for each in arguments))
    assert (done.exit_code, done.stdout, done.stderr) == (2, "", f"ClientError: {sentence}\n")
    assert Path("a/one.jpg").read_bytes() == before
    assert not Path("predictions").exists()


def test_on_a_terminal_each_line_is_whole(trained: Run, photos: Path) -> None:
    Path("a/broken.jpg").write_bytes(b"no image")
    command = [sys.executable, "-m", "ssd_algo.cli", "predict", trained.base / "model", *sorted(Path("a").iterdir())]
    command += ["--threshold", "0.1"]
    code, written, _ = terminal.run(command)
    assert code == 2
    assert "\rdetecting" in written
    first, *rest, bar = [line for line in terminal.screen(written) if line]
    assert first.startswith("ClientError: a/broken.jpg: ")
    assert [json.loads(line)["file"] for line in rest] == ["a/one.jpg", "a/two.JPG"]
    assert bar.startswith("detecting 100%|")


def test_who_has_read_enough_is_no_error(trained: Run, photos: Path) -> None:
    command = [sys.executable, "-m", "ssd_algo.cli", "predict", str(trained.base / "model"), "a", "b"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


class Platform(ThreadingHTTPServer):
    """SageMaker's runtime before an endpoint `shapes`, which hands requests on to a server."""

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = url
        self.only_json = False  # as the built-in's container
        self.answer: bytes | None = None
        self.requests: list[dict[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Platform

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        accept = self.headers["Accept"]
        self.server.requests.append(dict(self.headers))
        if self.path != "/endpoints/shapes/invocations":
            self._answer(400, {"message": "Endpoint birds of account 123456789012 not found."}, "ValidationError")
        elif self.server.only_json and accept != "application/json":
            self._refuse(415, "unsupported accept type")
        elif self.server.answer is not None:
            self._send(200, self.server.answer)
        else:
            names = ("Content-Type", "Accept", "X-Amzn-SageMaker-Custom-Attributes")
            headers = {name: self.headers[name] for name in names}
            request = urllib.request.Request(f"{self.server.url}/invocations", body, headers)
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    self._send(200, answer.read())
            except urllib.error.HTTPError as error:
                self._refuse(error.code, error.read().decode())

    def _refuse(self, status: int, message: str) -> None:
        self._answer(424, {"Message": "", "OriginalStatusCode": status, "OriginalMessage": message}, "ModelError")

    def _answer(self, status: int, document: dict[str, Any], kind: str) -> None:
        self._send(status, json.dumps(document).encode(), kind)

    def _send(self, status: int, body: bytes, kind: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("x-amzn-ErrorType", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def platform(away: None, url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:  # noqa: F811
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Platform(url) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        yield server
        server.shutdown()
        thread.join()


def test_an_endpoint(trained: Run, photos: Path, platform: Platform) -> None:
    done = predict("--endpoint", "shapes", "--region", "eu-west-1", "a", "b", "--threshold", "0.3")
    assert (done.exit_code, done.stderr) == (0, "")
    of_model = lines(predict(trained.base / "model", "a", "b", "--threshold", "0.3", "--output", "of model"))
    for ours, theirs in zip(lines(done), of_model, strict=True):
        assert [each.pop("score") for each in ours["annotations"]] == pytest.approx(
            [each.pop("score") for each in theirs["annotations"]], abs=1e-4
        )
        assert ours == theirs
    assert len(platform.requests) == 5
    assert {each["X-Amzn-SageMaker-Custom-Attributes"] for each in platform.requests} == {"threshold=0.3"}
    assert all("/eu-west-1/sagemaker/aws4_request" in each["Authorization"] for each in platform.requests)
    one, other = (decode(Path(f"{folder}/b/deeper/three.png").read_bytes()) for folder in ("predictions", "of model"))
    assert np.abs(one.astype(int) - other).mean() < 1  # a digit of a score may be another


def test_an_endpoint_of_the_built_in(trained: Run, photos: Path, platform: Platform) -> None:
    """It knows nothing of names and thresholds; after the first image it is asked in its own form at once."""
    platform.only_json = True
    done = predict("--endpoint", "shapes", "--region", "eu-west-1", "a", "--threshold", "0.3")
    assert (done.exit_code, done.stderr) == (0, "")
    of_model = lines(predict(trained.base / "model", "a", "--threshold", "0.3"))
    for ours, theirs in zip(lines(done), of_model, strict=True):
        assert [each["class_name"] for each in ours["annotations"]] == [
            str(each["class_id"]) for each in theirs["annotations"]
        ]
        for one, other in zip(ours["annotations"], theirs["annotations"], strict=True):
            assert {name: one[name] for name in ("class_id", "left", "top", "width", "height")}.items() <= other.items()
    assert [each["Accept"] for each in platform.requests] == [NAMED, "application/json", "application/json"]
    platform.answer = json.dumps(
        {"prediction": [[1, 0.4, 0.5, 0.5, 1, 1], [0, 0.9, 0, 0, 0.25, 0.5], [2, 0.2, 0, 0, 1, 1]]}
    ).encode()
    (line,) = lines(predict("--endpoint", "shapes", "--region", "eu-west-1", "a/one.jpg", "--threshold", "0.4"))
    assert [list(each.values()) for each in line["annotations"]] == [
        [0, "0", pytest.approx(0.9), 0, 0, 50, 80],
        [1, "1", pytest.approx(0.4), 100, 80, 100, 80],
    ]


def test_what_an_endpoint_does_not_take(photos: Path, platform: Platform) -> None:
    """A BMP, which is decoded here, but not served."""
    cv2.imwrite("a/bitmap.bmp", np.zeros((20, 30, 3), dtype=np.uint8))
    done = predict("--endpoint", "shapes", "--region", "eu-west-1", "a/bitmap.bmp", "a/one.jpg")
    assert done.exit_code == 2
    assert done.stderr == (
        "ClientError: a/bitmap.bmp: The request's body is not an image: the 1894 bytes are no image that can be decoded; "
        "send a JPEG or PNG file's bytes; replace or leave out the image.\n"
    )
    assert [each["file"] for each in lines(done)] == ["a/one.jpg"]


@pytest.mark.parametrize("answer", [b"no JSON", b"[]", b"{}", b'{"prediction": [[1, 2]]}', b'{"annotations": [{}]}'])
def test_an_endpoint_of_something_else(photos: Path, platform: Platform, answer: bytes) -> None:
    platform.answer = answer
    done = predict("--endpoint", "shapes", "--region", "eu-west-1", "a")
    assert (done.exit_code, done.stdout, done.stderr) == (
        2,
        "",
        "ClientError: endpoint shapes answers with something else than detections; give one that hosts a detector of this "
        "image or of the built-in algorithm.\n",
    )


def test_an_endpoint_that_cannot_be_asked(photos: Path, platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    assert predict("--endpoint", "shapes", "a").stderr == (
        "ClientError: there is no region to send to; give --region, or set AWS_DEFAULT_REGION.\n"
    )
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert predict("--endpoint", "birds", "a").stderr == (
        "ClientError: SageMaker refused invoke_endpoint (ValidationError: Endpoint birds of account 123456789012 not "
        "found); mend that, or what the credentials allow (docs/operating.md).\n"
    )
    with socket.socket() as silent:  # bound, but nobody listens
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", address)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        assert predict("--endpoint", "shapes", "a").stderr == (
            "ClientError: invoke_endpoint was not sent (Could not connect to the endpoint URL: "
            f'"{address}/endpoints/shapes/invocations"); check region, profile and network.\n'
        )
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    done = predict("--endpoint", "shapes", "a")
    assert (done.exit_code, done.stderr) == (
        2,
        "ClientError: there are no credentials to send with; configure them as for the AWS CLI (aws configure, or "
        "AWS_PROFILE).\n",
    )
    assert not Path("predictions").exists()
