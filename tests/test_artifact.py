"""The model directory: whole or not at all, clear refusals."""

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import Run

from ssd_algo.errors import UserError
from ssd_algo.model import artifact


def files(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def test_model_directory(trained: Run) -> None:
    assert sorted(path.name for path in (trained.base / "model").iterdir()) == [
        "classes.json",
        "hyperparams.json",
        "model_algo_1-0000.params",
        "model_algo_1-symbol.json",
    ]
    assert json.loads((trained.base / "model" / "classes.json").read_text()) == {
        "0": "circle",
        "1": "square",
        "2": "triangle",
    }
    hyperparameters = json.loads((trained.base / "model" / "hyperparams.json").read_text())
    assert hyperparameters["base_network"] == "resnet-18"
    assert hyperparameters["lr_scheduler_step"] == "6, 7"
    assert hyperparameters["_tuning_objective_metric"] == "validation:mAP"
    assert all(isinstance(value, str) for value in hyperparameters.values())


def test_packed_as_the_platform_would(trained: Run) -> None:
    assert files(trained.base / "output" / "model.tar.gz") == [
        "model_algo_1-symbol.json",
        "model_algo_1-0000.params",
        "hyperparams.json",
        "classes.json",
    ]


def test_unpacked_takes_known_plain_files_only(tmp_path: Path, trained: Run) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        for path in (trained.base / "model").iterdir():
            tar.add(path, arcname=f"./{path.name}")
        for name in ("../evil", "/tmp/evil", "sub/hyperparams.json", "other.txt"):
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("classes.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with artifact.unpacked(tmp_path) as directory:
        for path in (trained.base / "model").iterdir():
            assert (directory / path.name).read_bytes() == path.read_bytes()
        assert len(list(directory.iterdir())) == 4
        assert artifact.describe(directory).class_names == {0: "circle", 1: "square", 2: "triangle"}
    assert not directory.exists()


@pytest.mark.parametrize("damage", [0, 5_000_000, -20_000_000, -6], ids=["start", "data", "middle", "checksum"])
def test_damaged_archive(tmp_path: Path, trained: Run, damage: int) -> None:
    content = bytearray((trained.base / "output" / "model.tar.gz").read_bytes())
    content[damage] ^= 0xFF
    (tmp_path / "model.tar.gz").write_bytes(content)
    with pytest.raises(UserError) as caught, artifact.unpacked(tmp_path):
        pass
    assert str(caught.value) == (f"{tmp_path}/model.tar.gz is damaged and cannot be unpacked; upload it again.")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        artifact.describe(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} holds no model: model_algo_1-symbol.json, model_algo_1-0000.params, hyperparams.json missing; "
        "unpack a model.tar.gz made by training there."
    )


def test_damaged_files(tmp_path: Path, trained: Run) -> None:
    for path in (trained.base / "model").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model_algo_1-0000.params").write_bytes(b"short")
    with pytest.raises(UserError) as caught:
        artifact.load_parameters(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/model_algo_1-0000.params is damaged and cannot be loaded; unpack the model.tar.gz again."
    )
    (tmp_path / "model_algo_1-symbol.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        artifact.load_symbol(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/model_algo_1-symbol.json is damaged or was not written by this image's training."
    )
    (tmp_path / "hyperparams.json").write_text('{"num_classes": "x"}')
    with pytest.raises(UserError) as caught:
        artifact.describe(tmp_path)
    assert str(caught.value) == (
        f'{tmp_path}/hyperparams.json: "num_classes" is missing or wrong; use the file that training wrote.'
    )


def test_a_full_disk_leaves_the_last_good_model(tmp_path: Path, trained: Run) -> None:
    """On a file system of 1 MB: the old files stay whole, the sentence says which path and how much."""
    mounted = tmp_path / "small"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mounted)], capture_output=True).returncode:
        pytest.skip("no right to mount a file system here")
    try:
        symbol = artifact.load_symbol(trained.base / "model")
        artifact.save(mounted, symbol, {"conv0_weight": np.ones(3, dtype=np.float32)}, {"a": "1"}, {})
        good = {path.name: path.read_bytes() for path in mounted.iterdir()}
        with pytest.raises(UserError) as caught:
            artifact.save(mounted, symbol, {"conv0_weight": np.ones(10**6, dtype=np.float32)}, {"a": "1"}, {})
        assert str(caught.value) == (
            f"{mounted} cannot be written (the disk is full; 4000000 bytes are needed); what was saved before "
            "is untouched."
        )
        assert {path.name: path.read_bytes() for path in mounted.iterdir()} == good
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
