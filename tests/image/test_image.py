"""The image, as `docker run` uses it: `make test-image` builds it and runs this."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL

from ssd_algo import demo

IMAGE = os.environ["SSD_ALGO_IMAGE"]


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder as the platform mounts it."""
    base = tmp_path_factory.mktemp("opt-ml")
    demo.write_channels(base / "input" / "data", 40, 10, np.random.default_rng(0))
    (base / "input" / "config").mkdir()
    (base / "input" / "config" / "hyperparameters.json").write_text(json.dumps(SMALL | {"epochs": "2"}))
    return base


@pytest.fixture(scope="module")
def log(base: Path) -> str:
    """The log of a training in the image: 64 MB of /dev/shm as `docker run` gives, no network, a read-only input."""
    limits = ["--network", "none", "--shm-size", "64m"]
    mounts = ["-v", f"{base}:/opt/ml", "-v", f"{base}/input:/opt/ml/input:ro"]
    done = docker("run", "--rm", *limits, *mounts, IMAGE, "train")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(base: Path, log: str) -> Iterator[tuple[str, str]]:
    """Container name and address of a server over a read-only model, as the platform mounts it."""
    port = demo.free_port()
    name = f"ssd-algo-test-{port}"
    model = f"{base}/model:/opt/ml/model:ro"
    started = docker("run", "-d", "--name", name, "-p", f"127.0.0.1:{port}:8080", "-v", model, IMAGE, "serve")
    assert started.returncode == 0, started.stderr
    try:
        url = f"http://127.0.0.1:{port}"
        while not demo.is_ready(url):
            assert docker("inspect", "-f", "{{.State.Running}}", name).stdout.strip() == "true", docker("logs", name)
        yield name, url
    finally:
        docker("rm", "-f", name)


def test_training(base: Path, log: str) -> None:
    assert 'Saved checkpoint to "/opt/ml/model/model_algo_1-0000.params"' in log
    assert re.search(r"Training finished: best validation mAP \S+ at epoch \d\.\n$", log)
    assert (base / "output" / "model.tar.gz").is_file()


def test_serving(base: Path, server: tuple[str, str]) -> None:
    photo = base / "input" / "data" / "validation" / "validation-0000.jpg"
    answer = demo.post_image(server[1], photo.read_bytes())
    assert len(answer["prediction"]) > 0
    assert all(len(row) == 6 for row in answer["prediction"])


def test_failure(base: Path) -> None:
    done = docker("run", "--rm", "-v", f"{base}/output:/opt/ml/output", IMAGE, "train")
    assert done.returncode == 2
    sentence = "ClientError: /opt/ml/input/config/hyperparameters.json is missing; "
    assert done.stderr.startswith(sentence)
    assert (base / "output" / "failure").read_text().startswith(sentence)


def test_other_commands_of_the_image() -> None:
    done = docker("run", "--rm", IMAGE)
    assert done.returncode == 0
    assert "Usage: ssd-algo" in done.stdout


def test_label_for_the_port() -> None:
    label = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"
    done = docker("inspect", "-f", f'{{{{index .Config.Labels "{label}"}}}}', IMAGE)
    assert done.stdout.strip() == "true"


def test_sigterm_reaches_the_server(server: tuple[str, str]) -> None:
    begun = time.monotonic()
    assert docker("stop", "-t", "30", server[0]).returncode == 0
    assert time.monotonic() - begun < 30
    assert docker("inspect", "-f", "{{.State.ExitCode}}", server[0]).stdout.strip() == "0"


def test_sigterm_ends_a_training_in_order(base: Path) -> None:
    name = f"ssd-algo-test-stop-{os.getpid()}"
    started = docker("run", "-d", "--name", name, "-v", f"{base}:/opt/ml", IMAGE, "train")
    assert started.returncode == 0, started.stderr
    try:
        while "Using [cpu(0)] as training context." not in docker("logs", name).stdout:
            assert docker("inspect", "-f", "{{.State.Running}}", name).stdout.strip() == "true", docker("logs", name)
        assert docker("stop", "-t", "30", name).returncode == 0
        assert docker("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "0"
        assert "Stopped by SIGTERM; the best model so far is kept." in docker("logs", name).stdout
    finally:
        docker("rm", "-f", name)
