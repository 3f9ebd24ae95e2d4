"""Trouble on the way, as it happens: what the job says, and what is left of it."""

import os
import re
import signal
import subprocess
from pathlib import Path

from conftest import SMALL, TRAIN, Run, assert_refused, disk, environment, read_until, run_train, write_config

from ssd_algo.inference import predictor
from ssd_algo.training import checkpoint


def test_the_disk_for_models_is_full(base: Path) -> None:
    write_config(base, "hyperparameters", SMALL)
    with disk(base / "model", megabytes=1) as folder:
        run = run_train(base)
        size = re.findall(r"; (\d+) bytes are needed", run.failure)[0]
        assert_refused(
            run,
            f"{folder} cannot be written (the disk is full; {size} bytes are needed); what was saved before is untouched.",
        )
        assert 40e6 < int(size) < 60e6  # resnet-18's 12.6 million parameters, 4 bytes each
        assert not any(path.name.endswith((".part", ".params")) for path in folder.iterdir())


def test_the_disk_for_checkpoints_fills_up(base: Path) -> None:
    """Parameters and momentum take 100 MB; with the best model of the first epoch they take 150."""
    write_config(base, "hyperparameters", SMALL | {"epochs": "3"})
    with disk(base / "checkpoints", megabytes=130) as folder:
        run = run_train(base)
        size = re.findall(r"; (\d+) bytes are needed", run.failure)[0]
        assert_refused(
            run,
            f"{folder}/checkpoint-00000001.safetensors cannot be written (the disk is full; {size} bytes are needed); what "
            "was saved before is kept. Use an instance with a larger volume.",
        )
        assert [path.name for path in folder.iterdir()] == ["checkpoint-00000000.safetensors"]
        checkpoint.load(folder / "checkpoint-00000000.safetensors")
    predictor.load(base / "model")


def run_with(base: Path, line: str, trouble: str) -> Run:
    """Train until the log has a line, then make trouble; the ended run."""
    with subprocess.Popen(
        TRAIN, env=environment(base), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        out = read_until(process.stdout, line)
        if trouble == "kill":
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert children
            for child in children:
                os.kill(int(child), signal.SIGKILL)
        else:
            Path(trouble).unlink()
        out += process.stdout.read()
        err = process.stderr.read()
        return Run(base, process.wait(60), out, err)


def test_a_process_that_loads_images_is_killed(base: Path) -> None:
    (base / "checkpoints").mkdir()
    write_config(base, "hyperparameters", SMALL | {"epochs": "1000"})
    run = run_with(base, "Updating the best model", "kill")
    assert run.code == 1
    assert run.failure.splitlines()[0] == (
        "AlgorithmError: A process that loads images ended with exit code -9, perhaps for want of memory."
    )
    predictor.load(base / "model")
    checkpoint.load(checkpoint.numbered(base / "checkpoints")[0])


def test_a_validation_image_vanishes(tmp_path: Path, shapes: Path) -> None:
    data = tmp_path / "input" / "data"
    for channel in shapes.iterdir():
        (data / channel.name).mkdir(parents=True)
        for path in channel.iterdir():
            (data / channel.name / path.name).write_bytes(path.read_bytes())
    (tmp_path / "checkpoints").mkdir()
    write_config(tmp_path, "hyperparameters", SMALL | {"epochs": "1000"})
    image = sorted((data / "validation").iterdir())[3]
    run = run_with(tmp_path, "Updating the best model", str(image))
    assert_refused(run, f"An image cannot be read ([Errno 2] No such file or directory: '{image}').")
    predictor.load(tmp_path / "model")
    checkpoint.load(checkpoint.numbered(tmp_path / "checkpoints")[0])
