"""Bars on a terminal, and none elsewhere; `ssd-algo train` and `serve`."""

import json
import re
import sys
from pathlib import Path

import pytest
import terminal
from conftest import SMALL, Run, environment, write_config
from terminal import screen

from ssd_algo import demo
from ssd_algo.contract.log_lines import METRIC_DEFINITIONS

CLI = [sys.executable, "-m", "ssd_algo.cli"]
LOG_LINE = r"\[\d\d/\d\d/\d{4} \d\d:\d\d:\d\d [A-Z]+ \d+\] "


def test_a_training_on_a_terminal(base: Path) -> None:
    """Log and bar on the same one; the scoring of the first epoch tells of itself while the second trains."""
    write_config(base, "hyperparameters", SMALL | {"epochs": "2"})
    code, written, _ = terminal.run([*CLI, "train", base])
    assert code == 0, written
    assert "channel train 100%|" in written
    assert re.search(r"\repoch 0 [1-5]/5\|\S.*?\| \d\d:\d\d, \S+ left, loss \d+\.\d{3}", written)
    assert re.search(r"\repoch 1 [1-5]/5\|\S.*?\| \d\d:\d\d, \S+ left", written)
    lines = [line for line in screen(written) if line]
    logged = [line for line in lines if re.match(LOG_LINE, line)]
    assert len(logged) == len(re.findall(LOG_LINE, written)) > 30
    known = ("channel ", "Docker entrypoint called", "#metrics ")
    assert [line for line in lines if line not in logged and not line.startswith(known)] == []
    assert [line for line in logged if "|" in line or line != line.strip()] == []
    assert all(json.loads(line.removeprefix("#metrics ")) for line in lines if line.startswith("#metrics "))
    for definition in METRIC_DEFINITIONS:
        assert len([line for line in logged if re.search(definition["Regex"], line)]) == 2
    assert "Training finished: best validation mAP" in logged[-1]


def test_a_log_has_no_carriage_return(trained: Run) -> None:
    assert "\r" not in trained.out + trained.err
    assert "epoch 0 " not in trained.out + trained.err


def test_a_log_in_a_file_beside_a_terminal(base: Path) -> None:
    code, written, log = terminal.run([*CLI, "train", base], both=False)
    assert code == 2
    assert "\r" not in log
    assert written.splitlines()[-1].startswith(f"ClientError: {base}/input/config/hyperparameters.json is missing; ")


def test_serve(trained: Run, tmp_path: Path) -> None:
    with demo.serving([*CLI, "serve", str(trained.base)], environment(tmp_path), tmp_path / "serve.log") as url:
        photo = next((trained.base / "input" / "data" / "validation").iterdir())
        assert demo.post_image(url, photo.read_bytes())["prediction"]


@pytest.mark.parametrize("command", ["train", "serve"])
def test_a_folder_that_is_not_there(tmp_path: Path, command: str) -> None:
    code, written, _ = terminal.run([*CLI, command, tmp_path / "none"])
    assert code == 2
    assert f"Directory '{tmp_path / 'none'}' does not exist." in written
