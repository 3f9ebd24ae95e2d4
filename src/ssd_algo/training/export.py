"""What serving needs of an ended training: the network as ONNX in float32 and, calibrated and scored, in int8."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ssd_algo.contract.container import available_cpus
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.images import NotAnImage, Pixels, decode, to_square
from ssd_algo.data.samples import Sample
from ssd_algo.evaluation.evaluate import Compared, compare, score
from ssd_algo.inference.calibrate import calibrated
from ssd_algo.inference.engines import OpenVINOEngine
from ssd_algo.inference.predictor import Predictor
from ssd_algo.model import artifact
from ssd_algo.training.data import TrainingData
from ssd_algo.training.stopping import Stop, Stopped

logger = logging.getLogger(__name__)

# Beyond this many, further images change the ranges of tensors, or the difference of two scores, by next to nothing.
_CALIBRATED_ON, _SCORED_ON = 200, 1000

# `auto` keeps the int8 network if its mAP is lower by no more than this.
MOST_LOSS = 0.005


def export(directory: Path, hyperparameters: Hyperparameters, data: TrainingData, stop: Stop) -> dict[str, Any]:
    """Put the networks for serving into a model's directory; of a job that is to stop, none.

    A failure is told and costs the export only: serving makes the float32 network of the model itself.

    Returns
    -------
    dict
        For metrics.json: the mAP of each network on the same images, computed as it is served; empty without int8.
    """
    if not artifact.fits_network_file(directory):
        logger.info("The network is too large for ONNX: it is served by MXNet, in float32.")
        return {}
    try:
        stop.check()
        network = artifact.exported(directory)
        artifact.save_network(directory, "float32", network.SerializeToString())
        return (
            {} if hyperparameters.export_int8 == "0" else _export_int8(directory, network, hyperparameters, data, stop)
        )
    except Stopped:
        logger.warning("The job is to stop: there is no int8 network.")
    except Exception as error:  # the job has its model
        logger.warning("A network for serving cannot be made (%s); the model itself is whole.", error)
    return {}


def _export_int8(
    directory: Path, network: onnx.ModelProto, hyperparameters: Hyperparameters, data: TrainingData, stop: Stop
) -> dict[str, Any]:
    """Calibrate, score, and keep what is good enough."""
    side, threads = hyperparameters.image_shape, available_cpus()
    chosen = _some(_images_to_calibrate(data), _CALIBRATED_ON, hyperparameters.seed)
    int8 = calibrated(
        network, side, (square for _, square in _squares(chosen, side, stop)), threads
    ).SerializeToString()
    networks = {"float32": network.SerializeToString(), "int8": int8}
    engines = {precision: OpenVINOEngine(each, side, threads) for precision, each in networks.items()}
    scores = _scores(engines, hyperparameters, data.validation.samples, stop)
    loss = scores["float32"]["mAP"] - scores["int8"]["mAP"]
    kept = hyperparameters.export_int8 == "1" or loss <= MOST_LOSS
    if kept:
        artifact.save_network(directory, "int8", int8)
    logger.info(
        "int8 network: validation mAP %.4f on %d images, float32 %.4f; it is %s (export_int8 %s).",
        scores["int8"]["mAP"],
        scores["images"],
        scores["float32"]["mAP"],
        "kept" if kept else f"left out, as it loses more than {MOST_LOSS}",
        hyperparameters.export_int8,
    )
    return scores | {"int8": scores["int8"] | {"kept": kept}}


def _images_to_calibrate(data: TrainingData) -> Sequence[Sample]:
    """Those of training; a stream's are gone, and those of validation must do."""
    return data.validation.samples if data.piped else data.train.samples


def _some(samples: Sequence[Sample], count: int, seed: int) -> Iterator[Sample]:
    """Up to `count` of the samples, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(samples))[:count]
    return (samples[int(index)] for index in order)


def _squares(samples: Iterable[Sample], side: int, stop: Stop) -> Iterator[tuple[Sample, Pixels]]:
    """Samples and what the network sees of them; images that training has skipped are skipped again."""
    for sample in samples:
        stop.check()
        with contextlib.suppress(NotAnImage):
            yield sample, to_square(decode(sample.encoded()), side)


def _scores(
    engines: dict[str, OpenVINOEngine], hyperparameters: Hyperparameters, samples: Sequence[Sample], stop: Stop
) -> dict[str, Any]:
    """mAP by each engine on up to `_SCORED_ON` of the validation images, spread evenly."""
    hp = hyperparameters
    detectors = {
        precision: Predictor(engine, engine.anchors, hp.image_shape, hp.nms_threshold, hp.nms_topk)
        for precision, engine in engines.items()
    }
    chosen = (samples[index] for index in range(0, len(samples), -(-len(samples) // _SCORED_ON)))
    compared: dict[str, list[Compared]] = {precision: [] for precision in engines}
    for sample, square in _squares(chosen, hp.image_shape, stop):
        for precision, detector in detectors.items():
            (found,) = detector.detect(square[None])
            compared[precision].append(compare(sample, found))
    scores = {precision: {"mAP": score(each, hp.overlap_threshold).mean} for precision, each in compared.items()}
    return {"images": len(compared["int8"]), **scores}
