"""The image, driven by a client of the platform: what the tests of both lines of the SDK and of the notebooks share."""

import ast
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import local
import loopback
import pytest

ROOT = Path(__file__).parents[2]
IMAGE = os.environ["SSD_ALGO_IMAGE"]

# A network and a budget that a test can wait for.
SMALL = {
    "num_classes": "3",
    "num_training_samples": "40",
    "base_network": "resnet-18",
    "use_pretrained_model": "0",
    "image_shape": "128",
    "mini_batch_size": "8",
    "learning_rate": "0.005",
    "epochs": "1",
    "export_int8": "0",
}
CHANNELS = ("train", "validation", "train_annotation", "validation_annotation")

for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "AWS_DEFAULT_REGION": "us-east-1"}
loopback.guard()


@pytest.fixture(autouse=True)
def _nothing_else_is_reached() -> Iterator[None]:
    yield
    assert loopback.refused == []


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn photos with annotations, as four channels, and the same packed: `packed/train`, `packed/validation`."""
    data = tmp_path_factory.mktemp("photos") / "data"
    local.draw_photos(data, IMAGE, 40, 10)
    for channel in ("train", "validation"):
        (data / "packed" / channel).mkdir(parents=True)
        folders = (f"/data/{channel}", f"/data/{channel}_annotation")
        local.run_over(data, IMAGE, "ssd-algo", "pack", *folders, f"/data/packed/{channel}/{channel}.rec")
    return data


def readme_metrics() -> dict[str, str]:
    """The metric definitions of the README: an expression for each metric."""
    text = (ROOT / "README.md").read_text()
    found = re.search(r"metric_definitions = (\[.+?^ *\])$", text, re.DOTALL | re.MULTILINE)
    assert found
    return {each["Name"]: each["Regex"] for each in ast.literal_eval(found[1])}


def values(log: str) -> dict[str, list[float]]:
    """What the README's expressions find in a log."""
    return {name: [float(value) for value in re.findall(regex, log)] for name, regex in readme_metrics().items()}


def assert_metrics(log: str) -> None:
    """All five metrics of a job of one epoch are there, once each."""
    found = values(log)
    assert all(len(each) == 1 for each in found.values()), found
    assert found["train:progress"] == [100]
    assert found["train:throughput"][0] > 0
    assert 0 <= found["validation:mAP"][0] <= 1


def archived(archive: Path, name: str) -> str:
    """The text of a file in a .tar.gz."""
    with tarfile.open(archive) as opened:
        file = opened.extractfile(name)
        assert file is not None
        return file.read().decode()


def archive_names(archive: Path) -> set[str]:
    with tarfile.open(archive) as opened:
        return set(opened.getnames())


MODEL = {
    "hyperparams.json",
    "classes.json",
    "model_algo_1-0000.params",
    "model_algo_1-symbol.json",
    "model_algo_1.onnx",
}
