"""`ssd-algo evaluate`: a model's report on labelled images."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Run
from test_builtin import make
from test_report import Shown, assert_equal_to_metrics, assert_whole_by_itself

from ssd_algo.contract.log_lines import METRIC_DEFINITIONS


def evaluate(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ssd_algo.cli", "evaluate", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr
    return done


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def test_it_says_what_the_training_said(trained: Run, tmp_path: Path) -> None:
    data = trained.base / "input" / "data"
    done = evaluate(tmp_path, trained.base / "model", data)
    assert (done.returncode, done.stderr) == (0, "")
    found = metrics(tmp_path / "evaluation")
    at_training = json.loads((trained.base / "output" / "data" / "metrics.json").read_text())
    (regex,) = (each["Regex"] for each in METRIC_DEFINITIONS if each["Name"] == "validation:mAP")
    logged = [float(value) for value in re.findall(regex, trained.out)]
    evaluation = found["evaluation"]
    assert evaluation["mAP"] == pytest.approx(max(logged), abs=1e-6)
    assert evaluation["mAP"] == pytest.approx(at_training["served"]["float32"]["mAP"], abs=1e-9)
    for identity, each in at_training["evaluation"]["classes"].items():
        assert evaluation["classes"][identity]["AP"] == pytest.approx(each["AP"], abs=1e-6)
        assert evaluation["classes"][identity]["errors"] == each["errors"]
    assert found["evaluated"] == {
        "model": str(trained.base / "model"),
        "channel": "validation",
        "precision": "float32",
        "skipped": 0,
    }
    circle = evaluation["classes"]["0"]
    first, second, third, heads, *rows, path = done.stdout.splitlines()
    assert first == f"channel validation: 30 images, {evaluation['objects']} objects"
    assert second == f"  mAP at an IoU above 0.50  {evaluation['mAP']:.4f}"
    assert third == f"  COCO AP, IoU 0.5 to 0.95  {evaluation['coco']['mean']:.4f}"
    assert heads == "  objects     AP  COCO AP  threshold    F1  class"
    numbers = f"{circle['AP']:.3f}    {circle['coco_AP']:.3f}       {circle['threshold']:.2f}  {circle['F1']:.2f}"
    assert rows[0] == f"  {circle['objects']:7d}  {numbers}  circle"
    assert [row.split()[-1] for row in rows] == ["circle", "square", "triangle"]
    assert path == "evaluation/report.html"
    shown = Shown((tmp_path / path).read_text(encoding="utf-8"))
    assert_whole_by_itself(shown)
    assert_equal_to_metrics(shown, found)
    assert "Report of an evaluation" in shown.text
    assert "A detector with the network resnet-18 at 128 × 128 pixels" in shown.text  # noqa: RUF001
    assert sorted(each.name for each in (tmp_path / "evaluation").iterdir()) == ["metrics.json", "report.html"]


def test_int8_of_an_archive_at_another_iou(trained: Run, tmp_path: Path) -> None:
    archive, data = trained.base / "output" / "model.tar.gz", trained.base / "input" / "data"
    served = json.loads((trained.base / "output" / "data" / "metrics.json").read_text())["served"]
    done = evaluate(tmp_path, archive, data, "--precision", "int8", "--output", "int8")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "int8")["evaluation"]["mAP"] == pytest.approx(served["int8"]["mAP"], abs=1e-9)
    done = evaluate(tmp_path, archive, data, "--precision", "int8", "--output", "int8", "--iou", "0.75")
    assert "  mAP at an IoU above 0.75  " in done.stdout
    evaluation = metrics(tmp_path / "int8")["evaluation"]
    assert evaluation["iou_threshold"] == 0.75
    assert evaluation["mAP"] < served["int8"]["mAP"]


def test_another_channel_with_unreadable_images_and_other_names(trained: Run, tmp_path: Path) -> None:
    data = trained.base / "input" / "data"
    shutil.copytree(data / "validation", tmp_path / "data" / "holdout")
    shutil.copytree(data / "validation_annotation", tmp_path / "data" / "holdout_annotation")
    photos = sorted((tmp_path / "data" / "holdout").iterdir())
    photos[0].write_bytes(b"")  # seen in the check
    whole = photos[1].read_bytes()
    scan = whole.index(b"\xff\xda")
    photos[1].write_bytes(whole[:scan] + b"\xff\xd9")  # seen when it is decoded
    for path in (tmp_path / "data" / "holdout_annotation").iterdir():
        path.write_text(path.read_text().replace("circle", "ring").replace("square", "block"))
    done = evaluate(tmp_path, trained.base / "model", tmp_path / "data", "--channel", "holdout")
    assert done.returncode == 0
    warnings = done.stderr.splitlines()
    assert warnings[:2] == [
        "warning: holdout/validation-0000.jpg: the file is empty; the image is skipped.",
        'warning: class 0 is "circle" in the model, but "ring" in channel holdout, and 1 more are others too; the model\'s '
        "names are used.",
    ]
    assert re.fullmatch(r"holdout/validation-0001\.jpg: .*; the image is skipped\.", warnings[-1])
    assert re.match(r"channel holdout: 28 images, \d+ objects, 2 unreadable ones skipped\n", done.stdout)
    assert metrics(tmp_path / "evaluation")["evaluated"]["skipped"] == 2
    assert done.stdout.splitlines()[4].endswith(" circle")


def test_a_model_of_the_built_in_on_records(trained: Run, tmp_path: Path) -> None:
    make(tmp_path / "model", "resnet-50", 128)
    data = trained.base / "input" / "data"
    (tmp_path / "records").mkdir()
    command = [sys.executable, "-m", "ssd_algo.cli", "pack", data / "validation", data / "validation_annotation"]
    subprocess.run([*command, tmp_path / "records" / "some.rec"], check=True, capture_output=True)
    done = evaluate(tmp_path, "model", f"validation={tmp_path / 'records'}")
    assert (done.returncode, done.stderr) == (0, "")
    found = metrics(tmp_path / "evaluation")
    assert found["evaluation"]["images"] == 30
    assert [each["name"] for each in found["evaluation"]["classes"].values()] == ["circle", "square", "triangle"]


def test_what_cannot_be_evaluated(trained: Run, tmp_path: Path) -> None:
    model, data = trained.base / "model", trained.base / "input" / "data"
    done = evaluate(tmp_path, model, data, "--channel", "holdout")
    assert (done.returncode, done.stderr) == (
        2,
        "ClientError: channel holdout is missing (channels: train, train_annotation, validation, validation_annotation); "
        "give its folder, or name another with --channel.\n",
    )
    for folder in ("few", "few_annotation"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "few" / "a.png"), np.zeros((20, 40, 3), dtype=np.uint8))
    annotation = {"file": "a.png", "image_size": [{"width": 40, "height": 20, "depth": 3}], "annotations": []}
    annotation["annotations"] = [{"class_id": 5, "left": 1, "top": 1, "width": 9, "height": 9}]
    written = tmp_path / "few_annotation" / "a.json"
    written.write_text(json.dumps(annotation))
    given = (model, tmp_path / "few", tmp_path / "few_annotation", "--channel", "few")
    done = evaluate(tmp_path, *given)
    assert (done.returncode, done.stderr) == (
        2,
        f"ClientError: channel few has 6 classes (ids 0 to 5), but {model} has 3; evaluate it on images with its own "
        "classes.\n",
    )
    (tmp_path / "few" / "a.png").write_bytes(b"")
    done = evaluate(tmp_path, *given)
    assert (done.returncode, done.stderr) == (
        2,
        "warning: few/a.png: the file is empty; the image is skipped.\n"
        "ClientError: channel few has no readable, annotated image; check its folders.\n",
    )
    annotation["annotations"] *= 2
    written.write_text(json.dumps(annotation).replace('"left": 1', '"left": "x"'))
    done = evaluate(tmp_path, *given)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "ClientError: channel few has 2 faults; nothing is evaluated."
    assert not (tmp_path / "evaluation").exists()
