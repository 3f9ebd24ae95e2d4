"""Several hosts that train as one, through the front door: in step, disjoint, agreed, and never left hanging.

SSD_ALGO_KILLS is how many times a host is killed: few here, all in benchmarks/interruptions.py.
"""

import contextlib
import json
import os
import queue
import random
import re
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, Run, read_images, train, write_config
from hosts import Host, hosts

from ssd_algo import demo
from ssd_algo.contract.container import Hosts
from ssd_algo.data.loader import Loader
from ssd_algo.errors import UserError
from ssd_algo.evaluation.evaluate import compare, detect, score
from ssd_algo.inference import predictor
from ssd_algo.training import agreement, checkpoint
from ssd_algo.training.job import classify
from ssd_algo.training.peers import PORT, Peers

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
    codes = [host.end() for host in all_hosts[1:]]
    # The others have waited for all that the chief writes: where they run may be gone with the first that ends.
    assert (all_hosts[0].base / "output" / "data" / "report.html").is_file()
    codes.append(all_hosts[0].end())
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
    given = SMALL | {"freeze_layer_pattern": ".*bn.*", "learning_rate": "0.00005", "epochs": "6", "validate_every": "6"}
    one = tmp_path / "one"
    (one / "input").mkdir(parents=True)
    (one / "input" / "data").symlink_to(data)
    alone = train(one, given)
    assert alone.code == 0, alone.err
    with hosts(tmp_path, data, given | {"mini_batch_size": "4", "devices": "cpu:2"}, 2) as pair:
        complete(pair)
        assert "Gradients of 2 hosts meet in KVStore dist_sync." in pair[0].out
        assert len(losses(alone.out)) == 12
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
        output = four[0].base / "output" / "data"
        assert [(host.base / "output" / "data" / "report.html").exists() for host in four] == [
            True,
            False,
            False,
            False,
        ]
        evaluation = json.loads((output / "metrics.json").read_text())["evaluation"]
        # Of all images, but the photos are those that the first host has validated on.
        assert evaluation["images"] == 10
        assert sorted(each["image"] for each in evaluation["photos"]) == [0, 4, 8]
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


def sharded(host: Host) -> None:
    """Say that its training images are its own."""
    names = ("train_annotation", "validation", "validation_annotation")
    config: dict[str, dict[str, str]] = {name: {} for name in names}
    write_config(host.base, "inputdataconfig", config | {"train": {"S3DistributionType": "ShardedByS3Key"}})


def test_uneven_shards_and_updates_by_the_servers(tmp_path: Path, shapes: Path) -> None:
    """30 and 10 images: 4 steps of 8 on both hosts, whose second one repeats images that weigh nothing."""
    data = [shard(tmp_path / "a", shapes, 30, 0), shard(tmp_path / "b", shapes, 10, 30)]
    given = {name: value for name, value in SMALL.items() if name != "learning_rate"}
    given |= {"kv_store": "dist_async", "epochs": "2", "checkpoint_minutes": "0.0001"}
    with hosts(tmp_path, data, given, 2) as pair:
        for host in pair:
            sharded(host)
            host.start()
        pair[0].until("batches:      4")
        pair[0].running.send_signal(signal.SIGTERM)
        assert [host.end() for host in pair] == [0, 0]
        assert "They hold nothing of the optimizer, which the servers keep (kv_store dist_async)." in pair[0].out
        arrays = checkpoint.load(checkpoint.numbered(pair[0].base / "checkpoints")[0]).arrays
        assert {name.split("/")[0] for name in arrays} - {"best"} == {"parameters", "average"}
        before = [host.out for host in pair]
        complete(pair)
        for host in pair:
            assert "Training goes on in epoch" in host.out
            assert "completed 100.0 %" in host.out
        whole = [
            re.findall(r"batches: +4, num_examples: +(\d+)", out + host.out)
            for out, host in zip(before, pair, strict=True)
        ]
        assert whole == [["30"] * 2, ["10"] * 2]
        each = losses(before[0] + pair[0].out)
        assert each == losses(before[1] + pair[1].out)
        assert each[2] < each[0]


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
            assert host.failure == f"ClientError: {sentence}"
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


def test_a_loss_that_is_not_finite_is_told_by_all(tmp_path: Path, shapes: Path) -> None:
    """Found by whichever host reads it first."""
    with hosts(tmp_path, shapes, SMALL | {"mini_batch_size": "4", "learning_rate": "1", "epochs": "30"}, 2) as pair:
        for host in pair:
            write_config(
                host.base,
                "hyperparameters",
                SMALL | {"base_network": "vgg-16", "learning_rate": "1", "mini_batch_size": "1"},
            )
            host.start()
        assert [host.end(120) for host in pair] == [2, 2]
        for host in pair:
            assert "is not finite" in host.failure
            assert "Traceback" not in host.out


def test_fewer_images_than_hosts(tmp_path: Path) -> None:
    data = tmp_path / "data"
    demo.write_channels(data, 1, 1, np.random.default_rng(0))
    with hosts(tmp_path, data, SMALL | {"num_training_samples": "1"}, 2) as pair:
        for host in pair:
            host.start()
        assert [host.end(60) for host in pair] == [2, 2]
        sentence = "ClientError: Channel train has 1 images for 2 hosts; use fewer hosts."
        assert [host.failure for host in pair] == [sentence] * 2


# When a host is killed, by the last line of the log that comes before, and which one: what the others wait for differs.
INSTANTS = {
    "meeting": "(2 of 3 hosts are here)",
    "step": "Meta",
    "validation": "#throughput_metric",
    "saving": "Updating the best model",
}
CASES = [("meeting", 1), ("step", 1), ("validation", 0), ("saving", 0), ("step", 0), ("step", 2), ("saving", 2)]
CASES += [("meeting", 0), ("validation", 1), ("validation", 2)]


@pytest.mark.parametrize(("instant", "rank"), CASES[:KILLS])
def test_the_others_end_when_a_host_is_killed(instant: str, rank: int, tmp_path: Path, shapes: Path) -> None:
    """At once, with a sentence that names it; nothing is left running, and the job started again is completed."""
    with hosts(tmp_path, shapes, SMALL | {"mini_batch_size": "4", "epochs": "99"}, 3) as three:
        there = three[:2] if instant == "meeting" else three
        victim = three[rank]
        for host in there:
            host.start()
        # What the chief alone says: the others are as far then.
        (three[0] if instant in ("meeting", "saving") else victim).until(INSTANTS[instant])
        with pytest.raises(subprocess.TimeoutExpired):
            victim.running.wait(random.Random(f"{instant} {rank}").uniform(0, 1))
        victim.kill()
        killed = time.monotonic()
        assert victim.end() == -signal.SIGKILL
        for host in there:
            if host is not victim:
                assert host.end(60) == 1, host.out
                assert host.failure == LOST.format(name=victim.name)
        assert time.monotonic() - killed < 60
        if (instant, rank) == ("step", 1) or KILLS > 3:
            for host in three:
                write_config(host.base, "hyperparameters", SMALL | {"mini_batch_size": "4", "epochs": "2"})
            complete(three)
            assert "Training finished" in three[2].out


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


def ended(names: tuple[str, ...], current: str, interface: str = "") -> tuple[Peers, "queue.SimpleQueue[str]"]:
    """A host in this process, and the sentences with which it would end it."""
    sentences: queue.SimpleQueue[str] = queue.SimpleQueue()
    return Peers(Hosts(current, names, interface), classify, lambda lost: sentences.put(lost.sentence)), sentences


@contextlib.contextmanager
def meeting(peers: Peers, patience: float) -> Iterator["Future[None]"]:
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(peers.meet, patience)


def test_a_host_that_does_not_come_is_named() -> None:
    peers, _ = ended(("127.0.0.1", "127.0.0.2"), "127.0.0.1")
    with pytest.raises(UserError) as raised:
        peers.meet(patience=0.3)
    assert str(raised.value) == (
        "127.0.0.2 did not come within 0.005 minutes; see why in its log, that its resourceconfig.json has its own name as "
        "current_host, and that the security group allows all traffic between the job's hosts."
    )
    # Its port is free again.
    socket.create_server(("", PORT)).close()


def test_a_chief_whose_name_does_not_resolve_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    peers, _ = ended(("algo-1.invalid", "algo-2"), "algo-2")
    with (
        caplog.at_level("INFO"),
        pytest.raises(UserError, match=r"^algo-1\.invalid did not come within 0\.005 minutes;"),
    ):
        peers.meet(patience=0.3)
    assert "Waiting for algo-1.invalid (" in caplog.text


def connected() -> socket.socket:
    """A connection to a chief that is about to listen."""
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection(("127.0.0.1", PORT), timeout=60)


def test_whatever_else_connects_is_not_taken_for_a_host() -> None:
    """Nonsense, a message too long, one nested too deep, a stranger; then the host comes."""
    names = ("127.0.0.1", "127.0.0.2")
    chief, _ = ended(names, names[0], "no-such-interface")
    with meeting(chief, 60) as met:
        deep = b"[" * 60000
        stranger = json.dumps({"kind": "hello", "name": "me", "hosts": names}).encode()
        for message in (
            b"GET / HTTP/1.1\r\n\r\n",
            struct.pack(">IQ", 10, 1 << 40),
            struct.pack(">IQ", len(deep), 0) + deep,
            struct.pack(">IQ", len(stranger), 0) + stranger,
        ):
            with connected() as connection:
                connection.sendall(message)
                with contextlib.suppress(ConnectionResetError):
                    assert connection.recv(1) == b""
        other, _ = ended(names, names[1], "lo")
        other.meet(60)
        met.result(60)
    with ThreadPoolExecutor(1) as threads:
        theirs = threads.submit(other.exchange, "a", 2)
        assert chief.exchange("a", 1) == theirs.result(60) == [1, 2]
        assert (chief.address(), other.address()) == ("127.0.0.1", "127.0.0.1")
        left = threads.submit(other.leave, lambda: None)
        chief.leave(lambda: None)
        left.result(60)
        closed = threads.submit(other.close)
        chief.close()
        closed.result(60)


def test_hosts_of_different_lists_are_told() -> None:
    chief, sentences = ended(("127.0.0.1", "127.0.0.2", "127.0.0.3"), "127.0.0.1")
    other, theirs = ended(("127.0.0.1", "127.0.0.2"), "127.0.0.2")
    with ThreadPoolExecutor(2) as threads:
        for each in (chief, other):
            threads.submit(each.meet, 3)
        sentence = (
            "The hosts of the job are 127.0.0.1, 127.0.0.2, 127.0.0.3 for 127.0.0.1, but 127.0.0.1, 127.0.0.2 for "
            "127.0.0.2; give all hosts the same resourceconfig.json but for current_host."
        )
        assert sentences.get(timeout=60) == theirs.get(timeout=60) == sentence


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ([{"a": 1}, {"a": 1}], None),
        ([{"a": 1}, {"a": 2}], "The hosts do not agree on the a: x has 1, y has 2; give all hosts the same."),
        (
            [{"a": 1}, {"a": 1, "b": 3}],
            "The hosts do not agree on the b: x has none, y has 3; give all hosts the same.",
        ),
    ],
)
def test_the_first_difference_is_named(facts: list[dict[str, int]], sentence: str | None) -> None:
    assert agreement.first_difference(("x", "y"), facts) == sentence


def test_class_names_of_shards_are_put_together() -> None:
    names = [{"0": "cat"}, {"2": "cow", "10": "dog"}, {"0": "cat", "1": "hen"}]
    merged = agreement.merged_class_names(("x", "y", "z"), names)
    assert list(merged.items()) == [(0, "cat"), (1, "hen"), (2, "cow"), (10, "dog")]
    with pytest.raises(UserError) as raised:
        agreement.merged_class_names(("x", "y", "z"), [{}, {"1": "cow"}, {"1": "hen"}])
    assert str(raised.value) == (
        'Class 1 is "cow" in the data of y, but "hen" in that of z; use one name, and the same order of classes.'
    )
