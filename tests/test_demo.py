"""`make demo`, but for its training: tests/test_train.py has that."""

import json
import shlex
from pathlib import Path

import cv2
import pytest
from conftest import SERVE, Run

from ssd_algo import demo


def test_the_way_over_a_drawn_dataset(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trained model in the place of a training."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    left = " ".join(shlex.quote(str(trained.base / name)) for name in ("model", "output"))
    copied = f'cp -r {left} "$SAGEMAKER_BASE_DIR"'
    line = "[INFO] #quality_metric: host=algo-1, epoch=0, validation mAP <score>=(0.5)"
    said: list[str] = []
    picture = demo.run(
        ["sh", "-c", f"{copied} && echo '{line}' && echo '[INFO] Training finished.'"], SERVE, said.append
    )
    assert said[0].startswith("Drawing 240 training and 50 validation images of circle, square, triangle below ")
    assert said[2:4] == ["  epoch=0, validation mAP <score>=(0.5)", "Training finished."]
    metrics = json.loads((trained.base / "output" / "data" / "metrics.json").read_text())
    threshold = metrics["evaluation"]["threshold"]
    report = picture.parent / "output" / "data" / "report.html"
    assert said[-2] == f"The report of the training is in {report}"
    assert report.is_file()
    assert said[-1].endswith(
        f" s. The detections of 6 validation images with a score of at least {threshold:.2f}: {picture}"
    )
    assert cv2.imread(str(picture)).shape == (2 * 160 * 2, 3 * 200 * 2, 3)
    assert (picture.parent / "train.log").read_text().startswith(line)
