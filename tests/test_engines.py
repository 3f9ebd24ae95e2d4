"""One definition of detections, whatever computes the network."""

import os
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import Run, read_images

from ssd_algo.inference import predictor
from ssd_algo.inference.engines import MultiDeviceEngine, MXNetEngine
from ssd_algo.model import artifact


def test_openvino_finds_what_the_saved_model_finds_in_mxnet(trained: Run) -> None:
    """Scores within 1e-3, boxes within half a pixel."""
    ours, reference = (each(trained.base / "model") for each in (predictor.load, predictor.load_reference))
    for sample in read_images(trained.base / "input" / "data", "validation").samples[:10]:
        picture = ours.prepare(sample.encoded())
        (found,), (expected,) = ours.detect(picture.square[None]), reference.detect(picture.square[None])
        sure = min(len(each.above(0.05).scores) for each in (found, expected))
        assert sure > 0
        assert found.scores[:sure] == pytest.approx(expected.scores[:sure], abs=1e-3)
        sides = np.asarray([picture.width, picture.height] * 2)
        for box, identity in zip(expected.boxes[:sure], expected.classes[:sure], strict=True):
            same = found.boxes[found.classes == identity]
            assert (np.abs(same - box) * sides).max(axis=1).min() < 0.5


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_devices_share_a_batch(trained: Run, count: int) -> None:
    model = trained.base / "model"
    symbol, parameters = artifact.load_symbol(artifact.read(model).symbol), artifact.load_parameters(model)
    alone, other = (MXNetEngine(symbol, mx.cpu(index), parameters) for index in (0, 1))
    images = np.random.default_rng(0).integers(0, 256, (count, 128, 128, 3), dtype=np.uint8)
    for found, expected in zip(MultiDeviceEngine([alone, other])(images), alone(images), strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_openvino_tells_nobody_that_it_is_used(tmp_path: Path) -> None:
    """Its package for that is not locked, but comes with OpenVINO where somebody installs it without the lock."""
    code = (
        "import sys\n"
        "from ssd_algo.inference.engines import compile_network\n"
        "try: compile_network(b'', 128, 1)\n"
        "except ValueError: sys.exit(sys.modules['openvino_telemetry'] is not None)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "CI"} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
