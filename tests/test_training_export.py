"""What a training leaves for serving: networks made, scored as they are served, and kept or not."""

import json
import logging
import shutil
from pathlib import Path

import mxnet as mx
import pytest
from conftest import SMALL, Run, read_images

from ssd_algo.contract.container import Channel
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.inference import predictor
from ssd_algo.model import artifact
from ssd_algo.training import export as exporting
from ssd_algo.training.data import TrainingData
from ssd_algo.training.export import export
from ssd_algo.training.stopping import Stop

NETWORK, INT8 = "model_algo_1.onnx", "model_algo_1-int8.onnx"


def hyperparameters(export_int8: str) -> Hyperparameters:
    return Hyperparameters.parse(SMALL | {"export_int8": export_int8})


@pytest.fixture
def model(tmp_path: Path, trained: Run) -> Path:
    """A trained model without the networks."""
    shutil.copytree(trained.base / "model", tmp_path / "model", ignore=shutil.ignore_patterns("*.onnx"))
    return tmp_path / "model"


@pytest.fixture(scope="module")
def data(trained: Run) -> TrainingData:
    folder = trained.base / "input" / "data"
    return TrainingData(train=read_images(folder, "train"), validation=read_images(folder, "validation"))


def test_metrics_have_both_scores(trained: Run) -> None:
    metrics = json.loads((trained.base / "output" / "data" / "metrics.json").read_text())
    served = metrics["served"]
    assert served["images"] == 30
    assert served["float32"]["mAP"] == pytest.approx(metrics["best"]["mAP"], abs=1e-3)
    assert served["int8"]["mAP"] == pytest.approx(served["float32"]["mAP"], abs=0.05)
    assert served["int8"]["kept"] is True
    assert (
        f"int8 network: validation mAP {served['int8']['mAP']:.4f} on 30 images, float32 {served['float32']['mAP']:.4f}; "
        "it is kept (export_int8 1).\n" in trained.out
    )


def test_auto_keeps_what_loses_little(model: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "MOST_LOSS", 1.0)
    assert export(model, hyperparameters("auto"), data, Stop())["int8"]["kept"] is True
    assert (model / INT8).is_file()


def test_auto_leaves_out_what_loses_more(
    model: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporting, "MOST_LOSS", -1.0)
    with caplog.at_level(logging.INFO):
        served = export(model, hyperparameters("auto"), data, Stop())
    assert served["int8"]["kept"] is False
    assert caplog.messages[-1].endswith("; it is left out, as it loses more than -1.0 (export_int8 auto).")
    assert [path.name for path in model.glob("*.onnx")] == [NETWORK]


def test_without_int8(model: Path, data: TrainingData) -> None:
    assert export(model, hyperparameters("0"), data, Stop()) == {}
    assert [path.name for path in model.glob("*.onnx")] == [NETWORK]


def test_a_stopped_job_has_no_time_for_int8(model: Path, data: TrainingData, caplog: pytest.LogCaptureFixture) -> None:
    stop = Stop()
    stop.requested = True
    assert export(model, hyperparameters("1"), data, stop) == {}
    assert caplog.messages == ["The job is to stop: there is no int8 network."]
    assert list(model.glob("*.onnx")) == []


def test_a_stream_is_calibrated_on_the_validation_images(model: Path, data: TrainingData) -> None:
    piped = TrainingData(validation=data.validation, piped=Channel("train", "s3://bucket/train"))
    assert export(model, hyperparameters("1"), piped, Stop())["images"] == 30


def test_a_failure_costs_the_export_only(model: Path, data: TrainingData, caplog: pytest.LogCaptureFixture) -> None:
    symbol = model / "model_algo_1-symbol.json"
    symbol.write_text(symbol.read_text().replace('"op": "Activation"', '"op": "Custom"'))
    assert export(model, hyperparameters("1"), data, Stop()) == {}
    assert caplog.messages == [
        f"A network for serving cannot be made ({symbol} is damaged or was written by neither this image's training nor the built-in's.); "
        "the model itself is whole."
    ]


def test_a_network_that_onnx_cannot_hold(model: Path, data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Served by MXNet then, with the same detections."""
    square = predictor.load(model).prepare(data.validation.samples[0].encoded()).square[None]
    (expected,) = predictor.load(model).detect(square)
    monkeypatch.setattr(artifact, "MOST_BYTES_OF_A_NETWORK", 1000)
    assert export(model, hyperparameters("1"), data, Stop()) == {}
    assert list(model.glob("*.onnx")) == []
    (found,) = predictor.load(model).detect(square)
    assert found.scores == pytest.approx(expected.scores, abs=1e-3)
    assert found.boxes == pytest.approx(expected.boxes, abs=1e-3)


def test_a_new_model_takes_the_networks_of_the_former_away(trained: Run, tmp_path: Path) -> None:
    shutil.copytree(trained.base / "model", tmp_path / "model")
    directory = tmp_path / "model"
    described = artifact.describe(directory)
    symbol = mx.sym.load(str(directory / "model_algo_1-symbol.json"))
    parameters = artifact.load_parameters(directory)
    artifact.save(directory, symbol, parameters, described.hyperparameters, described.class_names)
    assert list(directory.glob("*.onnx")) == []
    assert (directory / "model_algo_1-0000.params").is_file()
