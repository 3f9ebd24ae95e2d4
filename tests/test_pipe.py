"""Channels in Pipe mode: real FIFOs, fed by `ssd-algo feed`."""

import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import SMALL, TRAIN, assert_refused, environment, read_until, run_train, write_config
from PIL import Image
from test_manifest import lines_of, write

from ssd_algo.cli import main
from ssd_algo.data import pipe, recordio, stream_loader
from ssd_algo.data.files import list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Rules
from ssd_algo.data.loader import Loader, Workers
from ssd_algo.data.manifest import read_manifest_channel
from ssd_algo.data.pipe import Passes
from ssd_algo.data.records import read_record_channel
from ssd_algo.data.samples import Sample
from ssd_algo.data.spool import Spool
from ssd_algo.errors import UserError

FEED = [sys.executable, "-m", "ssd_algo.cli", "feed"]
RULES = Rules(num_classes=3)
PIPE = {"TrainingInputMode": "Pipe", "ContentType": "application/x-recordio"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """The shapes as .rec files, and as manifests beside their images."""
    folder = tmp_path_factory.mktemp("sources")
    for channel in ("train", "validation"):
        (folder / channel).mkdir()
        arguments = [
            str(shapes / channel),
            str(shapes / f"{channel}_annotation"),
            str(folder / channel / f"{channel}.rec"),
        ]
        assert CliRunner().invoke(main, ["pack", *arguments]).exit_code == 0
        shutil.copytree(shapes / channel, folder / channel, dirs_exist_ok=True)
        write(folder / channel / f"{channel}.manifest", lines_of(shapes, channel, "s3://bucket/prefix/{}".format))
    return folder


@contextlib.contextmanager
def fed(channel: Path, *arguments: object) -> Iterator[None]:
    """While `ssd-algo feed` plays the platform for a channel."""
    channel.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen([*FEED, str(channel), *map(str, arguments)]) as process:
        try:
            yield
        finally:
            process.kill()


def passes(channel: Path, rules: Rules = RULES, budget: int = 10**8, first: int = 0, every: int = 1) -> Passes:
    return Passes(channel.name, str(channel), rules, Spool(budget), {}, first, every)


def taken(made: Passes) -> list[Sample]:
    """All samples of the next pass, the spool given back."""
    samples = []
    while (block := made.take(60)) is not None:
        samples += block.samples
        made.done(block)
    return samples


def loader(
    made: Passes, epochs: int, steps: int, batch_size: int = 8, shuffled: bool = False, **more: Any
) -> stream_loader.StreamLoader:
    workers = Workers([], 64, batch_size, 2, 20, seed=0, augmented=False)
    return stream_loader.StreamLoader(made, workers, batch_size, 20, epochs, steps, seed=0, shuffled=shuffled, **more)


def copies(batches: Iterator[Any]) -> list[tuple[np.ndarray, ...]]:
    return [(each.images.copy(), each.boxes.copy(), each.classes.copy(), each.weights.copy()) for each in batches]


@pytest.mark.parametrize("kind", ["rec", "rec --gzip", "manifest"])
def test_the_same_batches_as_of_files(sources: Path, tmp_path: Path, kind: str) -> None:
    """In each of two epochs: 40 images are 4 batches of 9 and one of 4."""
    findings = Findings()
    samples = read_record_channel(list_folder("train", sources / "train"), RULES, findings).samples
    with Loader(samples, 64, 9, 1, 0, augmented=False, shuffled=False) as files:
        expected = copies(files.epoch(0))
    suffix, *options = kind.split()
    with (
        fed(tmp_path / "train", sources / "train" / f"train.{suffix}", "--passes", 2, *options),
        loader(passes(tmp_path / "train"), 2, 5, batch_size=9) as stream,
    ):
        for epoch in (0, 1):
            for ours, theirs in zip(copies(stream.epoch(epoch)), expected, strict=True):
                real = int(theirs[3].sum())
                assert ours[3].tolist() == theirs[3].tolist()
                np.testing.assert_array_equal(ours[0][:real], theirs[0][:real])
                np.testing.assert_array_equal(ours[2][:real, : theirs[2].shape[1]], theirs[2][:real])
                # Of a .rec file boxes are what float32 leaves of fractions.
                np.testing.assert_allclose(ours[1][:real, : theirs[1].shape[1]], theirs[1][:real], atol=1e-6)


def test_parameters_after_three_steps_are_those_of_files(sources: Path, tmp_path: Path) -> None:
    """Unshuffled and unaugmented: of a .rec file, of its stream, and of a manifest's."""
    import mxnet as mx

    from ssd_algo.contract.hyperparameters import Hyperparameters
    from ssd_algo.model.network import build_network, constants, initial_parameters
    from ssd_algo.training.peers import Peers
    from ssd_algo.training.trainer import Trainer

    network = build_network("resnet-18", 128, 3)
    values = initial_parameters(network, 128, np.random.default_rng(0)) | constants(network)
    hp = Hyperparameters.parse(SMALL | {"mini_batch_size": "4", "learning_rate": "0.001"})

    def after(batches: Iterator[Any]) -> dict[str, np.ndarray]:
        trainer = Trainer(network, values, hp, [mx.cpu()], 3, Peers.alone())
        trainer.train_epoch(0, batches)
        return trainer.values()

    samples = read_record_channel(list_folder("train", sources / "train"), RULES, Findings()).samples[:12]
    with Loader(samples, 128, 4, 2, 0, augmented=False, shuffled=False) as files:
        expected = after(files.epoch(0))
    for suffix in ("rec", "manifest"):
        made = passes(tmp_path / suffix)
        workers = Workers([], 128, 4, 2, 20, seed=0, augmented=False)
        with (
            fed(tmp_path / suffix, sources / "train" / f"train.{suffix}"),
            stream_loader.StreamLoader(made, workers, 4, 20, 1, 3, seed=0, shuffled=False) as stream,
        ):
            found = after(stream.epoch(0))
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("block", [1000, 7])
def test_a_pass_is_shuffled_and_goes_on_where_it_was(
    sources: Path, tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each epoch in an order of its own that the seed fixes; a job that begins at batch 2 has the others of that order."""
    monkeypatch.setattr(pipe, "_BLOCK", block)
    orders = []
    for epoch, first in ((0, 0), (1, 0), (1, 2)):
        with (
            fed(tmp_path / f"{epoch}-{first}", sources / "train" / "train.rec", "--passes", 1),
            loader(passes(tmp_path / f"{epoch}-{first}"), epoch + 1, 5, shuffled=True) as stream,
        ):
            orders.append([[each.tobytes() for each in images] for images, *_ in copies(stream.epoch(epoch, first))])
    assert orders[0] != orders[1]
    assert orders[1][2:] == orders[2]
    assert [len({image for each in order for image in each}) for order in orders] == [40, 40, 24]


@pytest.mark.parametrize("kind", ["rec", "manifest"])
def test_hosts_share_a_pass(sources: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "_BLOCK", 5)
    names = []
    for rank in range(3):
        with fed(tmp_path / f"host-{rank}", sources / "train" / f"train.{kind}"):
            made = passes(tmp_path / f"host-{rank}", first=rank, every=3)
            made.start(1)
            names.append({re.sub("^host-.", "", sample.name) for sample in taken(made)})
    assert [len(each) for each in names] == [14, 13, 13]
    assert len(set.union(*names)) == 40


def documented(shapes: Path) -> dict[str, list[dict[str, Any]]]:
    """Manifests as Ground Truth and its users write them, for three images; what they have in common is a label's shape."""
    names = [f"train-{number:04d}.jpg" for number in range(3)]
    size = [{"width": 200, "depth": 3, "height": 160}]
    box = {"class_id": 2, "width": 99, "top": 30, "height": 46, "left": 23}
    metadata = {
        "job-name": "labeling-job/bb",
        "class-map": {"2": "storage box"},
        "human-annotated": "yes",
        "objects": [{"confidence": 0.9}],
        "creation-date": "2018-10-18T22:18:13.527256",
        "type": "groundtruth/object-detection",
    }
    sound = [
        {"source-ref": f"s3://b/{name}", "bb": {"annotations": [box], "image_size": size}, "bb-metadata": metadata}
        for name in names
    ]
    failed = {"failure-reason": "ClientError: annotation consolidation failed", "job-name": "labeling-job/bb"}
    return {
        "as the guide has it": sound,
        "with failures and background": [
            {"source-ref": sound[0]["source-ref"], "bb-metadata": failed},
            sound[1] | {"bb": {"image_size": size, "annotations": []}},
            sound[2],
        ],
        "written by hand": [
            {"bb": {"annotations": [box, box | {"class_id": 0}], "image_size": size}, "source-ref": name}
            for name in names
        ],
    }


@pytest.mark.parametrize("kind", ["as the guide has it", "with failures and background", "written by hand"])
def test_manifests_of_ground_truth(shapes: Path, tmp_path: Path, kind: str) -> None:
    """The same samples of the file and of its stream."""
    lines = documented(shapes)[kind]
    folder = tmp_path / "train"
    folder.mkdir()
    for number in range(3):
        with Image.open(shapes / "train" / f"train-{number:04d}.jpg") as image:
            image.resize((200, 160)).save(folder / f"train-{number:04d}.jpg")
    write(folder / "output.manifest", lines)
    findings = Findings()
    dataset = read_manifest_channel(list_folder("train", folder), RULES, findings)
    assert not findings.faults
    attributes = "source-ref,bb" if kind == "written by hand" else "source-ref,bb,bb-metadata"
    names: dict[int, str] = {}
    made = Passes("stream", str(tmp_path / "stream"), RULES, Spool(10**7), names)
    with fed(tmp_path / "stream", folder / "output.manifest", "--attributes", attributes):
        made.start(1)
        streamed_samples = taken(made)
    assert names == dataset.class_names
    assert [len(each.classes) for each in dataset.samples] == {
        "as the guide has it": [1, 1, 1],
        "with failures and background": [0, 1],
        "written by hand": [2, 2, 2],
    }[kind]
    for one, two in zip(dataset.samples, streamed_samples, strict=True):
        assert one.classes.tolist() == two.classes.tolist()
        np.testing.assert_array_equal(one.boxes, two.boxes)
        assert one.encoded() == two.encoded()


def test_several_files_follow_each_other(sources: Path, tmp_path: Path) -> None:
    files = [sources / channel / f"{channel}.rec" for channel in ("train", "validation")]
    with fed(tmp_path / "train", *files):
        made = passes(tmp_path / "train")
        made.start(1)
        assert len(taken(made)) == 50


def test_a_stream_that_is_longer_or_shorter_than_said(
    sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twice = fed(tmp_path / "train", sources / "train" / "train.rec", "--passes", 2)
    with twice, loader(passes(tmp_path / "train"), 2, 3) as stream:
        weights = [batch.weights.sum() for epoch in (0, 1) for batch in stream.epoch(epoch)]
    assert weights == [8] * 6
    said = "num_training_samples, or, of a shard, its part, is too"
    assert f"train_0 had more images than the 24 that an epoch takes: {said} small." in caplog.text
    with fed(tmp_path / "train", sources / "train" / "train.rec"), loader(passes(tmp_path / "train"), 1, 7) as stream:
        assert [batch.weights.sum() for batch in stream.epoch(0)] == [8] * 5 + [0, 0]
    assert (
        f"train_0 had 40 images for the 7 steps of an epoch, the last of which teach nothing: {said} large."
        in caplog.text
    )


def test_a_spool_that_is_smaller_than_the_stream(sources: Path, tmp_path: Path) -> None:
    """The ring goes round several times, and nothing is lost; one that does not hold a batch is named."""
    size = (sources / "train" / "train.rec").stat().st_size
    with (
        fed(tmp_path / "train", sources / "train" / "train.rec", "--passes", 3),
        loader(passes(tmp_path / "train", budget=size // 2), 3, 10, batch_size=4) as stream,
    ):
        epochs = [[images.tobytes() for images, *_ in copies(stream.epoch(epoch))] for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert len(set(epochs[0])) == 10
    with (
        fed(tmp_path / "train", sources / "train" / "train.rec"),
        loader(passes(tmp_path / "train", budget=size // 10), 1, 1, batch_size=40) as stream,
        pytest.raises(UserError, match=r"^spool_mb is too small: a batch of 40 images does not fit"),
    ):
        list(stream.epoch(0))


def test_the_fifo_is_read_while_nobody_takes_batches(sources: Path, tmp_path: Path) -> None:
    """As during a validation: the feeder, which can only write when somebody reads, ends all its passes."""
    command = [*FEED, str(tmp_path / "train"), str(sources / "train" / "train.rec"), "--passes", "3"]
    with subprocess.Popen(command) as feeder, loader(passes(tmp_path / "train"), 3, 5) as stream:
        batches = stream.epoch(0)
        next(batches)
        assert feeder.wait(60) == 0
        assert len(list(batches)) == 4


def test_who_waits_says_so_once_a_minute(
    sources: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_loader, "_SAY_AGAIN", 1.0)  # a minute of a shorter hour
    with (
        caplog.at_level("INFO"),
        fed(tmp_path / "train", sources / "train" / "train.rec", "--stall", 1000, 3),
        loader(passes(tmp_path / "train"), 1, 5) as stream,
    ):
        assert len(list(stream.epoch(0))) == 5
    assert re.search(r"Waiting for train_0: its last record came \d s ago\.", caplog.text)


def test_a_fifo_that_is_not_there_yet(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for it ends when asked to, as by SIGTERM."""
    monkeypatch.setattr(stream_loader, "_SAY_AGAIN", 1.0)
    asked = iter([False, False, True])

    def check() -> None:
        if next(asked):
            raise InterruptedError

    waiting = loader(passes(tmp_path / "train"), 1, 5, check=check)
    with caplog.at_level("INFO"), waiting as stream, pytest.raises(InterruptedError):
        next(stream.epoch(0))
    assert "Waiting for train_0, which is not there yet." in caplog.text


def job(base: Path, **hyperparameters: str) -> Path:
    write_config(base, "hyperparameters", SMALL | hyperparameters)
    write_config(base, "inputdataconfig", {"train": PIPE, "validation": PIPE})
    return base / "input" / "data"


def test_through_the_front_door(sources: Path, tmp_path: Path) -> None:
    """Both channels; stopped, then started anew, when the platform counts its FIFOs from 0 again."""
    data = job(tmp_path, epochs="2", checkpoint_minutes="0.0001")
    (tmp_path / "checkpoints").mkdir()
    train, validation = (sources / channel / f"{channel}.manifest" for channel in ("train", "validation"))
    names = ("--attributes", "source-ref,boxes,boxes-metadata")
    with (
        fed(data / "train", train, "--passes", 3, *names),
        fed(data / "validation", validation, *names),
        subprocess.Popen(TRAIN, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as process,
    ):
        assert process.stdout is not None
        out = read_until(process.stdout, "#progress_metric")
        process.send_signal(signal.SIGTERM)
        out += process.stdout.read()
        assert process.wait(60) == 0
    assert "Training on 40 images, validating on 10." in out
    ((epoch, number),) = re.findall(r"Stopped by SIGTERM in epoch (\d) after batch (\d)", out)
    for path in data.iterdir():
        path.unlink()
    with fed(data / "train", train, "--passes", 3, *names), fed(data / "validation", validation, *names):
        run = run_train(tmp_path)
    assert run.code == 0, run.err
    assert f"Training goes on in epoch {epoch} after batch {number}." in run.out
    assert "completed 100.0 %" in run.out
    assert json.loads((tmp_path / "model" / "classes.json").read_text()) == {
        "0": "circle",
        "1": "square",
        "2": "triangle",
    }


def test_a_producer_that_dies_within_a_record(sources: Path, tmp_path: Path) -> None:
    data = job(tmp_path)
    with (
        fed(data / "train", sources / "train" / "train.rec", "--cut", 10_000),
        fed(data / "validation", sources / "validation" / "validation.rec"),
    ):
        run = run_train(tmp_path)
    number, offset = re.findall(r"record (\d+) at byte (\d+)", run.failure)[0]
    assert_refused(
        run,
        f"train_0, record {number} at byte {offset}: it is cut off: the stream ends at byte 10000, within it; check what the "
        "channel streams, and that RecordWrapperType is RecordIO for a manifest, and none for .rec files.",
    )


@pytest.mark.parametrize(
    ("channels", "sentence"),
    [
        (
            {"train": PIPE, "validation": PIPE, "train_annotation": {}},
            "channel train: it is in Pipe mode, in which labels come with the images, but there is a channel "
            "train_annotation too; leave it out, or use File mode.",
        ),
        (
            {"train": PIPE | {"ContentType": "text/csv"}, "validation": PIPE},
            "channel train: its content type is text/csv; it must be one of application/x-recordio, image/jpeg, image/png, "
            "application/x-image.",
        ),
        (
            {"train": PIPE, "validation": PIPE, "model": {"TrainingInputMode": "Pipe"}},
            "channel model: it is in Pipe mode, in which only train and validation can be; use File or FastFile mode.",
        ),
    ],
)
def test_channels_that_cannot_be_pipes(base: Path, channels: dict[str, Any], sentence: str) -> None:
    write_config(base, "hyperparameters", SMALL)
    write_config(base, "inputdataconfig", channels)
    run = run_train(base)
    assert run.code == 2
    assert sentence in run.out


def record(payload: bytes) -> bytes:
    file = io.BytesIO()
    recordio.write_record(file, payload)
    return file.getvalue()


def label(**changed: Any) -> bytes:
    sound = {
        "image_size": [{"width": 8, "height": 8, "depth": 3}],
        "annotations": [{"class_id": 0, "left": 1, "top": 1, "width": 4, "height": 4}],
    }
    return json.dumps({name: each for name, each in (sound | changed).items() if each is not None}).encode()


def png(side: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


def packed(*numbers: float, image: bytes | None = None) -> bytes:
    values = struct.pack(f"<{len(numbers)}f", *numbers)
    return struct.pack("<IfQQ", len(numbers), 0, 0, 0) + values + (png() if image is None else image)


GOOD = packed(2, 5, 0, 0.1, 0.1, 0.5, 0.5)
FIRST = "train_0, record 0 at byte 0"
STREAMED = (
    "; check what the channel streams, and that RecordWrapperType is RecordIO for a manifest, and none for .rec files."
)


def pair(document: bytes, image: bytes | None = None) -> bytes:
    return record(png() if image is None else image) + record(document)


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        (b"", "channel train: train_0 ended without a sample; check what the channel streams."),
        (b"{}", f"{FIRST}: it is cut off: the stream ends at byte 2, within it{STREAMED}"),
        (b"no records at all", f"{FIRST}: it does not start with the RecordIO magic number 0xced7230a{STREAMED}"),
        (
            record(GOOD)[:-4],
            f"{FIRST}: it is cut off: the stream ends at byte {len(record(GOOD)) - 4}, within it{STREAMED}",
        ),
        (record(GOOD)[:20], f"{FIRST}: it is cut off: the stream ends at byte 20, within it{STREAMED}"),
        (
            record(GOOD) + b"abcdefgh",
            f"train_0, record 1 at byte {len(record(GOOD))}: it does not start with the RecordIO magic number 0xced7230a"
            f"{STREAMED}",
        ),
        (
            struct.pack("<II", recordio.MAGIC, 3 << 29 | 4) + b"abcd",
            f"{FIRST}: it has the continuation flag 3 where none of that kind may be{STREAMED}",
        ),
        (
            b"\x1f\x8b\x08\x00garbage that is no gzip stream",
            f"{FIRST}: it cannot be unpacked: the compressed stream is damaged (",
        ),
        (
            gzip.compress(record(GOOD))[:-4],
            f"train_0, record 1 at byte {len(record(GOOD))}: it is cut off: the compressed stream ends within it{STREAMED}",
        ),
        (
            gzip.compress(record(GOOD))[:-8] + b"12345678",
            f"train_0, record 1 at byte {len(record(GOOD))}: it cannot be unpacked: the compressed stream is damaged (CRC ",
        ),
        (
            record(record(GOOD)),
            f"{FIRST}: it holds a RecordIO file, not a record of one; RecordWrapperType must be None for .rec files.",
        ),
        (
            record(png()) * 3,
            "train_0: none of the 3 images so far has a label; AttributeNames must have source-ref, then the label, an object "
            'with "image_size" and "annotations".',
        ),
        (pair(label(annotations=None)), f'{FIRST}: the property "annotations" is missing; it must be '),
        (pair(label(), b"GIF89a" + bytes(20)), f"{FIRST}: "),
        (
            record(b"short"),
            f"{FIRST}: it has 5 bytes, fewer than a header's 24; correct the label and pack the file again.",
        ),
        (record(struct.pack("<IfQQ", 0, 1, 0, 0) + png()), f"{FIRST}: it holds one class and no box, "),
        (
            record(packed(2, 5, 0, 0.1)),
            f"{FIRST}: 4 label values do not make a header of 2 (at least 2) and objects of 5 ",
        ),
        (record(packed(2, 5, 7, 0.1, 0.1, 0.5, 0.5)), f"{FIRST}, object 0: has the class 7, but num_classes is 3: "),
        (record(packed(2, 5, -2, 0.1, 0.1, 0.5, 0.5)), f"{FIRST}, object 0: has the class -2; class ids go from 0."),
        (
            record(packed(2, 5, 0.5, 0.1, 0.1, 0.5, 0.5)),
            f"{FIRST}, object 0: has the class 0.5, which is not an integer; ",
        ),
        (record(packed(2, 5, 0, 0.5, 0.1, 0.1, 0.5)), f"{FIRST}, object 0: has swapped corners "),
        (record(packed(2, 5, 0, 10, 10, 50, 50)), f"{FIRST}, object 0: the box 10, 10, 50, 50 is in pixels, "),
        (
            record(packed(2, 5, 0, 0.1, 0.1, 1.5, 0.5)),
            f"{FIRST}, object 0: reaches more than 0.05 over the image's edge ",
        ),
        (record(packed(2, 5, 0, float("nan"), 0.1, 0.5, 0.5)), f"{FIRST}, object 0: has a value that is not a finite "),
        (record(packed(2, 5, 0, 0.1, 0.1, 0.5, 0.5, image=b"no image")), f"{FIRST}: the file is no image; replace or "),
        (record(packed(2, 5, 0, 0.1, 0.1, 0.5, 0.5, image=b"")), f"{FIRST}: the file is empty; replace or remove the "),
        (
            record(label()) + record(png()),
            f"{FIRST}: it holds JSON where an image should be; AttributeNames must have source-ref first, then the label.",
        ),
        (
            record(png()) * 120,
            f"train_0, record 99 at byte {99 * len(record(png()))}: none of the 100 images so far has a label; AttributeNames must have source-ref, "
            'then the label, an object with "image_size" and "annotations".',
        ),
        (pair(b"{"), f"train_0, record 1 at byte {len(record(png()))}: it is neither an image nor JSON (Expecting "),
        (pair(b"abc"), f"train_0, record 1 at byte {len(record(png()))}: it is neither an image nor JSON (Expecting "),
        (
            record(png()) + record(label()) * 2,
            f"{FIRST}: 2 labels follow the image; AttributeNames must have source-ref and one label.",
        ),
        (pair(label(image_size=None)), f'{FIRST}: the property "image_size" is missing; it must be '),
        (
            pair(label(annotations={})),
            f'{FIRST}: "annotations" is {{}}; it must be a list of objects, an empty one for ',
        ),
        (
            pair(label(annotations=[1])),
            f"{FIRST}, annotation 0: it is 1, not an object with class_id, left, top, width, ",
        ),
        (
            pair(label(annotations=[{"class_id": 0}])),
            f"{FIRST}, annotation 0: left and top and width and height missing; ",
        ),
        (
            pair(label(), png(9)),
            f"{FIRST}: it says 8 x 8 pixels, but {FIRST} is 9 x 9 upright (EXIF orientation applied); ",
        ),
        (
            pair(label(), png()[:-12]),
            f"{FIRST}: the PNG image is cut off: its end marker is missing; replace or remove the ",
        ),
        (
            (pair(label()) + record(b'{"class-map": {"0": "cow"}}'))
            + (pair(label()) + record(b'{"class-map": {"0": "dog"}}')),
            'its class-map calls class 0 "dog", but others call it "cow"; use one name.',
        ),
    ],
)
def test_streams_that_are_refused(tmp_path: Path, stream: bytes, sentence: str) -> None:
    """30 of them, and an empty one: a sentence each, with the record and its place."""
    os.mkfifo(tmp_path / "train_0")
    writer = threading.Thread(target=(tmp_path / "train_0").write_bytes, args=(stream,))
    writer.start()
    made = passes(tmp_path / "train")
    made.start(1)
    with pytest.raises(UserError) as raised:
        taken(made)
    writer.join(60)
    assert sentence in str(raised.value)


def test_images_without_a_label_are_skipped_and_bad_ones_up_to_max_bad_records(tmp_path: Path) -> None:
    stream = record(png()) + pair(b"null") + pair(label()) + pair(label(annotations=[])) + pair(label(), png()[:-12])
    os.mkfifo(tmp_path / "train_0")
    writer = threading.Thread(target=(tmp_path / "train_0").write_bytes, args=(stream,))
    writer.start()
    made = passes(tmp_path / "train", Rules(num_classes=3, max_bad_records=1))
    made.start(1)
    assert [len(sample.classes) for sample in taken(made)] == [1, 0]
    writer.join(60)


def streamed(path: Path, *streams: bytes) -> threading.Thread:
    """FIFOs `PATH_0`, ... with these streams, written by a thread."""

    def write_all() -> None:
        for number, stream in enumerate(streams):
            os.mkfifo(f"{path}_{number}")
            Path(f"{path}_{number}").write_bytes(stream)

    writer = threading.Thread(target=write_all)
    writer.start()
    return writer


def test_a_bad_image_counts_once_a_pass(tmp_path: Path) -> None:
    """The same in each of three, of which one is allowed; and class names come with the first."""
    names = record(b'{"class-map": {"0": "cow"}}')
    bad = pair(label(), png()[:40])
    writer = streamed(tmp_path / "train", *[pair(label()) + names + bad + pair(label())] * 3)
    found: dict[int, str] = {}
    rules = Rules(3, max_bad_records=1, headers=False)
    made = Passes("train", str(tmp_path / "train"), rules, Spool(10**6), found)
    with loader(made, 3, 1, batch_size=3, may_skip=1) as stream:
        for epoch in range(3):
            assert [batch.weights.tolist() for batch in stream.epoch(epoch)] == [[1, 0, 1]]
            assert found == {0: "cow"}
    writer.join(60)


def test_a_block_without_a_label_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeats are of the block before."""
    monkeypatch.setattr(pipe, "_BLOCK", 2)
    writer = streamed(tmp_path / "train", pair(label()) * 2 + record(png()))
    with loader(passes(tmp_path / "train"), 1, 2, batch_size=2) as stream:
        assert [batch.weights.tolist() for batch in stream.epoch(0)] == [[1, 1], [0, 0]]
    writer.join(60)


def test_what_an_epoch_does_not_take_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The FIFO is closed, though the producer would go on for ever."""
    monkeypatch.setattr(pipe, "_BLOCK", 4)
    os.mkfifo(tmp_path / "train_0")

    def write_on() -> None:
        with contextlib.suppress(BrokenPipeError), (tmp_path / "train_0").open("wb", buffering=0) as fifo:
            while True:
                fifo.write(pair(label()))

    writer = threading.Thread(target=write_on)
    writer.start()
    with loader(passes(tmp_path / "train", budget=20_000), 1, 2) as stream:
        assert len(list(stream.epoch(0))) == 2
    writer.join(60)
    assert not writer.is_alive()


def test_an_image_with_more_objects_than_label_width_says(tmp_path: Path) -> None:
    many = [{"class_id": 0, "left": 1, "top": 1, "width": 4, "height": 4}] * 21
    os.mkfifo(tmp_path / "train_0")
    writer = threading.Thread(target=(tmp_path / "train_0").write_bytes, args=(pair(label(annotations=many)),))
    writer.start()
    with loader(passes(tmp_path / "train"), 1, 1) as stream, pytest.raises(UserError) as raised:
        list(stream.epoch(0))
    writer.join(60)
    assert str(raised.value) == (
        f"{FIRST}: it has 21 objects, more than the 20 for which label_width has room; raise label_width to 2 + 5 for each "
        "object."
    )


def test_the_feeder_says_what_is_in_its_way(tmp_path: Path, sources: Path) -> None:
    (tmp_path / "train_0").write_text("")
    done = CliRunner().invoke(main, ["feed", str(tmp_path / "train"), str(sources / "train" / "train.rec")])
    assert done.exit_code == 2
    (tmp_path / "bad.manifest").write_text('{"source-ref": "a.png"}\n[1]')
    for source, attributes, sentence in (
        ("bad.manifest", "source-ref", "bad.manifest, line 2: it is no JSON object ("),
        (
            str(sources / "train" / "train.manifest"),
            "source-ref,cells",
            "no line has the attribute cells; there are boxes, ",
        ),
    ):
        arguments = [str(tmp_path / "other"), str(tmp_path / source), "--attributes", attributes]
        with subprocess.Popen([*FEED, *arguments], stderr=subprocess.PIPE, text=True) as feeder:
            while not (tmp_path / "other_0").exists():
                assert feeder.poll() is None
            (tmp_path / "other_0").read_bytes()
            assert feeder.stderr is not None
            assert sentence in feeder.stderr.read()
            assert feeder.wait(60) == 2
    assert f"{tmp_path}/train_0 cannot be made (File exists); remove what is in its place." in done.output
