"""Trainings that are killed, stopped and restarted, through the front door.

SSD_ALGO_INTERRUPTIONS is how many of each kind there are: few here, all of them in benchmarks/interruptions.py.
"""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from conftest import SMALL, TRAIN, Run, assert_refused, environment, run_train, train, write_config

from ssd_algo import demo
from ssd_algo.inference import predictor
from ssd_algo.training import checkpoint

INTERRUPTIONS = int(os.environ.get("SSD_ALGO_INTERRUPTIONS", "3"))

# Recipe modern, so that there is an average too; a checkpoint after each of the 3 steps of an epoch.
HYPERPARAMETERS = {name: value for name, value in SMALL.items() if name != "learning_rate"}
HYPERPARAMETERS |= {"num_training_samples": "24", "epochs": "3", "checkpoint_minutes": "0.0001"}


@dataclass(frozen=True)
class Whole:
    """A training that nothing interrupted, and how long it took."""

    run: Run
    seconds: float


def folder(base: Path, data: Path) -> Path:
    """A base folder with a folder for checkpoints."""
    (base / "input").mkdir(parents=True)
    (base / "input" / "data").symlink_to(data)
    (base / "checkpoints").mkdir()
    write_config(base, "hyperparameters", HYPERPARAMETERS)
    return base


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    channels = tmp_path_factory.mktemp("few")
    demo.write_channels(channels, 24, 4, np.random.default_rng(0))
    return channels


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Whole:
    started = time.monotonic()
    run = run_train(folder(tmp_path_factory.mktemp("whole") / "base", data))
    assert run.code == 0, run.err
    return Whole(run, time.monotonic() - started)


def interrupted(base: Path, seconds: float, number: int) -> tuple[int, str]:
    """Train, and send a signal so long after the first line of the log; returns exit code and log of all processes.

    Reading ends when the last process that holds the pipe has: no helper process is left.
    """
    with subprocess.Popen(
        TRAIN,
        env=environment(base),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            out, _ = process.communicate(timeout=60)
    return process.returncode, first + out


def assert_all_whole(base: Path) -> None:
    """Whatever files there are can be read."""
    for path in checkpoint.numbered(base / "checkpoints"):
        checkpoint.load(path)
    if (base / "model" / "model_algo_1-0000.params").exists():
        predictor.load(base / "model")


def parameters(base: Path) -> dict[str, Any]:
    arrays = mx.nd.load(str(base / "model" / "model_algo_1-0000.params"))
    return {name: array.asnumpy() for name, array in arrays.items()}


def history(base: Path) -> list[dict[str, Any]]:
    epochs = json.loads((base / "output" / "data" / "metrics.json").read_text())["epochs"]
    return [{name: value for name, value in each.items() if "seconds" not in name} for each in epochs]


def assert_same(one: Path, two: Path) -> None:
    """The same models, epochs and last checkpoints, to the bit."""
    ours, theirs = parameters(one), parameters(two)
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert history(one) == history(two)
    last = [checkpoint.load(checkpoint.numbered(base / "checkpoints")[0]).arrays for base in (one, two)]
    assert last[0].keys() == last[1].keys()
    assert all((last[0][name] == last[1][name]).all() for name in last[0])


def test_killed_at_random_instants_it_ends_with_the_same_bits(whole: Whole, tmp_path: Path, data: Path) -> None:
    base = folder(tmp_path / "base", data)
    generator = np.random.default_rng(len(TRAIN))
    for _ in range(INTERRUPTIONS):
        interrupted(base, float(generator.uniform(0.2, 0.8)) * whole.seconds, signal.SIGKILL)
        assert_all_whole(base)
    run = run_train(base)
    assert run.code == 0, run.err
    assert_same(base, whole.run.base)


def test_stopped_at_random_instants(whole: Whole, tmp_path: Path, data: Path) -> None:
    """Exit code 0, and after the first step a model; then it goes on to the same end."""
    base = folder(tmp_path / "base", data)
    generator = np.random.default_rng(1)
    for _ in range(INTERRUPTIONS):
        code, out = interrupted(base, float(generator.uniform(0, 0.8)) * whole.seconds, signal.SIGTERM)
        assert code == 0, out
        assert "Traceback" not in out
        assert_all_whole(base)
        assert "before the first step: there is no model" in out or (base / "output" / "model.tar.gz").exists()
    run = run_train(base)
    assert run.code == 0, run.err
    assert_same(base, whole.run.base)


def stop_at(base: Path, line: str, signals: int = 1) -> tuple[int, str]:
    """Train until a line of the log has these words, then SIGTERM; exit code and the log."""
    out = ""
    with subprocess.Popen(
        TRAIN, env=environment(base), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for each in process.stdout:
            out += each
            if line in each:
                break
        for _ in range(signals):
            process.terminate()
        out += process.stdout.read()
        code = process.wait(60)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return code, out


def test_stopped_in_set_up(base: Path) -> None:
    write_config(base, "hyperparameters", SMALL)
    code, out = stop_at(base, "Final configuration")
    assert code == 0
    assert re.search(r"WARNING \d+\] Stopped by SIGTERM before the first step: there is no model\.$", out, re.MULTILINE)
    assert not (base / "model").exists()


def test_stopped_twice_before_the_first_validation(base: Path) -> None:
    """Without a folder for checkpoints: the model has the weights as they are."""
    write_config(base, "hyperparameters", SMALL | {"epochs": "1000"})
    code, out = stop_at(base, "The weights after the first step are in", signals=2)
    assert code == 0
    assert "Checkpoint loading and saving are disabled." in out
    last = re.search(
        r"Stopped by SIGTERM in epoch 0 after batch (\d); the model is the weights as they are, as there was no validation "
        r"yet\.$",
        out.rstrip(),
    )
    assert last is not None, out
    assert 1 <= int(last[1]) <= 5
    assert not (base / "checkpoints").exists()
    predictor.load(base / "model")


def test_stopped_after_a_validation(base: Path) -> None:
    write_config(base, "hyperparameters", SMALL | {"epochs": "1000"})
    code, out = stop_at(base, "Updating the best model")
    assert code == 0
    last = re.search(
        r"Stopped by SIGTERM in epoch \d+ after batch \d; the model is the best so far: validation mAP (\d\.\d{4}) at "
        r"epoch (\d+)\.$",
        out.rstrip(),
    )
    assert last is not None, out
    metrics = json.loads((base / "output" / "data" / "metrics.json").read_text())
    assert (f"{metrics['best']['mAP']:.4f}", str(metrics["best"]["epoch"])) == last.groups()


def copied(whole: Whole, tmp_path: Path, data: Path) -> Path:
    """A folder with the last checkpoints of the whole training, and no model."""
    base = folder(tmp_path / "base", data)
    for path in (whole.run.base / "checkpoints").iterdir():
        (base / "checkpoints" / path.name).write_bytes(path.read_bytes())
    return base


def test_other_hyperparameters_are_taken(whole: Whole, tmp_path: Path, data: Path) -> None:
    """More epochs, and another optimizer, which starts anew."""
    base = copied(whole, tmp_path, data)
    run = train(base, HYPERPARAMETERS | {"epochs": "4", "optimizer": "adam", "recipe": "modern"})
    assert run.code == 0, run.err
    assert (
        "Training goes on with other hyperparameters than the checkpoint's: epochs 4 (was 3), learning_rate 0.001 (was "
        "0.005), optimizer adam (was sgd)." in run.out
    )
    assert "Training goes on in epoch 2 after batch 3." in run.out
    assert re.findall(r"epoch=(\d), validation mAP", run.out) == ["2", "3"]
    assert [each["epoch"] for each in history(base)] == [0, 1, 2, 3]
    assert history(base)[:2] == history(whole.run.base)[:2]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"base_network": "resnet-34"},
            "The checkpoint has base_network resnet-18, but the hyperparameter base_network is resnet-34; give the "
            "checkpoint's value, or an empty folder for checkpoints.",
        ),
        (
            {"image_shape": "160"},
            "The checkpoint has image_shape 128, but the hyperparameter image_shape is 160; give the checkpoint's value, or "
            "an empty folder for checkpoints.",
        ),
    ],
)
def test_another_network_is_refused(
    whole: Whole, tmp_path: Path, data: Path, changed: dict[str, str], sentence: str
) -> None:
    base = copied(whole, tmp_path, data)
    assert_refused(train(base, HYPERPARAMETERS | changed), sentence)
    assert len(checkpoint.numbered(base / "checkpoints")) == 2


def test_a_damaged_checkpoint_costs_what_came_after_the_one_before(whole: Whole, tmp_path: Path, data: Path) -> None:
    base = copied(whole, tmp_path, data)
    newest, before = checkpoint.numbered(base / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-1000])
    run = run_train(base)
    assert run.code == 0, run.err
    assert re.search(rf"WARNING \d+\] {newest} is damaged \(.*\); the checkpoint before it is used", run.out)
    assert f'Loaded checkpoint from "{before}".' in run.out
    assert_same(base, whole.run.base)


def test_other_batches_begin_an_epoch(whole: Whole, tmp_path: Path, data: Path) -> None:
    base = copied(whole, tmp_path, data)
    run = train(base, HYPERPARAMETERS | {"mini_batch_size": "12", "epochs": "4"})
    assert run.code == 0, run.err
    assert (
        "The batches are others than the checkpoint's (24 training images, then 24): training goes on at the start of an "
        "epoch." in run.out
    )
    assert "Training goes on in epoch 3 after batch 0." in run.out


def test_the_configured_folder_is_used(tmp_path: Path, data: Path) -> None:
    """Below /opt/ml in the base folder, elsewhere as it stands; made when it is not there."""
    for local, place in (("/opt/ml/elsewhere", tmp_path / "base" / "elsewhere"), (str(tmp_path / "x"), tmp_path / "x")):
        base = tmp_path / "base"
        if not base.exists():
            folder(base, data)
        write_config(base, "checkpointconfig", {"S3Uri": "s3://bucket/prefix", "LocalPath": local})
        run = train(base, HYPERPARAMETERS | {"epochs": "1"})
        assert run.code == 0, run.err
        assert f"Checkpoints are kept in {place}." in run.out
        assert len(checkpoint.numbered(place)) == 2
    assert checkpoint.numbered(tmp_path / "base" / "checkpoints") == []
