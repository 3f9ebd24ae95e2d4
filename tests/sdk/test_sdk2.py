"""The image as the SageMaker Python SDK 2.x drives it: local mode, where a job's hosts are containers here."""

import contextlib
import io
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import local
import pytest
from conftest import CHANNELS, IMAGE, MODEL, SMALL, archive_names, archived, assert_metrics, readme_metrics, values
from PIL import Image
from sagemaker.deserializers import JSONDeserializer
from sagemaker.estimator import Estimator
from sagemaker.inputs import TrainingInput
from sagemaker.local import LocalSession
from sagemaker.predictor import Predictor
from sagemaker.serializers import IdentitySerializer


@dataclass(frozen=True)
class Job:
    """A finished training: its estimator, log, the SDK's error, exit codes of the containers, folder of the archives."""

    estimator: Estimator
    log: str
    error: str
    exit_codes: list[int]
    output: Path


@dataclass(frozen=True)
class Platform:
    """Local mode with its files below a folder of its own."""

    folder: Path
    session: LocalSession

    def fit(self, name: str, inputs: dict[str, TrainingInput], instances: int = 1, **settings: Any) -> Job:
        """Train with SMALL and these hyperparameters; `model_uri` and `model_channel_name` go to the estimator."""
        model = {key: settings.pop(key) for key in ("model_uri", "model_channel_name") if key in settings}
        output = self.folder / name
        output.mkdir()
        estimator = Estimator(
            image_uri=IMAGE,
            role=local.ROLE,
            instance_count=instances,
            instance_type="local",
            output_path=f"file://{output}",
            hyperparameters=SMALL | settings,
            metric_definitions=local.METRIC_DEFINITIONS,
            sagemaker_session=self.session,
            **model,
        )
        log, error = io.StringIO(), ""
        with contextlib.redirect_stdout(log):
            try:
                estimator.fit(inputs)
            except RuntimeError as raised:
                error = str(raised)
        return Job(estimator, log.getvalue(), error, local.remove_containers(self.folder), output)


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Platform:
    folder = tmp_path_factory.mktemp("platform")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Platform(folder, local.session(folder, port))


@pytest.fixture(scope="session")
def images(data: Path) -> dict[str, TrainingInput]:
    return {name: TrainingInput(f"file://{data / name}", content_type="image/jpeg") for name in CHANNELS}


@pytest.fixture(scope="session")
def trained(platform: Platform, images: dict[str, TrainingInput]) -> Job:
    return platform.fit("images", images)


@pytest.fixture(scope="module")
def predictor(platform: Platform, trained: Job) -> Iterator[Predictor]:
    """An endpoint over the trained model."""
    predictor = trained.estimator.deploy(
        initial_instance_count=1,
        instance_type="local",
        serializer=IdentitySerializer("application/x-image"),
        deserializer=JSONDeserializer(),
        wait=False,  # local mode waits for /ping itself, and would sleep for 30 s more
    )
    yield predictor
    predictor.delete_endpoint()
    local.remove_containers(platform.folder)


def test_the_examples_have_the_expressions_of_the_readme() -> None:
    assert {each["Name"]: each["Regex"] for each in local.METRIC_DEFINITIONS} == readme_metrics()


def test_images(trained: Job) -> None:
    assert (trained.error, trained.exit_codes) == ("", [0])
    assert_metrics(trained.log)
    assert archive_names(trained.output / "model.tar.gz") == MODEL
    assert {"data/report.html", "data/metrics.json", "data/data_check.json"} < archive_names(
        trained.output / "output.tar.gz"
    )


def test_records(platform: Platform, data: Path) -> None:
    """Packed by `ssd-algo pack` in the image; class names come along."""
    folders = {name: f"file://{data / 'packed' / name}" for name in ("train", "validation")}
    inputs = {name: TrainingInput(uri, content_type="application/x-recordio") for name, uri in folders.items()}
    job = platform.fit("records", inputs)
    assert (job.error, job.exit_codes) == ("", [0])
    assert_metrics(job.log)
    assert archive_names(job.output / "model.tar.gz") == MODEL


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/png"])
def test_endpoint(predictor: Predictor, data: Path, content_type: str) -> None:
    photo = data / "validation" / "validation-0000.jpg"
    body = io.BytesIO()
    Image.open(photo).save(body, content_type.removeprefix("image/"))
    rows = predictor.predict(body.getvalue(), initial_args={"ContentType": content_type})["prediction"]
    assert len(rows) > 0
    assert [row[1] for row in rows] == sorted((row[1] for row in rows), reverse=True)
    for identity, score, left, top, right, bottom in rows:
        assert identity in (0, 1, 2)
        assert 0.01 <= score <= 1
        assert 0 <= left <= right <= 1
        assert 0 <= top <= bottom <= 1


def test_endpoint_in_pixels_with_names(predictor: Predictor, data: Path) -> None:
    photo = (data / "validation" / "validation-0000.jpg").read_bytes()
    answer = predictor.predict(photo, initial_args={"Accept": "application/json;annotation=1;names=1"})
    assert answer["image_size"] == [{"width": 200, "height": 160, "depth": 3}]
    assert answer["annotations"][0]["class_name"] in ("circle", "square", "triangle")


def test_endpoint_given_no_image(platform: Platform, predictor: Predictor) -> None:
    client = platform.session.sagemaker_runtime_client
    answer = client.invoke_endpoint(b"nothing", predictor.endpoint_name, ContentType="image/jpeg")["Body"]
    assert answer.status == 400
    sentence = (
        "The request's body is not an image: the 7 bytes are no image that can be decoded; "
        "send a JPEG or PNG file's bytes."
    )
    assert predictor.predict(b"nothing") == {"error": sentence}


def test_batch_transform(platform: Platform, trained: Job, data: Path) -> None:
    output = platform.folder / "transformed"
    transformer = trained.estimator.transformer(
        instance_count=1, instance_type="local", strategy="SingleRecord", output_path=f"file://{output}"
    )
    transformer.transform(f"file://{data / 'validation'}", content_type="application/x-image", logs=False)
    local.remove_containers(platform.folder)
    names = sorted(path.name for path in (data / "validation").iterdir())
    assert sorted(path.name for path in output.iterdir()) == [f"{name}.out" for name in names]
    for path in output.iterdir():
        assert re.match(r'\{"prediction": \[\[', path.read_text())


def test_two_instances(platform: Platform, images: dict[str, TrainingInput]) -> None:
    """Compose stops each host when the first one ends: the others wait for the chief."""
    job = platform.fit("two-instances", images, instances=2, kv_store="dist_sync", mini_batch_size="4")
    assert (job.error, job.exit_codes) == ("", [0, 0])
    assert job.log.count("Gradients of 2 hosts meet in KVStore dist_sync.") == 2
    found = values(job.log)
    assert found["train:progress"] == [100, 100]
    assert len(found["validation:mAP"]) == 1
    assert archive_names(job.output / "model.tar.gz") >= MODEL


def test_incremental_training(platform: Platform, trained: Job, images: dict[str, TrainingInput]) -> None:
    """The folder of the first job is the channel; local mode gives it no content type."""
    job = platform.fit(
        "incremental", images, model_uri=f"file://{trained.output}/model.tar.gz", model_channel_name="model"
    )
    assert (job.error, job.exit_codes) == ("", [0])
    assert "Training starts from the model of channel model." in job.log
    loss = "train:cross_entropy"
    assert values(job.log)[loss][0] < values(trained.log)[loss][0]


def test_failing_job(platform: Platform, images: dict[str, TrainingInput]) -> None:
    job = platform.fit("failing", images, epochs="many")
    assert job.error.endswith("Process exited with code: 2")
    assert job.exit_codes == [2]
    sentence = 'ClientError: hyperparameters: epochs is "many" and must be an integer from 1 to 1000000.'
    assert f" {sentence}\n" in job.log.replace("\r", "")
    assert archived(job.output / "output.tar.gz", "failure") == sentence


def test_stopped_job(platform: Platform, images: dict[str, TrainingInput]) -> None:
    """As when the platform stops a training job: SIGTERM, and after a while SIGKILL."""
    with ThreadPoolExecutor(1) as beside:
        stopped = beside.submit(stop_after_an_epoch, platform.folder)
        job = platform.fit("stopped", images, epochs="40")
        stopped.result()
    assert (job.error, job.exit_codes) == ("", [0])
    assert "Received SIGTERM: the job ends as soon as what is running has." in job.log
    assert re.search(r"Stopped by SIGTERM in epoch \d+ after batch \d; the model is ", job.log)
    # The ONNX file is made when a training ends by itself; a server makes it of a model that has none.
    assert archive_names(job.output / "model.tar.gz") == MODEL - {"model_algo_1.onnx"}


def stop_after_an_epoch(folder: Path) -> None:
    """Stop the one container of a job when it has trained for an epoch."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for container in local.containers(folder):
            log = subprocess.run(["docker", "logs", container["Id"]], capture_output=True, text=True).stdout
            if "train cross_entropy" in log:
                subprocess.run(["docker", "stop", "-t", "60", container["Id"]], check=True, capture_output=True)
                return
    raise TimeoutError("No job has trained for an epoch.")
