"""Scoring and saving beside the next epoch, and what the log says of the time that they take."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from conftest import read_images

from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.loader import Loader
from ssd_algo.inference.predictor import Predictor
from ssd_algo.model.network import build_network, constants, initial_parameters
from ssd_algo.training import validation
from ssd_algo.training.peers import Peers
from ssd_algo.training.stopping import Stop, Stopped
from ssd_algo.training.trainer import EpochResult, Trainer

HYPERPARAMETERS = Hyperparameters.parse(
    {"num_classes": "3", "num_training_samples": "8", "base_network": "resnet-18", "image_shape": "128"}
)
RESULT = EpochResult(1.0, 1.0, 1, 8, 1.0)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    network = build_network("resnet-18", 128, 3)
    values = initial_parameters(network, 128, np.random.default_rng(0)) | constants(network)
    return Trainer(network, values, HYPERPARAMETERS, [mx.cpu()], 1, Peers.alone())


@contextmanager
def validating(
    shapes: Path, trainer: Trainer, save: Callable[[Any], Path], stop: Stop
) -> Iterator[validation.Validation]:
    dataset = read_images(shapes, "validation")
    anchors = trainer.values()["anchors"][0]
    predictors = {kind: Predictor(each, anchors, 128, 0.45, 400) for kind, each in trainer.engines().items()}
    with (
        Loader(dataset.samples, 128, 8, 1, 0, augmented=False, shuffled=False) as loader,
        validation.Validation(
            HYPERPARAMETERS, {}, dataset, loader, predictors, save, lambda metrics: Path(), stop, Peers.alone()
        ) as made,
    ):
        yield made


def test_training_goes_on_while_the_model_is_scored_and_saved(shapes: Path, trainer: Trainer) -> None:
    let, saved = threading.Event(), []

    def save(values: Any) -> Path:
        assert let.wait(60)
        saved.append(values)
        return Path("model")

    with validating(shapes, trainer, save, Stop()) as made:
        made.close_epoch(0, RESULT, trainer, True, 0.0)
        assert not saved  # and here the next epoch would be trained
        let.set()
        assert len(made.finish()) == 1
        assert len(saved) == 1
        assert made.best() == (made.finish()[0], 0)


def test_waiting_for_the_score_counts_as_validation(
    shapes: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a clock that stands still but for the ten seconds that saving takes while who may stop waits for it."""
    now, waiting, let = [0.0], False, threading.Event()

    def clock() -> float:
        if waiting:
            let.set()
        return now[0]

    def save(values: Any) -> Path:
        assert let.wait(60)
        now[0] += 10
        return Path("model")

    monkeypatch.setattr(validation, "time", SimpleNamespace(time=clock))
    caplog.set_level("INFO")
    with validating(shapes, trainer, save, Stop()) as made:
        now[0] = 30.0  # seconds of training
        made.close_epoch(0, RESULT, trainer, True, 0.0)
        waiting = True
        made.wait()
        now[0] += 5
        made.close_epoch(1, RESULT, trainer, True, 0.0)
        made.finish()
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Validation took")]
    assert lines == [
        "Validation took 0.0 % of the time since the one before.",
        # 10 of 15 seconds
        "Validation took 66.7 % of the time since the one before. A validate_every above 1 would leave more of it to "
        "training.",
    ]


def test_a_validation_ends_when_the_job_is_to_stop(shapes: Path, trainer: Trainer) -> None:
    stop = Stop()
    stop.requested = True
    with validating(shapes, trainer, lambda values: Path("model"), stop) as made:
        with pytest.raises(Stopped):
            made.close_epoch(0, RESULT, trainer, True, 0.0)
        assert made.best() is None
