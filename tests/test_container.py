from pathlib import Path

import pytest
from conftest import write_config

from ssd_algo.contract.container import Channel, Container, Hosts
from ssd_algo.errors import UserError


def test_channels_of_the_configuration(tmp_path: Path) -> None:
    write_config(
        tmp_path,
        "inputdataconfig",
        {
            "train": {"ContentType": "Application/X-Image; v=1", "TrainingInputMode": "File"},
            "validation": {"TrainingInputMode": "Pipe"},
        },
    )
    data = tmp_path / "input" / "data"
    assert Container(tmp_path).channels() == {
        "train": Channel("train", str(data / "train"), "application/x-image"),
        "validation": Channel("validation", str(data / "validation"), "", "Pipe"),
    }


def test_without_a_configuration_the_folders_are_the_channels(tmp_path: Path) -> None:
    data = tmp_path / "input" / "data"
    (data / "train").mkdir(parents=True)
    (data / "model").mkdir()
    (data / "notes.txt").touch()
    assert sorted(Container(tmp_path).channels()) == ["model", "train"]
    assert Container(tmp_path / "nowhere").channels() == {}


def test_hosts(tmp_path: Path) -> None:
    assert Container(tmp_path).hosts() == Hosts("algo-1", ("algo-1",))
    write_config(tmp_path, "resourceconfig", {"current_host": "algo-2", "hosts": ["algo-2", "algo-1"]})
    assert Container(tmp_path).hosts() == Hosts("algo-2", ("algo-1", "algo-2"))
    write_config(tmp_path, "resourceconfig", {"current_host": "a", "hosts": ["a"], "network_interface_name": "eth0"})
    assert Container(tmp_path).hosts() == Hosts("a", ("a",), "eth0")


def test_hyperparameters_written_as_json_values_become_the_platforms_strings(tmp_path: Path) -> None:
    write_config(
        tmp_path, "hyperparameters", {"epochs": 3, "learning_rate": 0.01, "early_stopping": True, "optimizer": "sgd"}
    )
    assert Container(tmp_path).hyperparameters() == {
        "epochs": "3",
        "learning_rate": "0.01",
        "early_stopping": "True",
        "optimizer": "sgd",
    }


def test_missing_hyperparameters(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        Container(tmp_path).hyperparameters()
    assert str(caught.value) == (
        f"{tmp_path}/input/config/hyperparameters.json is missing; write the hyperparameters into it as a JSON object, "
        '{"num_classes": "2", "num_training_samples": "100", ...}.'
    )


def test_a_list_of_hyperparameters(tmp_path: Path) -> None:
    write_config(tmp_path, "hyperparameters", [1])
    with pytest.raises(UserError) as caught:
        Container(tmp_path).hyperparameters()
    path = tmp_path / "input" / "config" / "hyperparameters.json"
    assert str(caught.value) == f"{path} holds list, not a JSON object."
