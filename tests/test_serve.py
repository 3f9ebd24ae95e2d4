"""`serve` through its front door: a real server on loopback, real requests."""

import base64
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from conftest import SERVE, Run, environment, read_images
from PIL import Image

from ssd_algo import demo
from ssd_algo.data import images, recordio
from ssd_algo.evaluation.average_precision import mean_average_precision, voc
from ssd_algo.evaluation.matching import Scored, Truth
from ssd_algo.serving.app import is_closed
from ssd_algo.serving.metrics import STAGES

LINES = "application/jsonlines"


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
            "The content type text/csv is not supported; send an image as image/jpeg, image/png or application/x-image, "
            "or many as application/jsonlines or application/x-recordio.",
        ),
        (b"", "image/png", 400, "The request's body is empty; send a JPEG or PNG file's bytes."),
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
        with contextlib.ExitStack() as clients:
            answers = []
            for _ in range(16):
                client = clients.enter_context(contextlib.closing(connection(url)))
                client.request("POST", "/invocations", photo, {"Content-Type": "image/jpeg"})
                answers.append(client)
            begun = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            assert [client.getresponse().status for client in answers] == [200] * 16
        assert server.wait(timeout=30) == 0
        assert time.monotonic() - begun < 30


def refusal(base: Path, **more: str) -> tuple[int, str]:
    done = subprocess.run(SERVE, env=environment(base, **more), capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_server_without_a_model(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        2,
        f"ClientError: {tmp_path}/model holds no model: model_algo_1-symbol.json, model_algo_1-0000.params, "
        "hyperparams.json missing; unpack a model.tar.gz made by training there.\n",
    )


def test_server_with_a_port_in_use(trained: Run) -> None:
    with socket.create_server(("0.0.0.0", 0)) as other:
        port = other.getsockname()[1]
        assert refusal(trained.base, SAGEMAKER_BIND_TO_PORT=str(port)) == (
            2,
            f"ClientError: Port {port} cannot be listened on (Address already in use); set SAGEMAKER_BIND_TO_PORT to "
            "another.\n",
        )


def test_server_with_a_wrong_port(trained: Run) -> None:
    assert refusal(trained.base, SAGEMAKER_BIND_TO_PORT="http") == (
        2,
        'ClientError: SAGEMAKER_BIND_TO_PORT is "http"; it must be a port from 1 to 65535.\n',
    )


@pytest.mark.parametrize(
    ("name", "kept"),
    [("model_algo_1.onnx", True), ("model_algo_1-0000.params", False), ("model_algo_1-symbol.json", False)],
)
def test_server_with_a_damaged_model_ends(tmp_path: Path, trained: Run, name: str, kept: bool) -> None:
    """Without the network made for serving, `kept`, it is made of the others."""
    copy_model(trained, tmp_path, ["model_algo_1.onnx"] if not kept else [])
    (tmp_path / "model" / name).write_bytes(b"short")
    code, err = refusal(tmp_path, SAGEMAKER_BIND_TO_PORT=str(demo.free_port()))
    assert code == 3
    what = (
        "is damaged or was written by neither this image's training nor the built-in's."
        if name.endswith("json")
        else "is damaged and cannot be loaded; unpack the model.tar.gz again."
    )
    assert f"ClientError: {tmp_path}/model/{name} {what}\n" in err


def test_an_older_model_without_the_network_for_serving(tmp_path: Path, trained: Run, url: str, photo: bytes) -> None:
    copy_model(trained, tmp_path, ["model_algo_1.onnx", "model_algo_1-int8.onnx"])
    with demo.serving(SERVE, environment(tmp_path), tmp_path / "serve.log") as older:
        assert ask(older, photo, Content_Type="image/png") == ask(url, photo, Content_Type="image/png")
    assert "model_algo_1.onnx" not in [path.name for path in (tmp_path / "model").iterdir()]


def test_int8(tmp_path: Path, trained: Run, url: str, photo: bytes) -> None:
    settings = environment(trained.base, SSD_ALGO_PRECISION="int8")
    with demo.serving(SERVE, settings, tmp_path / "serve.log") as server:
        best, *_ = ask(server, photo, Content_Type="image/jpeg")[1]["prediction"]
        with urllib.request.urlopen(f"{server}/metrics") as answer:
            assert 'precision="int8"' in answer.read().decode()
    expected, *_ = ask(url, photo, Content_Type="image/jpeg")[1]["prediction"]
    assert best != expected  # it is another network
    assert best[0] == expected[0]
    assert best[1:] == pytest.approx(expected[1:], abs=0.1)


def test_int8_of_a_model_that_has_none(tmp_path: Path, trained: Run) -> None:
    copy_model(trained, tmp_path, ["model_algo_1-int8.onnx"])
    assert refusal(tmp_path, SSD_ALGO_PRECISION="int8") == (
        2,
        f"ClientError: {tmp_path}/model has no int8 network (model_algo_1-int8.onnx is missing); train with export_int8 1 "
        "or auto, make one with ssd-algo export --images, or serve float32.\n",
    )


def copy_model(trained: Run, base: Path, without: list[str]) -> None:
    (base / "model").mkdir()
    for path in (trained.base / "model").iterdir():
        if path.name not in without:
            (base / "model" / path.name).write_bytes(path.read_bytes())


def connection(url: str) -> http.client.HTTPConnection:
    host, port = url.removeprefix("http://").split(":")
    return http.client.HTTPConnection(host, int(port), timeout=60)


def test_class_names(url: str, photo: bytes) -> None:
    named = {0: "circle", 1: "square", 2: "triangle"}
    accept = "application/json;names=1"
    _, answer = ask(url, photo, Content_Type="image/jpeg", Accept=accept)
    assert answer["class_names"] == [named[int(row[0])] for row in answer["prediction"]]
    _, answer = ask(url, photo, Content_Type="image/jpeg", Accept=f"{accept};annotation=1")
    assert all(each["class_name"] == named[each["class_id"]] for each in answer["annotations"])


def test_custom_attributes(url: str, photo: bytes) -> None:
    _, everything = ask(url, photo, Content_Type="image/jpeg")
    scores = [row[1] for row in everything["prediction"]]
    client = connection(url)
    attributes = f"threshold={scores[4]}, max_detections=3, trace=7"
    client.request("POST", "/invocations", photo, {"X-Amzn-SageMaker-Custom-Attributes": attributes})
    answer = client.getresponse()
    assert answer.headers["X-Amzn-SageMaker-Custom-Attributes"] == attributes
    assert json.load(answer)["prediction"] == everything["prediction"][:3]
    client.request("POST", "/invocations", photo, {"X-Amzn-SageMaker-Custom-Attributes": f"threshold={scores[4]}"})
    assert json.load(client.getresponse())["prediction"] == everything["prediction"][:5]
    client.close()


def test_an_answer_that_nobody_can_give(url: str, photo: bytes) -> None:
    status, answer = ask(url, photo, Content_Type="image/jpeg", Accept="text/csv, image/png")
    assert status == 406
    assert answer["error"].endswith("but Accept is text/csv, image/png.")


def test_many_images_as_lines(url: str, photo: bytes) -> None:
    _, expected = ask(url, photo, Content_Type="image/jpeg")
    encoded = base64.b64encode(photo).decode()
    lines = [json.dumps(encoded), "", json.dumps({"image": encoded}), '"no base64!"', json.dumps("bm8gaW1hZ2U=")]
    lines += [json.dumps(encoded)] * 6  # more than a batch
    body = "\n".join(lines).encode()
    client = connection(url)
    client.request("POST", "/invocations", body, {"Content-Type": "application/jsonlines", "Accept": LINES})
    answer = client.getresponse()
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/jsonlines")
    answers = [json.loads(line) for line in answer.read().splitlines()]
    assert answers[2:4] == [
        {"error": 'Line 4 of the request\'s body is no image in base64; send "..." or {"image": "..."}.'},
        {
            "error": "Image 4 of the request's body is not an image: the 8 bytes are no image that can be decoded; send a JPEG or PNG file's bytes."
        },
    ]
    assert [set(each) for each in answers] == [{"prediction"}] * 2 + [{"error"}] * 2 + [{"prediction"}] * 6
    assert [each for each in answers if "prediction" in each] == [expected] * 8
    client.close()


def test_many_images_as_records(url: str, shapes: Path, photo: bytes) -> None:
    _, expected = ask(url, photo, Content_Type="image/jpeg")
    packed = io.BytesIO()
    recordio.write_record(packed, photo)
    labelled = recordio.pack(0, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.bool_), photo)
    recordio.write_record(packed, labelled)
    recordio.write_record(packed, struct.pack("<IfQQ", 0, 7.0, 0, 0) + photo)  # im2rec without --pack-label
    status, answer = ask(url, packed.getvalue(), Content_Type="application/x-recordio")
    assert (status, answer) == (200, {"predictions": [expected] * 3})
    status, answer = ask(url, packed.getvalue()[:-8], Content_Type="application/x-recordio")
    assert status == 400
    assert answer["error"].startswith("Record 2 of the request's body cannot be read: ")


def test_one_image_as_a_line(url: str, photo: bytes) -> None:
    assert ask(url, photo, Content_Type="image/jpeg", Accept=LINES) == ask(url, photo, Content_Type="image/jpeg")


def test_execution_parameters(url: str) -> None:
    with urllib.request.urlopen(f"{url}/execution-parameters") as answer:
        assert json.load(answer) == {
            "MaxConcurrentTransforms": 4,
            "BatchStrategy": "SINGLE_RECORD",
            "MaxPayloadInMB": 25,
        }


def metric(url: str, name: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        (line,) = (line for line in answer.read().decode().splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def test_metrics(url: str, photo: bytes) -> None:
    names = ['ssd_algo_requests_total{route="/invocations",status="200"}', "ssd_algo_batch_images_sum"]
    names += [f'ssd_algo_stage_seconds_count{{stage="{stage}"}}' for stage in STAGES]
    ask(url, photo, Content_Type="image/jpeg")
    before = [metric(url, name) for name in names]
    ask(url, photo, Content_Type="image/jpeg")
    assert [metric(url, name) for name in names] == [value + 1 for value in before]
    assert metric(url, "ssd_algo_queue_images") == 0
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    assert 'base_network="resnet-18"' in text
    assert 'image_shape="128"' in text


def test_keep_alive_and_chunks(url: str, photo: bytes) -> None:
    _, expected = ask(url, photo, Content_Type="image/jpeg")
    client = connection(url)
    for body in (photo, iter([photo[:100], photo[100:]])):  # an iterator is sent in chunks
        client.request("POST", "/invocations", body, {"Content-Type": "image/jpeg"})
        answer = client.getresponse()
        assert json.load(answer) == expected
        used = client.sock
        assert used is not None
    assert client.sock is used  # nobody has closed it
    client.close()


def test_expect_continue(url: str, photo: bytes) -> None:
    """The body is sent when the server has said that it wants it."""
    host, port = url.removeprefix("http://").split(":")
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    with socket.create_connection((host, int(port))) as client, client.makefile("rb") as answer:
        client.sendall(head % len(photo))
        assert answer.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert answer.readline() == b"\r\n"
        client.sendall(photo)
        assert answer.readline() == b"HTTP/1.1 200 OK\r\n"


def worker_of(server: "subprocess.Popen[bytes]") -> int:
    (child,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return int(child)


def statuses_until(url: str, wanted: int, server: "subprocess.Popen[bytes]") -> list[int]:
    """What /ping says until it says this."""
    seen: list[int] = []
    while not seen or seen[-1] != wanted:
        assert server.poll() is None
        try:
            with urllib.request.urlopen(f"{url}/ping", timeout=10) as answer:
                seen.append(answer.status)
        except urllib.error.HTTPError as error:
            seen.append(error.code)
        except OSError:
            seen.append(0)
    return seen


@contextmanager
def process(command: list[str], base: Path, **more: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A server that is ready, and its address."""
    port = demo.free_port()
    settings = environment(base, SAGEMAKER_BIND_TO_PORT=str(port), **more)
    with (base / "serve.log").open("wb") as log:
        server = subprocess.Popen(command, env=settings, stdout=log, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        statuses_until(url, 200, server)
        yield server, url
    finally:
        server.kill()
        server.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def test_a_killed_worker_comes_back_and_needs_no_mxnet(trained: Run, photo: bytes) -> None:
    with process(SERVE, trained.base) as (server, url):
        before = worker_of(server)
        assert "libmxnet" not in Path(f"/proc/{before}/maps").read_text()
        os.kill(before, signal.SIGKILL)
        statuses_until(url, 200, server)
        assert ask(url, photo, Content_Type="image/jpeg")[0] == 200
        assert worker_of(server) != before
        server.terminate()
        assert server.wait(timeout=30) == 0


HANGS = """
import os, threading
import numpy as np
from ssd_algo.inference.predictor import Predictor
from ssd_algo.serving.server import Server
from ssd_algo.serving.settings import Settings

def engine(images):
    if images.any():
        threading.Event().wait()
    return np.zeros((len(images), 2, 3), np.float32), np.zeros((len(images), 2, 4), np.float32)

def load():
    return Predictor(engine, np.zeros((2, 4), np.float32), 32, 0.45, 400)

Server(Settings.from_environment(os.environ), load, {}, {"base_network": "none"}).run()
"""


def test_a_hung_engine_is_noticed_and_replaced(tmp_path: Path, photo: bytes) -> None:
    with (
        process([sys.executable, "-c", HANGS], tmp_path, MODEL_SERVER_TIMEOUT="1") as (server, url),
        ThreadPoolExecutor(1) as pool,
    ):
        before = worker_of(server)
        request = pool.submit(ask, url, photo, Content_Type="image/jpeg")
        assert set(statuses_until(url, 503, server)) == {200, 503}
        with pytest.raises(OSError):
            request.result()
        statuses_until(url, 200, server)
        assert worker_of(server) != before
    assert (
        "AlgorithmError: the inference thread has been busy for 1 seconds; the server process starts anew."
        in (tmp_path / "serve.log").read_text()
    )


def test_more_requests_than_places(trained: Run, photo: bytes) -> None:
    with process(SERVE, trained.base, SAGEMAKER_MODEL_JOB_QUEUE_SIZE="1") as (_, url), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(url, photo, Content_Type="image/jpeg"), range(64)))
        statuses = [status for status, _ in answers]
        assert set(statuses) == {200, 503}
        assert answers[statuses.index(503)][1] == {
            "error": "All 1 places for requests are taken; send it again in a second."
        }
        assert ask(url, photo, Content_Type="image/jpeg")[0] == 200


def test_a_connection_that_the_other_side_has_closed() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        assert not is_closed(ours)
        theirs.send(b"x")
        assert not is_closed(ours)
        theirs.close()
        ours.recv(1)
        assert is_closed(ours)


def test_a_refused_body_leaves_the_connection_in_use(url: str, photo: bytes) -> None:
    client = connection(url)
    for kind, status in (("text/csv", 415), ("image/jpeg", 400), ("text/csv", 415)):
        client.request("POST", "/invocations", bytes(200_000), {"Content-Type": kind})
        answer = client.getresponse()
        assert answer.status == status
        answer.read()
        used = client.sock
        assert used is not None
    client.request("POST", "/invocations", photo, {"Content-Type": "image/jpeg"})
    assert client.getresponse().status == 200
    assert client.sock is used
    client.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /ping HTTP/1.1\r\nHost:",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/csv\r\nContent-Length: 1000\r\n\r\nabc",
        b"GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\nPOST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
        b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 70_000,
    ],
    ids=[
        "silent",
        "half of the headers",
        "an unfinished image",
        "an unfinished body that is refused",
        "a ping with a body that does not come",
        "a ping with another request behind it",
        "headers without an end",
    ],
)
def test_ping_is_answered_whoever_is_slow(trained: Run, photo: bytes, sent: bytes) -> None:
    """More slow connections than the server has threads."""
    with process(SERVE, trained.base) as (_, url), contextlib.ExitStack() as slow:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(100):
            client = slow.enter_context(socket.create_connection((host, int(port))))
            client.sendall(sent)
        for _ in range(5):
            with urllib.request.urlopen(f"{url}/ping", timeout=2) as answer:
                assert answer.status == 200


def test_a_trickling_body_has_an_end(tmp_path: Path, trained: Run) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
    with process(SERVE, trained.base, MODEL_SERVER_TIMEOUT="1") as (_, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=0.05) as client:
            client.sendall(head)
            answer = b""
            while not answer.endswith(b"}\n"):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(b"x")
                with contextlib.suppress(TimeoutError):
                    answer += client.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 408 REQUEST TIMEOUT\r\n")
    assert b"The request's body did not arrive in time; send it faster." in answer


def test_other_paths_and_methods(url: str) -> None:
    routes = "there are POST /invocations, GET /ping, GET /execution-parameters, GET /metrics and GET /."
    client = connection(url)
    client.request("GET", "/nothing")
    answer = client.getresponse()
    assert (answer.status, json.load(answer)) == (404, {"error": f"There is no GET /nothing; {routes}"})
    client.request("GET", "/invocations")
    answer = client.getresponse()
    assert (answer.status, json.load(answer)) == (405, {"error": f"There is no GET /invocations; {routes}"})
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}
    client.close()


def test_more_images_than_a_request_may_have(url: str) -> None:
    assert ask(url, b"1\n" * 1001, Content_Type=LINES) == (
        400,
        {"error": "The request's body has more than 1000 images; send them in several requests."},
    )


def test_half_a_request_is_answered_when_no_more_comes(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client, client.makefile("rb") as answer:
        client.sendall(b"no HTTP\r\n")
        assert answer.readline() == b"HTTP/1.1 400 Bad Request\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"GET /ping HTTP/1.1\r\nHo")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""  # closed, and the server does not wait for more
