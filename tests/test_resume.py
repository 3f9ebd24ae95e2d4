"""Trainings that are killed, stopped and restarted, through the front door.

SSD_ALGO_INTERRUPTIONS is how many of each kind there are: few here, all of them in benchmarks/interruptions.py.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from conftest import SMALL, TRAIN, Run, assert_refused, environment, read_until, run_train, train, write_config

from ssd_algo import demo
from ssd_algo.inference import predictor
from ssd_algo.training import checkpoint

INTERRUPTIONS = int(os.environ.get("SSD_ALGO_INTERRUPTIONS", "3"))

# Recipe modern, so that there is an average too; a checkpoint after each of the 3 steps of an epoch, and enough of them
# to be interrupted so often: each time up to two epochs after training has gone on.
EPOCHS = max(3, INTERRUPTIONS)
HYPERPARAMETERS = {name: value for name, value in SMALL.items() if name != "learning_rate"}
HYPERPARAMETERS |= {"num_training_samples": "24", "epochs": str(EPOCHS), "checkpoint_minutes": "0.0001"}


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


def interrupted(base: Path, line: str, seconds: float, number: int, whole_group: bool = False) -> tuple[int, str]:
    """Train, and send a signal so long after the log has a line; returns exit code and log of all processes.

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
        out = read_until(process.stdout, line)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            (os.killpg if whole_group else os.kill)(process.pid, number)
        out += process.stdout.read()
        return process.wait(60), out


def forget(base: Path) -> None:
    """What a new instance, which gets the checkpoints alone, does not have."""
    for name in ("model", "output"):
        shutil.rmtree(base / name, ignore_errors=True)


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


BEGINS = '"Meta": "init_train_data_iter"'


def seconds_an_epoch(whole: Whole) -> float:
    """Of the whole training, its validation included."""
    metrics = json.loads((whole.run.base / "output" / "data" / "metrics.json").read_text())
    return float(np.mean([each["seconds"] + each["validation_seconds"] for each in metrics["epochs"]]))


def test_killed_at_random_instants_it_ends_with_the_same_bits(whole: Whole, tmp_path: Path, data: Path) -> None:
    """While it trains, validates and saves; every second time on a new instance."""
    base = folder(tmp_path / "base", data)
    generator = np.random.default_rng(2)
    kills = 0
    for attempt in range(2 * INTERRUPTIONS):
        seconds = float(generator.uniform(0, 2)) * seconds_an_epoch(whole)
        code, out = interrupted(base, BEGINS, seconds, signal.SIGKILL)
        assert code in (0, -signal.SIGKILL), out
        assert_all_whole(base)
        kills += code == -signal.SIGKILL
        if kills == INTERRUPTIONS:
            break
        if attempt % 2:
            forget(base)
    assert kills == INTERRUPTIONS
    run = run_train(base)
    assert run.code == 0, run.err
    assert_same(base, whole.run.base)


def test_stopped_at_random_instants(whole: Whole, tmp_path: Path, data: Path) -> None:
    """Exit code 0, and after the first step of all a model, always on a new instance; then it ends with the same bits.

    In turns anywhere from the first line of the log on, and while it trains, validates and saves.
    """
    base = folder(tmp_path / "base", data)
    generator = np.random.default_rng(1)
    for attempt in range(INTERRUPTIONS):
        forget(base)
        if attempt % 2:
            line, seconds = "Docker entrypoint", float(generator.uniform(0, 8))
        else:
            line, seconds = BEGINS, float(generator.uniform(0, 2)) * seconds_an_epoch(whole)
        code, out = interrupted(base, line, seconds, signal.SIGTERM, whole_group=attempt % 4 == 0)
        assert code == 0, out
        assert "Traceback" not in out
        assert_all_whole(base)
        if "before the first step: there is no model" in out:
            assert not checkpoint.numbered(base / "checkpoints")
            assert not (base / "model").exists()
        else:
            assert (base / "output" / "model.tar.gz").exists(), out
    run = run_train(base)
    assert run.code == 0, run.err
    assert_same(base, whole.run.base)


@pytest.mark.parametrize("line", ["Validation took", "Updating the best model", "epoch=0, batch=3 train cross_entropy"])
def test_all_processes_are_stopped_while_it_validates_or_saves(tmp_path: Path, data: Path, line: str) -> None:
    base = folder(tmp_path / "base", data)
    code, out = interrupted(base, line, 0, signal.SIGTERM, whole_group=True)
    assert code == 0, out
    assert "Stopped by SIGTERM" in out
    predictor.load(base / "model")
    assert not (base / "output" / "failure").exists()


def test_a_new_instance_goes_on_from_the_end_of_the_first_epoch(whole: Whole, tmp_path: Path, data: Path) -> None:
    """The checkpoint there has no score and no model yet."""
    for attempt in range(5):  # until the signal comes before the next epoch's first step
        base = folder(tmp_path / str(attempt), data)
        code, out = interrupted(base, "epoch=0, batch=3 train cross_entropy", 0, signal.SIGTERM)
        assert code == 0, out
        so_far = checkpoint.load(checkpoint.numbered(base / "checkpoints")[0]).state["trainer"]["so_far"][0]
        if (so_far["epoch"], so_far["batches"]) == (0, 3):
            break
    forget(base)
    run = run_train(base)
    assert run.code == 0, run.err
    assert "Training goes on in epoch 0 after batch 3." in run.out
    assert_same(base, whole.run.base)


def test_an_epoch_of_one_step_has_its_checkpoint(tmp_path: Path, data: Path) -> None:
    base = folder(tmp_path / "base", data)
    run = train(base, HYPERPARAMETERS | {"mini_batch_size": "24", "epochs": "2", "checkpoint_minutes": "10"})
    assert run.code == 0, run.err
    assert [path.name for path in checkpoint.numbered(base / "checkpoints")] == [
        "checkpoint-00000001.safetensors",
        "checkpoint-00000000.safetensors",
    ]


def stop_at(base: Path, line: str, signals: int = 1) -> tuple[int, str]:
    """Train until a line of the log has these words, then SIGTERM; exit code and the log."""
    with subprocess.Popen(
        TRAIN, env=environment(base), stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        out = read_until(process.stdout, line)
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
    assert (
        "There was no validation whose detections are at hand" in (base / "output" / "data" / "report.html").read_text()
    )


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
    assert f"The report of the training is in {base / 'output' / 'data' / 'report.html'}\n" in out
    assert metrics["evaluation"]["mAP"] == metrics["best"]["mAP"]


def copied(whole: Whole, tmp_path: Path, data: Path) -> Path:
    """A folder with the last checkpoints of the whole training, and no model."""
    base = folder(tmp_path / "base", data)
    for path in (whole.run.base / "checkpoints").iterdir():
        (base / "checkpoints" / path.name).write_bytes(path.read_bytes())
    return base


def test_other_hyperparameters_are_taken(whole: Whole, tmp_path: Path, data: Path) -> None:
    """More epochs, and another optimizer, which starts anew."""
    base = copied(whole, tmp_path, data)
    run = train(base, HYPERPARAMETERS | {"epochs": str(EPOCHS + 1), "optimizer": "adam", "recipe": "modern"})
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
    assert "The batches are others than the checkpoint's: training goes on at the start of an epoch." in run.out
    assert "Training goes on in epoch 2 after batch 2." in run.out  # of 2: the epoch had ended, its validation follows
    assert re.findall(r"epoch=(\d), validation mAP", run.out) == ["2", "3"]


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
