"""The files of checkpoints: whole, checked, numbered, kept."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import disk
from safetensors.numpy import load_file

from ssd_algo.errors import UserError
from ssd_algo.training.checkpoint import Checkpoint, Checkpoints, load, numbered, save


def made(value: int, size: int = 1000) -> Checkpoint:
    return Checkpoint({"value": value}, {"a": np.full((size, 2), value, dtype=np.float32), "b": np.float32([0.5])})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-00000000.safetensors"
    save(path, made(3))
    loaded = load(path)
    assert loaded.state == {"value": 3}
    assert list(loaded.arrays) == ["a", "b"]
    assert all((loaded.arrays[name] == made(3).arrays[name]).all() for name in loaded.arrays)
    assert load_file(path)["a"].shape == (1000, 2)  # by the library whose format it is
    assert os.listdir(tmp_path) == [path.name]


def test_every_damage_is_noticed(tmp_path: Path) -> None:
    """One bit anywhere, in the header or in an array, or an end that is missing."""
    path = tmp_path / "checkpoint-00000000.safetensors"
    save(path, made(3, size=20))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(ValueError):
            assert load(path) is None, (place, content[place - 10 : place + 10])
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError):
            load(path)


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path / "checkpoints", 10) as checkpoints:
        for value in range(4):
            checkpoints.keep(made(value))
        checkpoints.finish()
    names = [path.name for path in numbered(tmp_path / "checkpoints")]
    assert names == ["checkpoint-00000003.safetensors", "checkpoint-00000002.safetensors"]
    with Checkpoints(tmp_path / "checkpoints", 10) as checkpoints:
        newest = checkpoints.newest()
        assert newest is not None
        assert newest.state == {"value": 3}


def test_a_damaged_one_is_named_and_the_one_before_it_used_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        save(tmp_path / f"checkpoint-0000000{number}.safetensors", made(number))
    damaged = tmp_path / "checkpoint-00000002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with Checkpoints(tmp_path, 10) as checkpoints:
        newest = checkpoints.newest()
        assert newest is not None
        assert newest.state == {"value": 1}
        checkpoints.keep(made(7))
        checkpoints.finish()
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"{damaged} is damaged (its checksum is another one); the checkpoint before it is used, if there is one."
    ]
    # The new one is the newest by its number, and the one before it is the sound one.
    names = [path.name for path in numbered(tmp_path)]
    assert names == ["checkpoint-00000003.safetensors", "checkpoint-00000001.safetensors"]


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint-00000000.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("ssd_algo.training.checkpoint.FORMAT", 3)
        save(path, made(3))
    with pytest.raises(UserError) as raised:
        load(path)
    assert str(raised.value) == (
        f"{path} has format 3, but this version of ssd-algo reads 2; use the version that wrote it, or an empty folder "
        "for checkpoints."
    )


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    with disk(tmp_path / "disk", megabytes=1) as folder:
        with Checkpoints(folder, 10) as checkpoints:
            checkpoints.keep(made(1))
            checkpoints.finish()
            checkpoints.keep(made(2, size=200_000))
            with pytest.raises(UserError) as raised:
                checkpoints.finish()
        assert str(raised.value) == (
            f"{folder}/checkpoint-00000001.safetensors cannot be written (the disk is full; 1600016 bytes are needed); what "
            "was saved before is kept. Use an instance with a larger volume."
        )
        assert os.listdir(folder) == ["checkpoint-00000000.safetensors"]
        assert load(folder / "checkpoint-00000000.safetensors").state == {"value": 1}


def test_what_is_written_does_not_stop_the_training(tmp_path: Path) -> None:
    """`keep` returns before anything is on the disk, which here is a pipe that takes only its 64 kB."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    pipe = folder / ".checkpoint-00000000.safetensors.part"
    with Checkpoints(folder, 10) as checkpoints:
        os.mkfifo(pipe)
        disk = os.open(pipe, os.O_RDWR)
        checkpoints.keep(made(1, size=100_000))
        taken = 0
        while taken < 800_004:
            taken += len(os.read(disk, 1 << 20))
        with pytest.raises(UserError):  # a pipe cannot be synchronised
            checkpoints.finish()
    os.close(disk)
    assert os.listdir(folder) == []


def test_what_is_not_finite_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    diverged = made(2)
    diverged.arrays["b"][0] = np.inf
    with Checkpoints(tmp_path, 10) as checkpoints:
        checkpoints.keep(made(1))
        checkpoints.keep(diverged)
        checkpoints.finish()
        newest = checkpoints.newest()
    assert newest is not None
    assert newest.state == {"value": 1}
    assert "No checkpoint is written: b is not finite." in caplog.text


def test_a_long_history_is_kept(tmp_path: Path) -> None:
    """Longer than the 100 MB that the header of safetensors may have."""
    path = tmp_path / "checkpoint-00000000.safetensors"
    save(path, Checkpoint({"history": "x" * 101_000_000}, made(1).arrays))
    assert len(load(path).state["history"]) == 101_000_000


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError) as raised, Checkpoints(tmp_path / "file", 10):
        pass
    assert str(raised.value) == (
        f"The folder for checkpoints cannot be written ([Errno 17] File exists: '{tmp_path}/file'); check it and its "
        "permissions."
    )
