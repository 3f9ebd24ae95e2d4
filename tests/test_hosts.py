"""Several hosts that train as one, through the front door: in step, disjoint, agreed, and never left hanging.

SSD_ALGO_KILLS is how many times a host is killed: few here, all in benchmarks/interruptions.py.
"""

import os
import random
import re
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, Run, read_images, train, write_config
from hosts import Host, hosts

from ssd_algo import demo
from ssd_algo.data.loader import Loader
from ssd_algo.evaluation.evaluate import compare, detect, score
from ssd_algo.inference import predictor
from ssd_algo.training import checkpoint

KILLS = int(os.environ.get("SSD_ALGO_KILLS", "3"))
LOST = (
    "AlgorithmError: Host {name} was lost: its connection ended. Start the job again; with a folder for "
    "checkpoints it goes on from the newest one."
)


def losses(out: str) -> list[float]:
    return [float(each) for each in re.findall(r"<loss>=\((\S+)\)", out)]


def scores(out: str) -> list[float]:
    return [float(each) for each in re.findall(r"<score>=\((\S+)\)", out)]


def complete(all_hosts: list[Host], **more: str) -> None:
    """Train to the end on all hosts."""
    for host in all_hosts:
        host.start(**more)
    codes = [host.end() for host in all_hosts]
    assert codes == [0] * len(codes), all_hosts[0].out


def test_two_hosts_of_two_devices_train_as_one(tmp_path: Path, shapes: Path, trained: Run) -> None:
    """30 steps of 8 images on one host, of 4 on each of two, with frozen BatchNorm statistics.

    From a trained model on and at a low rate: else every step multiplies what rounding leaves.
    """
    data = tmp_path / "data"
    (data / "model").mkdir(parents=True)
    (data / "model" / "model.tar.gz").symlink_to(trained.base / "output" / "model.tar.gz")
    for channel in shapes.iterdir():
        (data / channel.name).symlink_to(channel)
    given = SMALL | {"freeze_layer_pattern": ".*bn.*", "learning_rate": "0.0001", "epochs": "6", "validate_every": "6"}
    one = tmp_path / "one"
    (one / "input").mkdir(parents=True)
    (one / "input" / "data").symlink_to(data)
    alone = train(one, given)
    assert alone.code == 0, alone.err
    with hosts(tmp_path, data, given | {"mini_batch_size": "4", "devices": "cpu:2"}, 2) as pair:
        complete(pair)
        assert "Gradients of 2 hosts meet in KVStore dist_sync." in pair[0].out
        for host in pair:
            assert losses(host.out) == pytest.approx(losses(alone.out), rel=5e-6)
        assert scores(pair[0].out) == pytest.approx(scores(alone.out), abs=1e-4)


def test_four_hosts(tmp_path: Path, shapes: Path) -> None:
    """One artifact, whose score is that of one host; 40 images are 10 a host: 3 steps of 4."""
    with hosts(tmp_path, shapes, SMALL | {"mini_batch_size": "4", "epochs": "2"}, 4) as four:
        complete(four)
        for host in four:
            assert re.findall(r"batches: +(\d+), num_examples: +(\d+)", host.out) == [("3", "10")] * 2
            assert re.findall(r"host=(\S+), completed (\S+) %", host.out) == [(host.name, "50.0"), (host.name, "100.0")]
        assert [len(list((host.base / "model").glob("*"))) > 0 for host in four] == [True, False, False, False]
        assert [len(checkpoint.numbered(host.base / "checkpoints")) for host in four] == [2, 0, 0, 0]
        samples = read_images(shapes, "validation").samples
        model = predictor.load(four[0].base / "model")
        with ThreadPoolExecutor(1) as threads, Loader(samples, 128, 4, 1, 0, augmented=False, shuffled=False) as loader:
            found = detect(model, loader.epoch(0), threads)
            compared = [compare(sample, each.result()) for sample, each in zip(samples, found, strict=False) if each]
        logged = scores(four[0].out)
        assert score(compared, 0.5).mean == pytest.approx(max(logged), abs=1e-6)
        assert [scores(host.out) for host in four[1:]] == [[]] * 3


def shard(folder: Path, shapes: Path, count: int, first: int) -> Path:
    """Channels of which the training images are a shard, the others whole."""
    (folder / "train").mkdir(parents=True)
    for channel in ("train_annotation", "validation", "validation_annotation"):
        (folder / channel).symlink_to(shapes / channel)
    for path in sorted((shapes / "train").iterdir())[first : first + count]:
        (folder / "train" / path.name).symlink_to(path)
    return folder


def test_uneven_shards_and_updates_by_the_servers(tmp_path: Path, shapes: Path) -> None:
    """30 and 10 images: 4 steps of 8 on both hosts, whose second one repeats images that weigh nothing."""
    data = [shard(tmp_path / "a", shapes, 30, 0), shard(tmp_path / "b", shapes, 10, 30)]
    given = {name: value for name, value in SMALL.items() if name != "learning_rate"}
    with hosts(tmp_path, data, given | {"kv_store": "dist_async", "epochs": "3"}, 2) as pair:
        for host in pair:
            names = ("train", "train_annotation", "validation", "validation_annotation")
            sharded = {"train": {"S3DistributionType": "ShardedByS3Key"}}
            write_config(host.base, "inputdataconfig", {name: sharded.get(name, {}) for name in names})
        complete(pair)
        assert [re.findall(r"batches: +4, num_examples: +(\d+)", host.out) for host in pair] == [["30"] * 3, ["10"] * 3]
        each = losses(pair[0].out)
        assert each == losses(pair[1].out)
        assert each[4] < each[0]
        assert "They hold nothing of the optimizer, which the servers keep (kv_store dist_async)." in pair[0].out
        arrays = checkpoint.load(checkpoint.numbered(pair[0].base / "checkpoints")[0]).arrays
        assert {name.split("/")[0] for name in arrays} == {"parameters", "average", "best"}
        # With all epochs and more it goes on.
        write_config(pair[0].base, "hyperparameters", given | {"kv_store": "dist_async", "epochs": "4"})
        write_config(pair[1].base, "hyperparameters", given | {"kv_store": "dist_async", "epochs": "4"})
        complete(pair)
        assert "Training goes on in epoch 2 after batch 4." in pair[1].out


def test_all_stop_when_one_is_stopped(tmp_path: Path, shapes: Path) -> None:
    """After the same step, with a checkpoint from which all go on."""
    with hosts(tmp_path, shapes, SMALL | {"mini_batch_size": "4", "epochs": "3", "validate_every": "3"}, 2) as pair:
        for host in pair:
            host.start()
        pair[1].until("#progress_metric")
        pair[1].running.send_signal(signal.SIGTERM)
        assert [host.end() for host in pair] == [0, 0]
        stopped = [re.findall(r"Stopped by SIGTERM in epoch (\d) after batch (\d)", host.out) for host in pair]
        assert stopped[0] == stopped[1] != []
        assert "the model is with" in pair[1].out
        assert (pair[0].base / "model" / "model_algo_1-0000.params").exists()
        complete(pair)
        epoch, number = stopped[0][0]
        for host in pair:
            assert f"Training goes on in epoch {epoch} after batch {number}." in host.out
            assert "completed 100.0 %" in host.out


def test_a_stop_before_the_first_step_is_one_of_all(tmp_path: Path, shapes: Path) -> None:
    with hosts(tmp_path, shapes, SMALL, 3) as three:
        for host in three[:2]:
            host.start()
        three[0].until("(2 of 3 hosts are here)")
        three[0].running.send_signal(signal.SIGTERM)
        assert [host.end(60) for host in three[:2]] == [0, 0]
        assert "Stopped by SIGTERM before the first step: there is no model." in three[0].out
        assert f"Host {three[0].name} was stopped: so is the job." in three[1].out


def test_hosts_that_do_not_agree(tmp_path: Path, shapes: Path) -> None:
    with hosts(tmp_path, shapes, SMALL, 2) as pair:
        write_config(pair[1].base, "hyperparameters", SMALL | {"learning_rate": "0.01"})
        for host in pair:
            host.start()
        sentence = (
            "The hosts do not agree on the hyperparameter learning_rate: {} has 0.005, {} has 0.01; give all hosts the "
            "same."
        ).format(*(host.name for host in pair))
        for host in pair:
            assert host.end(60) == 2
            assert host.failure == f"ClientError: {sentence}" or host.failure.endswith(f" failed: {sentence}")
            assert "Traceback" not in host.out


def test_the_fault_of_one_host_is_told_by_all(tmp_path: Path, shapes: Path) -> None:
    """Whose annotations one host lacks."""
    (tmp_path / "bad").mkdir()
    for channel in ("train", "validation", "validation_annotation"):
        (tmp_path / "bad" / channel).symlink_to(shapes / channel)
    with hosts(tmp_path, [shapes, tmp_path / "bad"], SMALL, 2) as pair:
        for host in pair:
            host.start()
        assert [host.end(60) for host in pair] == [2, 2]
        own = pair[1].failure.removeprefix("ClientError: ")
        assert own.startswith("channel train: it holds 40 images and no .rec file")
        assert pair[0].failure == f"ClientError: Host {pair[1].name} failed: {own}"
        assert "Traceback" not in pair[0].out + pair[1].out


def test_fewer_images_than_hosts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    demo.write_channels(data, 1, 1, np.random.default_rng(0))
    with hosts(tmp_path, data, SMALL | {"num_training_samples": "1"}, 2) as pair:
        for host in pair:
            host.start()
        assert [host.end(60) for host in pair] == [2, 2]
        assert any("Channel train has 1 images for 2 hosts; use fewer hosts." in host.failure for host in pair)


INSTANTS = {
    "meeting": "(2 of 3 hosts are here)",
    "step": "Meta",
    "validation": "#throughput_metric",
    "saving": "Updating the best model",
}


@pytest.mark.parametrize("number", range(KILLS))
def test_the_others_end_when_a_host_is_killed(number: int, tmp_path: Path, shapes: Path) -> None:
    """At once, with a sentence that names it; nothing is left running, and the job started again is completed."""
    draw = random.Random(number)
    instant = list(INSTANTS)[number % len(INSTANTS)]
    with hosts(tmp_path, shapes, SMALL | {"mini_batch_size": "4", "epochs": "3"}, 3) as three:
        there = three[:2] if instant == "meeting" else three
        victim = draw.choice(there[1:] if instant == "meeting" else there)
        for host in there:
            host.start()
        # What it says is said by the chief in some cases; the others are as far then.
        (three[0] if instant in ("meeting", "saving") else victim).until(INSTANTS[instant])
        with pytest.raises(subprocess.TimeoutExpired):
            victim.running.wait(draw.uniform(0, 1))
        victim.kill()
        killed = time.monotonic()
        assert victim.end() == -signal.SIGKILL
        for host in there:
            if host is not victim:
                assert host.end(60) == 1, host.out
                assert host.failure == LOST.format(name=victim.name)
        assert time.monotonic() - killed < 60
        if number == 1 or KILLS > 3:
            complete(three)
            assert "completed 100.0 %" in three[2].out


long = pytest.mark.skipif(KILLS <= 3, reason="takes a minute: benchmarks/interruptions.py runs it")


@long
def test_a_host_that_is_cut_off_is_lost(tmp_path: Path, shapes: Path) -> None:
    """To the others, and the chief to itself."""
    with hosts(tmp_path, shapes, SMALL | {"mini_batch_size": "4", "epochs": "300"}, 3) as three:
        if not three[1].prefix:
            pytest.skip("only root has networks of its own to cut")
        for host in three:
            host.start()
        three[1].until("#throughput_metric")
        three[1].cut_off()
        cut = time.monotonic()
        assert [host.end(60) for host in three] == [1, 1, 1]
        assert time.monotonic() - cut < 60
        silence = LOST.replace("its connection ended", "nothing was heard of it for 45 seconds")
        lost = [three[1].name, three[0].name, three[1].name]
        assert [host.failure for host in three] == [silence.format(name=name) for name in lost]


@long
def test_a_host_that_stands_still_for_half_a_minute_is_waited_for(tmp_path: Path, shapes: Path) -> None:
    with hosts(tmp_path, shapes, SMALL | {"mini_batch_size": "4", "epochs": "3"}, 3) as three:
        for host in three:
            host.start()
        three[2].until("#throughput_metric")
        three[2].signal_all(signal.SIGSTOP)
        with pytest.raises(subprocess.TimeoutExpired):
            three[0].running.wait(30)
        three[2].signal_all(signal.SIGCONT)
        assert [host.end() for host in three] == [0, 0, 0]
