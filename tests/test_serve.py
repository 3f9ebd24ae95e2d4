"""`serve` through its front door: a real server on loopback, real requests."""

import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from conftest import SERVE, Run, environment, read_images
from PIL import Image

from ssd_algo import demo
from ssd_algo.data import images
from ssd_algo.evaluation.average_precision import Scored, Truth, mean_average_precision, voc


def ask(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    """Status and JSON of POST /invocations."""
    # urllib adds a content type of its own where there is none; this one is not sent.
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{url}/invocations", data=body, headers=given)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def ask_without_content_type(url: str, body: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        answer = b""
        while block := connection.recv(1 << 16):
            answer += block
    return answer


@pytest.fixture
def photo(shapes: Path) -> bytes:
    return (shapes / "validation" / "validation-0000.jpg").read_bytes()


def test_ping_has_an_empty_body(url: str) -> None:
    with urllib.request.urlopen(f"{url}/ping") as answer:
        assert answer.status == 200
        assert answer.read() == b""


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/png", "application/x-image", "image/jpeg; q=1"])
def test_prediction(url: str, photo: bytes, content_type: str) -> None:
    status, answer = ask(url, photo, Content_Type=content_type)
    assert status == 200
    assert list(answer) == ["prediction"]
    rows = np.asarray(answer["prediction"])
    assert rows.shape[1] == 6
    assert set(rows[:, 0]) <= {0.0, 1.0, 2.0}
    assert (np.diff(rows[:, 1]) <= 0).all()
    assert ((rows[:, 1] >= 0.01) & (rows[:, 1] <= 1)).all()
    assert ((rows[:, 2:] >= 0) & (rows[:, 2:] <= 1)).all()


def test_no_content_type(url: str, photo: bytes) -> None:
    answer = ask_without_content_type(url, photo)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1]) == ask(url, photo, Content_Type="image/jpeg")[1]


def test_annotation_form_is_in_pixels(url: str, photo: bytes) -> None:
    _, plain = ask(url, photo, Content_Type="image/jpeg")
    status, answer = ask(url, photo, Content_Type="image/jpeg", Accept="application/json;annotation=1")
    assert status == 200
    assert answer["image_size"] == [{"width": 200, "height": 160, "depth": 3}]
    assert len(answer["annotations"]) == len(plain["prediction"])
    for row, each in zip(plain["prediction"], answer["annotations"], strict=True):
        assert list(each) == ["class_id", "score", "left", "top", "width", "height"]
        assert each["class_id"] == row[0]
        assert each["score"] == row[1]
        corners = [each["left"], each["top"], each["left"] + each["width"], each["top"] + each["height"]]
        assert corners == [round(value * side) for value, side in zip(row[2:], [200, 160] * 2, strict=True)]


def test_exif_orientation(url: str, photo: bytes) -> None:
    """A picture stored sideways with the orientation that turns it upright answers as the upright one does."""
    upright = Image.open(io.BytesIO(photo))
    stored, turned = io.BytesIO(), io.BytesIO()
    upright.save(stored, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, "PNG", exif=exif)
    accept = {"Content_Type": "image/png", "Accept": "application/json;annotation=1"}
    assert ask(url, turned.getvalue(), **accept) == ask(url, stored.getvalue(), **accept)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_kinds_of_images(url: str, mode: str) -> None:
    picture = Image.fromarray(np.full((30, 50), 4000, dtype=np.uint16)) if mode == "I;16" else None
    picture = picture or Image.new("RGB", (50, 30), (200, 100, 50)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if mode == "CMYK" else "PNG")
    assert ask(url, buffer.getvalue(), Content_Type="application/x-image")[0] == 200


@pytest.mark.parametrize(
    ("body", "content_type", "status", "sentence"),
    [
        (
            b"no image",
            "image/jpeg",
            400,
            "The request's body is not an image: the 8 bytes are no image that can be decoded; send a JPEG or PNG file's "
            "bytes.",
        ),
        (
            b"1,2,3",
            "text/csv",
            415,
            "The content type text/csv is not supported; send an image as image/jpeg, image/png or application/x-image.",
        ),
    ],
)
def test_refusals(url: str, body: bytes, content_type: str, status: int, sentence: str) -> None:
    assert ask(url, body, Content_Type=content_type) == (status, {"error": sentence})


def test_a_bad_request_harms_no_other(url: str, photo: bytes) -> None:
    _, expected = ask(url, photo, Content_Type="image/jpeg")
    bodies = [photo, b"no image"] * 8
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: ask(url, body, Content_Type="image/jpeg"), bodies))
    assert all(answer == (200, expected) for answer in answers[::2])
    assert all(status == 400 for status, _ in answers[1::2])


def test_served_detections_score_what_training_logged(url: str, trained: Run) -> None:
    data = trained.base / "input" / "data"
    dataset = read_images(data, "validation")
    truths = [Truth(sample.boxes, sample.classes, sample.difficult) for sample in dataset.samples]
    served = []
    for sample in dataset.samples:
        rows = np.asarray(demo.post_image(url, sample.encoded())["prediction"], dtype=np.float32).reshape(-1, 6)
        served.append(Scored(rows[:, 2:], rows[:, 1], rows[:, 0].astype(np.int64)))
    score = mean_average_precision(voc(truths, served, 0.5))
    best = float(trained.out.split("best validation mAP ")[1].split(" ")[0])
    assert best > 0.2
    assert score == pytest.approx(best, abs=0.0005)


def test_saved_symbol_gives_the_served_detections(url: str, trained: Run, photo: bytes) -> None:
    """Bound with MXNet alone: raw RGB in, rows out."""
    symbol, arguments, auxiliaries = mx.model.load_checkpoint(str(trained.base / "model" / "model_algo_1"), 0)
    assert symbol.list_outputs() == ["detections_output"]
    data = images.to_square(images.decode(photo), 128).transpose(2, 0, 1)[None].astype(np.float32)
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=data.shape)
    executor.copy_params_from(arguments, auxiliaries)
    (rows,) = executor.forward(is_train=False, data=mx.nd.array(data))
    assert rows.shape == (1, 400, 6)
    table = rows.asnumpy()[0]
    served = np.asarray(ask(url, photo, Content_Type="image/jpeg")[1]["prediction"])
    assert table[: len(served)] == pytest.approx(served, abs=1e-4)
    assert (table[len(served) :] == -1).all()


def test_sigterm_answers_what_is_in_flight(trained: Run, photo: bytes) -> None:
    port = demo.free_port()
    settings = environment(trained.base, SAGEMAKER_BIND_TO_PORT=str(port))
    with subprocess.Popen(SERVE, env=settings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        url = f"http://127.0.0.1:{port}"
        statuses = set()
        while not demo.is_ready(url):
            try:
                with urllib.request.urlopen(f"{url}/ping") as answer:
                    statuses.add(answer.status)
            except urllib.error.HTTPError as error:
                statuses.add(error.code)
            except OSError:
                assert server.poll() is None
        assert statuses <= {503, 200}
        with ThreadPoolExecutor(4) as pool:
            requests = [pool.submit(ask, url, photo, Content_Type="image/jpeg") for _ in range(16)]
            requests[0].result()  # the others are queued or being answered
            begun = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            outcomes = []
            for each in requests:
                try:
                    outcomes.append(each.result()[0])
                except OSError:  # refused or reset: it came when the server no longer took connections
                    outcomes.append(0)
        assert server.wait(timeout=30) == 0
        assert time.monotonic() - begun < 30
        assert outcomes.count(200) >= 4
        assert set(outcomes) <= {200, 0}


def refusal(base: Path, **more: str) -> tuple[int, str]:
    done = subprocess.run(SERVE, env=environment(base, **more), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_server_without_a_model(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        2,
        f"ClientError: {tmp_path}/model holds no model: model_algo_1-symbol.json, model_algo_1-0000.params, "
        "hyperparams.json missing; unpack a model.tar.gz made by training there.\n",
    )


def test_server_with_a_wrong_port(trained: Run) -> None:
    assert refusal(trained.base, SAGEMAKER_BIND_TO_PORT="http") == (
        2,
        'ClientError: SAGEMAKER_BIND_TO_PORT is "http"; it must be a port from 1 to 65535.\n',
    )


def test_server_with_a_damaged_model_ends(tmp_path: Path, trained: Run) -> None:
    (tmp_path / "model").mkdir()
    for path in (trained.base / "model").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model" / "model_algo_1-0000.params").write_bytes(b"short")
    code, err = refusal(tmp_path, SAGEMAKER_BIND_TO_PORT=str(demo.free_port()))
    assert code == 3
    assert (
        f"ClientError: {tmp_path}/model/model_algo_1-0000.params is damaged and cannot be loaded; unpack the model.tar.gz "
        "again." in err
    )
