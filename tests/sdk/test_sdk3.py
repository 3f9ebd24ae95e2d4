"""The image as the SageMaker Python SDK 3.x drives it: a training in a local container."""

import contextlib
import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import local
import pytest
from conftest import CHANNELS, IMAGE, MODEL, SMALL, archive_names, assert_metrics
from sagemaker.core.local.local_session import LocalSession
from sagemaker.train.configs import Compute, InputData
from sagemaker.train.model_trainer import Mode, ModelTrainer


@pytest.fixture
def image(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The image with `train` as its command, which ModelTrainer does not say to a container; the platform does."""
    monkeypatch.setenv("SAGEMAKER_USER_CONFIG_OVERRIDE", str(Path(__file__).with_name("sdk3_defaults.yaml")))
    name = f"{IMAGE}-train"
    docker("build", "-q", "-t", name, "-", dockerfile=f'FROM {IMAGE}\nCMD ["train"]\n')
    yield name
    docker("rmi", name)


def docker(*arguments: str, dockerfile: str = "") -> None:
    done = subprocess.run(["docker", *arguments], input=dockerfile, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_training(image: str, data: Path, tmp_path: Path) -> None:
    trainer = ModelTrainer(
        training_image=image,
        training_mode=Mode.LOCAL_CONTAINER,
        compute=Compute(instance_type="local", instance_count=1),
        hyperparameters=SMALL,
        role="arn:aws:iam::000000000000:role/local",
        local_container_root=str(tmp_path),
        sagemaker_session=LocalSession(),
    )
    channels = [
        InputData(channel_name=name, data_source=str(data / name), content_type="image/jpeg") for name in CHANNELS
    ]
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        trainer.train(channels)
    assert local.remove_containers(tmp_path) == [0]
    assert_metrics(log.getvalue())
    archives = tmp_path / "compressed_artifacts"
    assert archive_names(archives / "model.tar.gz") == MODEL
    assert "data/metrics.json" in archive_names(archives / "output.tar.gz")
