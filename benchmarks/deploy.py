"""What an exported model finds in MXNet, ONNX Runtime and OpenVINO, beside what is served.

    python benchmarks/deploy.py DEPLOY PHOTOS

DEPLOY is a folder that `ssd-algo export` made, PHOTOS a folder of which 100 are taken. A detection agrees when the same
class has a box with an IoU above 0.999; scores are to differ by less than 1e-3.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mxnet as mx
import numpy as np
import onnxruntime
import openvino
from figures import figure
from numpy.typing import NDArray

from ssd_algo.data.boxes import iou
from ssd_algo.data.images import EXTENSIONS, decode, to_square
from ssd_algo.inference import predictor
from ssd_algo.inference.predictor import Detections

_PHOTOS = 100


def main() -> None:
    deploy, photos = Path(sys.argv[1]), Path(sys.argv[2])
    served = predictor.load(deploy / "model")
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in EXTENSIONS)
    chosen = paths[:: max(1, len(paths) // _PHOTOS)][:_PHOTOS]
    squares = [to_square(decode(path.read_bytes()), served.image_shape) for path in chosen]
    expected = [served.detect(square[None])[0] for square in squares]
    figure("deploy/detections", sum(len(each.scores) for each in expected), None, unit="detections")
    for name, rows_of in _runtimes(deploy, served.image_shape).items():
        pairs = [(found, rows_of(square)) for found, square in zip(expected, squares, strict=True)]
        missing, difference = _disagreement(pairs)
        figure(f"deploy/{name}/detections that disagree", missing, 0, better="lower", unit="detections")
        figure(f"deploy/{name}/largest difference of scores", difference, 1e-3, better="lower")


def _runtimes(deploy: Path, side: int) -> dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]]:
    """By name, rows (K, 6) of a square."""
    session = onnxruntime.InferenceSession(deploy / "onnx" / "model.onnx")
    compiled = openvino.Core().compile_model(
        deploy / "openvino" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    (file,) = (deploy / "model").glob("*-symbol.json")
    symbol, arguments, auxiliaries = mx.model.load_checkpoint(str(file).removesuffix("-symbol.json"), 0)
    executor = symbol.simple_bind(mx.cpu(), grad_req="null", data=(1, 3, side, side))
    executor.copy_params_from(arguments, auxiliaries)

    def planes(square: NDArray[np.uint8]) -> NDArray[np.float32]:
        return square.transpose(2, 0, 1)[None].astype(np.float32)

    return {
        "mxnet": lambda square: executor.forward(is_train=False, data=mx.nd.array(planes(square)))[0].asnumpy()[0],
        "onnxruntime": lambda square: session.run(None, {"data": planes(square)})[0][0],
        "openvino": lambda square: compiled(square[None])[0][0].copy(),
    }


def _disagreement(pairs: Sequence[tuple[Detections, NDArray[np.float32]]]) -> tuple[int, float]:
    """Detections without one like them on the other side; the largest difference of two scores of the same."""
    missing, difference = 0, 0.0
    for found, rows in pairs:
        rows = rows[rows[:, 0] >= 0]
        missing += abs(len(rows) - len(found.scores))
        for identity in np.unique(found.classes):
            ours, theirs = found.classes == identity, rows[rows[:, 0] == identity]
            if not len(theirs):
                missing += int(ours.sum())
                continue
            overlaps = iou(found.boxes[ours], theirs[:, 2:])
            best = overlaps.argmax(axis=1)
            same = overlaps.max(axis=1) > 0.999
            missing += int((~same).sum())
            difference = max(difference, float(np.abs(theirs[best, 1] - found.scores[ours])[same].max(initial=0)))
    return missing, difference


if __name__ == "__main__":
    main()
