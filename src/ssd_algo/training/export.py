"""What serving needs of an ended training: the network as ONNX in float32 and, calibrated and scored, in int8."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_algo.contract.container import available_cpus
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.images import NotAnImage, Pixels, decode_square
from ssd_algo.data.samples import Sample
from ssd_algo.errors import SsdAlgoError
from ssd_algo.evaluation.evaluate import compare, score
from ssd_algo.inference import predictor
from ssd_algo.inference.calibrate import calibrated
from ssd_algo.model import artifact
from ssd_algo.training.data import TrainingData
from ssd_algo.training.stopping import Stop, Stopped

logger = logging.getLogger(__name__)

# Beyond this many, further images change the ranges of tensors, or the difference of two scores, by next to nothing.
_CALIBRATED_ON, _SCORED_ON = 200, 1000

# `auto` keeps the int8 network if its mAP is lower by no more than this.
MOST_LOSS = 0.005


def export(directory: Path, hyperparameters: Hyperparameters, data: TrainingData, stop: Stop) -> dict[str, Any]:
    """Put the networks for serving into a model's directory.

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
        network = artifact.exported(directory)
        artifact.save_network(directory, "float32", network.SerializeToString())
        if hyperparameters.export_int8 == "0":
            return {}
        stop.check()
        squares = _squares(
            _some(_images_to_calibrate(data), _CALIBRATED_ON, hyperparameters.seed), hyperparameters, stop
        )
        int8 = calibrated(network, hyperparameters.image_shape, squares, available_cpus())
        artifact.save_network(directory, "int8", int8.SerializeToString())
        scores = _scores(directory, hyperparameters, data.validation.samples, stop)
    except Stopped:
        artifact.remove_network(directory, "int8")
        logger.warning("The job is to stop: there is no int8 network.")
        return {}
    except (SsdAlgoError, RuntimeError, ValueError, OSError) as error:
        logger.warning("The network for int8 serving cannot be made (%s); the model itself is whole.", error)
        artifact.remove_network(directory, "int8")
        return {}
    loss = scores["float32"]["mAP"] - scores["int8"]["mAP"]
    kept = hyperparameters.export_int8 == "1" or loss <= MOST_LOSS
    if not kept:
        artifact.remove_network(directory, "int8")
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


def _squares(samples: Iterator[Sample], hyperparameters: Hyperparameters, stop: Stop) -> Iterator[Pixels]:
    for sample in samples:
        stop.check()
        try:
            yield decode_square(sample.encoded(), hyperparameters.image_shape)[0]
        except NotAnImage:
            continue  # training has said so


def _scores(directory: Path, hyperparameters: Hyperparameters, samples: Sequence[Sample], stop: Stop) -> dict[str, Any]:
    """mAP of both networks on up to `_SCORED_ON` of the validation images, spread evenly."""
    chosen = [samples[index] for index in range(0, len(samples), -(-len(samples) // _SCORED_ON))]
    engines = {
        precision: predictor.load(directory, precision, threads=available_cpus())
        for precision in artifact.NETWORK_FILES
    }
    compared: dict[str, list[Any]] = {precision: [] for precision in engines}
    for sample in chosen:
        stop.check()
        try:
            picture = engines["float32"].prepare(sample.encoded())
        except NotAnImage:
            continue
        for precision, detector in engines.items():
            (found,) = detector.detect(picture.square[None])
            compared[precision].append(compare(sample, found))
    threshold = hyperparameters.overlap_threshold
    scores = {precision: {"mAP": score(each, threshold).mean} for precision, each in compared.items()}
    return {"images": len(compared["int8"]), **scores}
