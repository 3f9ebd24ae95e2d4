"""`ssd-algo check` over s3:// prefixes, against moto's server on loopback."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from ssd_algo import demo

CHANNELS = ("train", "train_annotation", "validation", "validation_annotation")


class Unreliable:
    """S3 that refuses the first request for each object, and breaks off the second in the middle of its answer."""

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self.requests: Counter[str] = Counter()
        self.bytes_read: Counter[str] = Counter()
        self.unreliable = False

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        path = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "GET":
            return self._app(environ, start)
        self.requests[path] += 1
        if self.unreliable and self.requests[path] == 1:
            start("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        answer = b"".join(self._app(environ, start))
        self.bytes_read[path] += len(answer)
        if self.unreliable and self.requests[path] == 2:
            return [answer[: len(answer) // 2]]
        return [answer]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Unreliable]:
    app = Unreliable()
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield app
    server.shutdown()
    thread.join()
    server.server_close()


def upload(folder: Path, bucket: str) -> None:
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), bucket, f"data/{path.relative_to(folder)}")
    client.put_object(Bucket=bucket, Key="data/train/", Body=b"")  # as the console makes folders


def check(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ssd_algo.cli", "check", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=120)


def test_a_prefix_is_checked_as_a_folder_is(s3: Unreliable, tmp_path: Path, shapes: Path) -> None:
    upload(shapes, "one")
    here = check("--json", *(str(shapes / channel) for channel in CHANNELS))
    there = check("--json", *(f"s3://one/data/{channel}" for channel in CHANNELS))
    assert there.returncode == here.returncode == 0, there.stderr
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert json.loads(here.stdout)["channels"]["train"]["images"] == 40


def test_a_model_below_a_prefix_is_not_looked_into(s3: Unreliable, tmp_path: Path, shapes: Path) -> None:
    upload(shapes, "five")
    boto3.client("s3").put_object(Bucket="five", Key="data/model/model.tar.gz", Body=b"none")
    done = check("--num-classes", "3", *(f"s3://five/data/{channel}" for channel in (*CHANNELS, "model")))
    assert done.returncode == 0, done.stdout
    assert s3.requests["/five/data/model/model.tar.gz"] == 0


def test_broken_answers_are_asked_for_again(s3: Unreliable, tmp_path: Path) -> None:
    import numpy as np

    demo.write_channels(tmp_path, 3, 1, np.random.default_rng(0))
    upload(tmp_path, "two")
    s3.unreliable = True
    done = check("--json", *(f"s3://two/data/{channel}" for channel in CHANNELS))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["channels"]["train"]["images"] == 3
    read = {path: count for path, count in s3.requests.items() if path.endswith((".jpg", ".json"))}
    assert len(read) == 8
    assert min(read.values()) == 3


def test_only_the_beginning_and_the_end_of_a_large_image_are_read(s3: Unreliable, tmp_path: Path) -> None:
    import cv2
    import numpy as np

    demo.write_channels(tmp_path, 1, 1, np.random.default_rng(0))
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1500, 3), dtype=np.uint8)
    (image,) = (tmp_path / "train").iterdir()
    cv2.imwrite(str(image), noise)
    (annotation,) = (tmp_path / "train_annotation").iterdir()
    document = json.loads(annotation.read_text()) | {"image_size": [{"width": 1500, "height": 1000, "depth": 3}]}
    annotation.write_text(json.dumps(document))
    upload(tmp_path, "three")
    done = check(*(f"s3://three/data/{channel}" for channel in CHANNELS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert image.stat().st_size > 1_000_000
    # A buffer of 64 KiB at the beginning, and what the end needs of another.
    assert 0 < s3.bytes_read[f"/three/data/train/{image.name}"] <= 2 * 65536


def test_a_bucket_that_cannot_be_read(s3: Unreliable) -> None:
    done = check("s3://nowhere/train", "s3://nowhere/validation")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert (
        "channel train: s3://nowhere/train cannot be read (An error occurred (NoSuchBucket) when calling the "
        "ListObjectsV2 operation: The specified bucket does not exist); check the address, the credentials and that they "
        "allow s3:ListBucket and s3:GetObject.\n"
    ) in done.stdout


def test_an_object_that_cannot_be_read(s3: Unreliable, tmp_path: Path) -> None:
    """A .rec file over S3: its last record is broken."""
    for channel in ("train", "validation"):
        (tmp_path / channel).mkdir()
        (tmp_path / channel / "a.rec").write_bytes(b"not a record file")
    upload(tmp_path, "four")
    done = check("s3://four/data/train", "s3://four/data/validation")
    assert done.returncode == 2
    assert (
        "train/a.rec, record 0 at byte 0: it does not start with the RecordIO magic number 0xced7230a; it and what "
        "follows cannot be read: write the file again with im2rec or ssd-algo pack."
    ) in done.stdout
