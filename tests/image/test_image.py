"""The image, as `docker run` uses it: `make test-image` builds it and runs this."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, write_driver
from containers import CPU, GPU, docker, write_base

from ssd_algo import demo

# What a secret or the way to a private registry looks like; the base image's history has GPG_KEY, which is public.
SECRET = re.compile(r"token|passw|secret|credential|(api|access|private)_?key|index-url|find-links|://[^/\s]*@", re.I)


@pytest.fixture(scope="module", params=[CPU, GPU])
def image(request: pytest.FixtureRequest) -> str:
    """Either variant; neither finds a GPU."""
    return str(request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base folder as the platform mounts it."""
    base = tmp_path_factory.mktemp("opt-ml")
    write_base(base, epochs="2", export_int8="1")
    return base


@pytest.fixture(scope="module")
def log(base: Path, image: str) -> str:
    """The log of a training in the image: 64 MB of /dev/shm as `docker run` gives, no network, a read-only input."""
    limits = ["--network", "none", "--shm-size", "64m"]
    mounts = ["-v", f"{base}:/opt/ml", "-v", f"{base}/input:/opt/ml/input:ro"]
    done = docker("run", "--rm", *limits, *mounts, image, "train")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(base: Path, log: str, image: str) -> Iterator[tuple[str, str]]:
    """Container name and address of a server over the model."""
    with serving(base, image) as started:
        yield started


@contextmanager
def serving(base: Path, image: str, precision: str = "float32") -> Iterator[tuple[str, str]]:
    """A server over a read-only model, as the platform mounts it."""
    port = demo.free_port()
    name = f"ssd-algo-test-{port}"
    model = f"{base}/model:/opt/ml/model:ro"
    options = ["-p", f"127.0.0.1:{port}:8080", "-v", model, "-e", f"SSD_ALGO_PRECISION={precision}"]
    started = docker("run", "-d", "--name", name, *options, image, "serve")
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


def test_serving_in_int8(base: Path, log: str, image: str) -> None:
    assert "int8 network: validation mAP " in log
    photo = base / "input" / "data" / "validation" / "validation-0000.jpg"
    with serving(base, image, "int8") as (name, url):
        assert len(demo.post_image(url, photo.read_bytes())["prediction"]) > 0
        assert "precision int8" in docker("logs", name).stdout


def test_failure(base: Path, image: str) -> None:
    done = docker("run", "--rm", "-v", f"{base}/output:/opt/ml/output", image, "train")
    assert done.returncode == 2
    sentence = "ClientError: /opt/ml/input/config/hyperparameters.json is missing; "
    assert done.stderr.startswith(sentence)
    assert (base / "output" / "failure").read_text().startswith(sentence)


def test_other_commands_of_the_image(image: str) -> None:
    done = docker("run", "--rm", image)
    assert done.returncode == 0
    assert "Usage: ssd-algo" in done.stdout


def test_label_for_the_port(image: str) -> None:
    label = "com.amazonaws.sagemaker.capabilities.accept-bind-to-port"
    done = docker("inspect", "-f", f'{{{{index .Config.Labels "{label}"}}}}', image)
    assert done.stdout.strip() == "true"


def test_sigterm_reaches_the_server(server: tuple[str, str]) -> None:
    begun = time.monotonic()
    assert docker("stop", "-t", "30", server[0]).returncode == 0
    assert time.monotonic() - begun < 30
    assert docker("inspect", "-f", "{{.State.ExitCode}}", server[0]).stdout.strip() == "0"


def test_sigterm_ends_a_training_in_order(base: Path, image: str) -> None:
    name = f"ssd-algo-test-stop-{os.getpid()}"
    started = docker("run", "-d", "--name", name, "-v", f"{base}:/opt/ml", image, "train")
    assert started.returncode == 0, started.stderr
    try:
        while "train cross_entropy" not in docker("logs", name).stdout:  # of the first epoch
            assert docker("inspect", "-f", "{{.State.Running}}", name).stdout.strip() == "true", docker("logs", name)
        assert docker("stop", "-t", "30", name).returncode == 0
        assert docker("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "0"
        log = docker("logs", name).stdout
        assert "Received SIGTERM: the job ends as soon as what is running has." in log
        assert re.search(r"Stopped by SIGTERM in epoch \d after batch \d; the model is ", log), log
    finally:
        docker("rm", "-f", name)


def test_two_hosts(base: Path, image: str, tmp_path: Path) -> None:
    """Two containers that know each other by name, and of a network interface that is not there."""
    network, names = f"ssd-algo-test-{os.getpid()}", ["algo-1", "algo-2"]
    assert docker("network", "create", network).returncode == 0
    try:
        for name in names:
            config = tmp_path / name / "input" / "config"
            config.mkdir(parents=True)
            (config / "hyperparameters.json").write_text(json.dumps(SMALL | {"mini_batch_size": "4"}))
            hosts = {"current_host": name, "hosts": names, "network_interface_name": "ethwe"}
            (config / "resourceconfig.json").write_text(json.dumps(hosts))
            mounts = ["-v", f"{tmp_path / name}:/opt/ml", "-v", f"{base}/input/data:/opt/ml/input/data:ro"]
            started = docker("run", "-d", "--name", name, "--network", network, *mounts, image, "train")
            assert started.returncode == 0, started.stderr
        codes = [docker("wait", name).stdout.strip() for name in names]
        logs = [docker("logs", name).stdout for name in names]
        assert codes == ["0", "0"], logs
        assert "There is no network interface ethwe: that of the route is used." in logs[0]
        assert all(f"host={name}, completed 100.0 %" in log for name, log in zip(names, logs, strict=True))
        assert (tmp_path / "algo-1" / "model" / "model_algo_1-0000.params").is_file()
        assert not (tmp_path / "algo-2" / "model").exists()
    finally:
        docker("rm", "-f", *names)
        docker("network", "rm", network)


def test_both_variants_detect_the_same(base: Path, log: str) -> None:
    """On one artifact, within 1e-4."""
    photos = sorted((base / "input" / "data" / "validation").iterdir())[:5]
    answers = []
    for image in (CPU, GPU):
        with serving(base, image) as (_, url):
            answers.append([demo.post_image(url, photo.read_bytes())["prediction"] for photo in photos])
    for one, other in zip(*answers, strict=True):
        assert len(one) > 0
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_weights_are_asked_for_in_vain(base: Path, image: str) -> None:
    """Built with PRETRAINED=0."""
    config = base / "with-weights"
    config.mkdir(exist_ok=True)
    (config / "hyperparameters.json").write_text(json.dumps(SMALL | {"use_pretrained_model": "1"}))
    mounts = ["-v", f"{base}/input/data:/opt/ml/input/data:ro", "-v", f"{config}:/opt/ml/input/config:ro"]
    done = docker("run", "--rm", "--network", "none", *mounts, image, "train")
    assert done.returncode == 2
    assert done.stderr == (
        "ClientError: use_pretrained_model is 1, but there are no weights of resnet-18 in this image (/opt/ssd-algo/"
        "pretrained/resnet-18.params); build the image with PRETRAINED=1, or give a .params or .safetensors file in a "
        "channel named pretrained, or set use_pretrained_model to 0.\n"
    )


# Where NVIDIA's runtime puts the driver, and where SageMaker does.
@pytest.mark.parametrize("place", ["/usr/lib/x86_64-linux-gnu", "/usr/local/nvidia/lib64"])
def test_a_driver_of_the_host_is_not_hidden(base: Path, tmp_path: Path, place: str) -> None:
    write_driver(tmp_path / "driver" / "libcuda.so.1", "Tesla K80", (3, 7), 1)
    driver = f"{tmp_path}/driver/libcuda.so.1:{place}/libcuda.so.1:ro"
    config = f"{base}/input/config:/opt/ml/input/config:ro"
    done = docker("run", "--rm", "-v", config, "-v", driver, GPU, "train")
    assert done.returncode == 2
    assert done.stderr.startswith("ClientError: The GPU Tesla K80 has compute capability 3.7, for which MXNet's CUDA ")


def test_what_is_not_in_the_image(image: str) -> None:
    """No compiler, no cache, no access to anything; nothing below /opt/ml, which the platform mounts."""
    script = """
        for each in gcc cc g++ c++ cpp clang ld as ar make nvcc; do command -v $each; done
        find / -xdev \\( -name cc1 -o -name cc1plus -o -path "/usr/include/*.h" \\)
        ls -d /opt/ml /root/.cache /root/.config /root/.netrc /root/.ssh /root/.aws /root/.docker /root/intel
        ls -d /tmp/* /var/tmp/* /var/lib/apt/lists/* /var/cache/apt/*
        cd /usr/local/lib/python3.11/site-packages
        ls -d openvino_telemetry cv2/qt pandas
        find mxnet ssd_algo openvino cv2 -name "*.pyc"
    """
    done = docker("run", "--rm", image, "sh", "-c", script)
    assert done.stdout == ""


def test_no_secret_is_in_the_image(image: str) -> None:
    """Neither in a layer's command nor in the environment, nor in pip's configuration."""
    history = docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image).stdout
    config = docker("inspect", "-f", "{{json .Config}}", image).stdout
    pip = docker("run", "--rm", image, "pip", "config", "list").stdout
    assert "pip install" in history
    assert "gcc" not in history
    assert SECRET.findall(history + config + pip) == []


def test_size(image: str) -> None:
    size = int(docker("inspect", "-f", "{{.Size}}", image).stdout)
    assert size < (5.7e9 if image == GPU else 1.4e9)


def test_platforms_give_the_image_their_gpus(image: str) -> None:
    variables = json.loads(docker("inspect", "-f", "{{json .Config.Env}}", image).stdout)
    assert "NVIDIA_VISIBLE_DEVICES=all" in variables
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in variables
