"""The model directory: whole or not at all, clear refusals."""

import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from conftest import Run, disk

from ssd_algo.errors import UserError
from ssd_algo.inference.predictor import load_reference
from ssd_algo.model import archive, artifact, parameter_file


def files(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_model_directory(trained: Run) -> None:
    assert sorted(path.name for path in (trained.base / "model").iterdir()) == [
        "classes.json",
        "hyperparams.json",
        "model_algo_1-0000.params",
        "model_algo_1-int8.onnx",
        "model_algo_1-symbol.json",
        "model_algo_1.onnx",
    ]
    assert json.loads((trained.base / "model" / "classes.json").read_text()) == {
        "0": "circle",
        "1": "square",
        "2": "triangle",
    }
    hyperparameters = json.loads((trained.base / "model" / "hyperparams.json").read_text())
    assert hyperparameters["base_network"] == "resnet-18"
    assert hyperparameters["lr_scheduler_step"] == "4, 5"
    assert hyperparameters["_tuning_objective_metric"] == "validation:mAP"
    assert all(isinstance(value, str) for value in hyperparameters.values())


def test_packed_as_the_platform_would(trained: Run) -> None:
    assert files(trained.base / "output" / "model.tar.gz") == [
        "model_algo_1-symbol.json",
        "model_algo_1-0000.params",
        "hyperparams.json",
        "classes.json",
        "model_algo_1.onnx",
        "model_algo_1-int8.onnx",
    ]


def pack(archive: Path, *members: tarfile.TarInfo, **options: Any) -> None:
    """An archive of these members; files are filled with zeros."""
    with tarfile.open(archive, "w:gz", **options) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))


def member(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for attribute, value in more.items():
        setattr(info, attribute, value)
    return info


def model_members() -> list[tarfile.TarInfo]:
    return [member(name, 10) for name in ("model_algo_1-symbol.json", "model_algo_1-0000.params", "hyperparams.json")]


def refused(channel: Path) -> str:
    """Why the channel's archive is not unpacked; nothing of it may be left."""
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", temporary)
        with pytest.raises(UserError) as caught, artifact.unpacked(channel):
            pass
        assert list(Path(temporary).iterdir()) == []
    return str(caught.value)


def test_unpacked_takes_the_models_files_only(tmp_path: Path, trained: Run) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.addfile(member(".", kind=tarfile.DIRTYPE))
        for path in (trained.base / "model").iterdir():
            tar.addfile(member(f"./._{path.name}", 4), io.BytesIO(b"Mac "))
            tar.add(path, arcname=f"./{path.name}")
        for name in ("sub/hyperparams.json", "other.txt", "...", "a..b"):
            tar.addfile(member(name, 4), io.BytesIO(b"evil"))
    with artifact.unpacked(tmp_path) as directory:
        for path in directory.iterdir():
            assert path.read_bytes() == (trained.base / "model" / path.name).read_bytes()
        every = {path.name for path in (trained.base / "model").iterdir()}
        assert {path.name for path in directory.iterdir()} == every - {"model_algo_1.onnx"}  # made anew as fast
        assert artifact.describe(directory).class_names == {0: "circle", 1: "square", 2: "triangle"}
    assert not directory.exists()


@pytest.mark.parametrize(
    ("evil", "what"),
    [
        (member("classes.json", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), '"classes.json" is a link'),
        (member("x", kind=tarfile.SYMTYPE, linkname="/etc"), '"x" is a link'),
        (member("classes.json", kind=tarfile.LNKTYPE, linkname="/etc/passwd"), '"classes.json" is a link'),
        (member("classes.json", kind=tarfile.CHRTYPE, devmajor=1, devminor=5), '"classes.json" is a device'),
        (member("classes.json", kind=tarfile.FIFOTYPE), '"classes.json" is a device'),
        # 1 TB of a few bytes
        (
            member("classes.json", pax_headers={"GNU.sparse.size": str(10**12), "GNU.sparse.map": "0,0"}),
            '"classes.json" is a sparse file',
        ),
        (member("a\nb" * 50, kind=tarfile.SYMTYPE, linkname="x"), '"' + "a\\nb" * 33 + '…" is a link'),
    ],
)
def test_archive_with_what_is_no_plain_file(tmp_path: Path, evil: tarfile.TarInfo, what: str) -> None:
    pack(tmp_path / "model.tar.gz", *model_members(), evil, format=tarfile.PAX_FORMAT)
    assert refused(tmp_path) == (f"{tmp_path}/model.tar.gz: {what}, but a model has plain files only; pack them anew.")


@pytest.mark.parametrize("name", ["/tmp/evil", "../evil", "sub/../../evil", "hyperparams.json/..", "/hyperparams.json"])
def test_archive_with_a_path_that_leads_out(tmp_path: Path, name: str) -> None:
    pack(tmp_path / "model.tar.gz", *model_members(), member(name, 4))
    assert refused(tmp_path) == (
        f'{tmp_path}/model.tar.gz: the path "{name}" is absolute or has "..", but must stay within the archive; pack a '
        "model's files anew."
    )


def test_archive_of_many_members(tmp_path: Path) -> None:
    pack(tmp_path / "model.tar.gz", *model_members(), *(member(f"{index}/x", 1) for index in range(997)))
    with artifact.unpacked(tmp_path) as directory:
        assert len(list(directory.iterdir())) == 3
    pack(tmp_path / "model.tar.gz", *model_members(), *(member(f"{index}/x", 1) for index in range(998)))
    assert refused(tmp_path) == (
        f"{tmp_path}/model.tar.gz has more than 1000 members, which no model has; pack a model's files alone."
    )


@pytest.mark.parametrize("name", ["model_algo_1-0000.params", "other"])
def test_archive_that_is_larger_than_it_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Files that are not taken count too, and so does what stands behind the last."""
    monkeypatch.setattr(archive, "MOST_BYTES", 3_000_000)
    pack(tmp_path / "model.tar.gz", *model_members(), member(name, 2_900_000))
    with artifact.unpacked(tmp_path):
        pass
    sentence = (
        f"{tmp_path}/model.tar.gz has more than 0.003 GB when unpacked, which no model has; pack a model's files alone."
    )
    with gzip.open(tmp_path / "model.tar.gz", "ab") as file:
        file.write(bytes(200_000))
    assert refused(tmp_path) == sentence
    pack(tmp_path / "model.tar.gz", *model_members(), member(name, 3_000_000))
    assert refused(tmp_path) == sentence


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archive_with_a_name_that_fills_the_memory(tmp_path: Path, format: int) -> None:
    pack(tmp_path / "model.tar.gz", *model_members(), member("x" * 2_000_000), format=format)
    assert refused(tmp_path) == (
        f"{tmp_path}/model.tar.gz has a member with a header of more than 1000000 bytes, which no model has; pack a "
        "model's files anew."
    )


def test_archive_without_a_model(tmp_path: Path) -> None:
    pack(tmp_path / "model.tar.gz", member("model/hyperparams.json", 10), *model_members()[:1])
    assert refused(tmp_path) == (
        f"{tmp_path}/model.tar.gz holds no model: model_algo_1-0000.params, hyperparams.json missing; give a model.tar.gz "
        "made by training, with its files at the top."
    )


def test_what_is_wrong_in_an_archive_is_told_with_its_path(tmp_path: Path) -> None:
    pack(tmp_path / "model.tar.gz", *model_members())
    with pytest.raises(UserError) as caught, artifact.unpacked(tmp_path) as directory:
        artifact.load_parameters(directory)
    assert str(caught.value) == (
        f"{tmp_path}/model.tar.gz/model_algo_1-0000.params is damaged and cannot be loaded; unpack the model.tar.gz "
        "again."
    )


@pytest.mark.parametrize("damage", [0, 5_000_000, -20_000_000, -6], ids=["start", "data", "middle", "checksum"])
def test_damaged_archive(tmp_path: Path, trained: Run, damage: int) -> None:
    content = bytearray((trained.base / "output" / "model.tar.gz").read_bytes())
    content[damage] ^= 0xFF
    (tmp_path / "model.tar.gz").write_bytes(content)
    assert refused(tmp_path) == f"{tmp_path}/model.tar.gz is damaged and cannot be unpacked; upload it again."


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"none",
        gzip.compress(b"no archive, but long enough for a header" * 20),
        # Numbers in a header that are none.
        gzip.compress(member("x", 600, pax_headers={"GNU.sparse.map": "a,b"}).tobuf(tarfile.PAX_FORMAT) + bytes(5000)),
        # Headers of headers, nested as deep as they are many.
        gzip.compress(member("x", 0, tarfile.XHDTYPE).tobuf() * 1500),
    ],
    ids=["empty", "no gzip", "no tar", "no number", "nested"],
)
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.tar.gz").write_bytes(content)
    assert refused(tmp_path) == f"{tmp_path}/model.tar.gz is damaged and cannot be unpacked; upload it again."


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        artifact.describe(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no model: model_algo_1-symbol.json, model_algo_1-0000.params, hyperparams.json missing; "
        "unpack a model.tar.gz made by training there."
    )


def test_parameters_are_those_that_mxnet_reads(trained: Run) -> None:
    ours = artifact.load_parameters(trained.base / "model")
    theirs = mx.nd.load(str(trained.base / "model" / "model_algo_1-0000.params"))
    assert list(ours) == [name.split(":")[1] for name in theirs]
    for mine, other in zip(ours.values(), theirs.values(), strict=True):
        assert mine.dtype == np.float32
        assert (mine == other.asnumpy()).all() and mine.shape == other.shape


def parameters(tmp_path: Path, arrays: object) -> bytes:
    mx.nd.save(str(tmp_path / "a.params"), arrays)
    return (tmp_path / "a.params").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: b"\0" + good[1:],
        lambda good: good[:-1],
        lambda good: good + b"\0",
        # More than the machine has: arrays, axes, a side, a name. It is not asked for.
        *(lambda good, at=at: good[:at] + b"\xff\xff\xff\x7f" + good[at + 4 :] for at in (20, 32, 40, 164)),
        # Two negative sides, whose product is positive.
        lambda good: good[:36] + b"\xff" * 16 + good[52:],
        lambda good: good[:-1] + b"\xff",
        lambda good: good.replace(b"arg:b", b"arg:a"),
    ],
    ids=["empty", "magic", "end", "more", "arrays", "axes", "side", "name", "negative", "no text", "name twice"],
)
def test_damaged_parameters(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    good = parameters(tmp_path, {"arg:a": mx.nd.ones((3, 4)), "arg:b": mx.nd.ones(2)})
    path = tmp_path / "model_algo_1-0000.params"
    path.write_bytes(good)
    assert artifact.load_parameters(tmp_path)["b"].tolist() == [1, 1]
    path.write_bytes(damage(good))
    assert path.read_bytes() != good
    with pytest.raises(UserError) as caught:
        artifact.load_parameters(tmp_path)
    assert str(caught.value) == f"{path} is damaged and cannot be loaded; unpack the model.tar.gz again."


@pytest.mark.parametrize(
    "arrays",
    [
        [mx.nd.ones(3)],
        {"a": mx.nd.ones(3, dtype="float16")},
        {"a": mx.nd.ones(3, dtype="int32")},
        {"a": mx.nd.ones((3, 4)).tostype("csr")},
    ],
    ids=["without names", "float16", "int32", "sparse"],
)
def test_parameters_of_another_kind(tmp_path: Path, arrays: object) -> None:
    path = tmp_path / "model_algo_1-0000.params"
    path.write_bytes(parameters(tmp_path, arrays))
    with pytest.raises(UserError) as caught:
        artifact.load_parameters(tmp_path)
    assert str(caught.value) == f"{path} is damaged and cannot be loaded; unpack the model.tar.gz again."


def test_damaged_files(tmp_path: Path, trained: Run) -> None:
    for path in (trained.base / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model_algo_1-0000.params").write_bytes(b"short")
    with pytest.raises(UserError) as caught:
        artifact.load_parameters(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/model_algo_1-0000.params is damaged and cannot be loaded; unpack the model.tar.gz again."
    )
    good = (trained.base / "model" / "model_algo_1-0000.params").read_bytes()
    (tmp_path / "model_algo_1-0000.params").write_bytes(good)
    (tmp_path / "model_algo_1-symbol.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        load_reference(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/model_algo_1-symbol.json is damaged or was written by neither this image's training nor the built-in's."
    )
    (tmp_path / "hyperparams.json").write_text('{"num_classes": "x"}')
    with pytest.raises(UserError) as caught:
        artifact.describe(tmp_path)
    assert str(caught.value) == (
        f'{tmp_path}/hyperparams.json: "num_classes" is missing or wrong; use the file that training wrote.'
    )


def test_a_full_disk_leaves_the_last_good_model(tmp_path: Path, trained: Run) -> None:
    """On a file system of 1 MB: the old files stay whole, the sentence says which path and how much."""
    with disk(tmp_path / "small", megabytes=1) as mounted:
        symbol = artifact.load_symbol((trained.base / "model" / "model_algo_1-symbol.json").read_text())
        artifact.save(mounted, symbol, {"conv0_weight": np.ones(3, dtype=np.float32)}, {"a": "1"}, {})
        good = {path.name: path.read_bytes() for path in mounted.iterdir()}
        with pytest.raises(UserError) as caught:
            artifact.save(mounted, symbol, {"conv0_weight": np.ones(10**6, dtype=np.float32)}, {"a": "1"}, {})
        assert str(caught.value) == (
            f"{mounted} cannot be written (the disk is full; 4000000 bytes are needed); what was saved before "
            "is untouched."
        )
        assert {path.name: path.read_bytes() for path in mounted.iterdir()} == good
        size = sum(path.stat().st_size for path in (trained.base / "model").iterdir())
        with pytest.raises(UserError) as caught:
            artifact.pack(trained.base / "model", mounted / "model.tar.gz")
        assert str(caught.value) == (
            f"{mounted}/model.tar.gz cannot be written (the disk is full; {size} bytes are needed); what was saved before "
            "is untouched."
        )
        assert {path.name: path.read_bytes() for path in mounted.iterdir()} == good


def test_the_parameter_file_has_the_bytes_that_mxnet_writes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shapes = {"arg:a": (3, 4, 1, 2), "aux:b": (5,), "arg:c": (1, 7, 4)}
    arrays = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    parameter_file.write(tmp_path / "ours", arrays)
    mx.nd.save(str(tmp_path / "theirs"), {name: mx.nd.array(array) for name, array in arrays.items()})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
