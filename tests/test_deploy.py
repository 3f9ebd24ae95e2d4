"""`ssd-algo export`: the same detections in every runtime, by the programs that come with it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import Run
from numpy.typing import NDArray
from test_builtin import make

from ssd_algo.data.images import decode, to_square
from ssd_algo.inference import predictor
from ssd_algo.inference.predictor import Detections

SSD_ALGO = [sys.executable, "-m", "ssd_algo.cli"]


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [*SSD_ALGO, "export", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def folder(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that runs the trained model, with its own int8 network."""
    folder = tmp_path_factory.mktemp("export") / "deploy"
    done = export(trained.base / "output" / "model.tar.gz", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder}: float32 and int8.\n"
    return folder


def run(program: Path, *arguments: object) -> list[dict[str, object]]:
    """What one of the folder's programs prints, started elsewhere."""
    command = [sys.executable, "-W", "ignore", str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=program.parents[1])
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_same(printed: list[dict[str, object]], found: Detections, names: dict[int, str]) -> None:
    identities = {name: identity for identity, name in names.items()}
    assert_same_rows(
        np.asarray([[identities[str(each["class"])], each["score"], *each["box"]] for each in printed]),  # type: ignore[misc]
        found,
    )


def assert_same_rows(rows: NDArray[np.float64], found: Detections) -> None:
    """The same detections; where scores are almost equal their order may differ."""
    expected = np.column_stack([found.classes, found.scores, found.boxes])
    assert rows.shape == expected.shape and len(rows) > 5
    distances = np.abs(rows[:, None] - expected[None]).max(axis=2)
    assert distances.min(axis=0).max() < 1e-4
    assert distances.min(axis=1).max() < 1e-4


@pytest.mark.parametrize(
    ("program", "arguments", "precision"),
    [
        ("detect_mxnet.py", [], "float32"),
        ("detect_onnx.py", [], "float32"),
        ("detect_openvino.py", [], "float32"),
        ("detect_openvino.py", ["model-int8.xml"], "int8"),
    ],
)
def test_programs_find_what_is_served(
    folder: Path, trained: Run, program: str, arguments: list[str], precision: str
) -> None:
    photo = sorted((trained.base / "input" / "data" / "validation").iterdir())[0]
    detector = predictor.load(folder / "model", precision)  # type: ignore[arg-type]
    (found,) = detector.detect(detector.prepare(photo.read_bytes()).square[None])
    assert_same(run(folder / program, photo, *arguments), found, {0: "circle", 1: "square", 2: "triangle"})


def test_programs_are_short(folder: Path) -> None:
    for program in folder.glob("*.py"):
        code = [line for line in program.read_text().splitlines() if line and not line.startswith(("import", "from"))]
        assert len(code) <= 20


def test_int8_in_onnx_runtime(folder: Path, trained: Run) -> None:
    """Its rounding is another: scores within a hundredth."""
    photo = sorted((trained.base / "input" / "data" / "validation").iterdir())[0]
    best = run(folder / "detect_onnx.py", photo, "model-int8.onnx")[0]
    detector = predictor.load(folder / "model", "int8")
    (found,) = detector.detect(detector.prepare(photo.read_bytes()).square[None])
    assert best["score"] == pytest.approx(float(found.scores[0]), abs=0.01)


def test_a_batch_of_images(folder: Path, trained: Run) -> None:
    """All validation images at once, in ONNX Runtime: each as if it came alone."""
    photos = sorted((trained.base / "input" / "data" / "validation").iterdir())
    squares = np.stack([to_square(decode(photo.read_bytes()), 128) for photo in photos])
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    (every,) = session.run(None, {"data": squares.transpose(0, 3, 1, 2).astype(np.float32)})
    assert every.shape == (len(photos), 400, 6)
    for rows, found in zip(every, predictor.load(folder / "model").detect(squares), strict=True):
        count = len(found.scores)
        assert_same_rows(rows[:count], found)
        assert (np.diff(rows[:count, 1]) <= 0).all()
        assert (rows[count:] == -1).all()


def test_a_model_of_the_builtin(tmp_path: Path, trained: Run) -> None:
    """With photos it gets an int8 network too, and what is subtracted from its input is inside."""
    make(tmp_path / "model", "resnet-50", 128)
    photos = trained.base / "input" / "data" / "validation"
    done = export(tmp_path / "model", tmp_path / "out", "--images", photos, "--input-mean", "1,2,3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"{tmp_path}/out: float32 and int8.\n"
        "  The model is one of the built-in algorithm (resnet-50, 128): it is given RGB less (1, 2, 3), as it was asked "
        "for.\n"
        "  int8 is calibrated on 30 photos.\n"
    )
    photo = sorted(photos.iterdir())[0]
    original = predictor.load(tmp_path / "model", input_mean=(1, 2, 3))
    (found,) = original.detect(original.prepare(photo.read_bytes()).square[None])
    names = {0: "0", 1: "1", 2: "2"}  # it has none
    for program in ("detect_mxnet.py", "detect_onnx.py", "detect_openvino.py"):
        assert_same(run(tmp_path / "out" / program, photo), found, names)
    served = predictor.load(tmp_path / "out" / "model")
    (again,) = served.detect(served.prepare(photo.read_bytes()).square[None])
    np.testing.assert_allclose(again.scores, found.scores, atol=1e-4)
    int8 = predictor.load(tmp_path / "out" / "model", "int8")
    (rounded,) = int8.detect(int8.prepare(photo.read_bytes()).square[None])
    assert rounded.scores[:5] == pytest.approx(found.scores[:5], abs=0.05)
    assert (tmp_path / "out" / "model.tar.gz").is_file()


def test_what_is_refused(tmp_path: Path, trained: Run) -> None:
    model = trained.base / "model"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_bytes(b"")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_bytes(b"no photo")
    (tmp_path / "empty").mkdir()
    shutil.copytree(model, tmp_path / "damaged")
    (tmp_path / "damaged" / "model_algo_1-int8.onnx").write_bytes(b"none" * 100)
    for arguments, sentence in (
        ((model, tmp_path / "full"), f"{tmp_path}/full is not empty; give a new folder."),
        (
            (tmp_path / "empty", tmp_path / "new"),
            f"{tmp_path}/empty holds no model: model_algo_1-symbol.json, model_algo_1-0000.params, hyperparams.json "
            "missing; unpack a model.tar.gz made by training there.",
        ),
        (
            (tmp_path / "damaged", tmp_path / "new"),
            f"{tmp_path}/damaged/model_algo_1-int8.onnx is damaged and cannot be loaded; unpack the model.tar.gz again.",
        ),
        (
            (model, tmp_path / "new", "--images", tmp_path / "empty"),
            f"{tmp_path}/empty holds no photo (.jpg, .jpeg, .png); give a folder that does.",
        ),
        (
            (model, tmp_path / "new", "--images", tmp_path / "broken"),
            "No int8 network can be made: there is no image to calibrate with; give photos like those that it will see.",
        ),
        (
            (model, tmp_path / "new", "--input-mean", "1,2,3"),
            f"{model}: an input mean is given, but the model has its own inside; it is for models as the built-in "
            "algorithm left them. Leave it out.",
        ),
        (
            (model, tmp_path / "new", "--input-mean", "1,2"),
            '--input-mean is "1,2"; it must be three numbers from 0 to 255, as "123, 117, 104" or "0, 0, 0".',
        ),
    ):
        done = export(*arguments)
        assert (done.returncode, done.stderr) == (2, f"ClientError: {sentence}\n")
        assert not (tmp_path / "new").exists()


def test_readme_names_what_is_there(folder: Path) -> None:
    text = (folder / "README.txt").read_text()
    for name in (
        "model",
        "onnx",
        "openvino",
        "model.tar.gz",
        "detect_mxnet.py",
        "detect_onnx.py",
        "detect_openvino.py",
    ):
        assert name in text and (folder / name).exists()
    assert "A resnet-18 for 128 x 128 pixels and 3 classes" in text
