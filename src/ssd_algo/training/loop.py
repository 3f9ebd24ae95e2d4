"""The loop over epochs: train, validate, keep the best model, tell the log."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.contract import log_lines
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.loader import Loader
from ssd_algo.errors import UserError
from ssd_algo.inference.engines import devices
from ssd_algo.inference.predictor import Predictor
from ssd_algo.model import artifact, pretrained
from ssd_algo.model.export import deploy_symbol
from ssd_algo.model.network import Network, build_network, constants, initial_parameters, parameter_shapes
from ssd_algo.training import schedule
from ssd_algo.training.data import TrainingData
from ssd_algo.training.trainer import EpochResult, Trainer
from ssd_algo.training.validation import Validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a training is given.

    Attributes
    ----------
    host : str
        This host's name, for the log.
    hyperparameters : Hyperparameters
    configuration : dict of strings
        What `hyperparams.json` says.
    data : TrainingData
    weights : Path or None
        Of the backbone, pretrained.
    gpus : int
        GPUs that the driver has.
    model_directory : Path
    packed_model : Path or None
        Where to pack the model when all is done; None where the platform does it.
    write_metrics : callable
        Leaves metrics.json among the output.
    started : float
        When the job began, seconds since 1970.
    """

    host: str
    hyperparameters: Hyperparameters
    configuration: dict[str, str]
    data: TrainingData
    weights: Path | None
    gpus: int
    model_directory: Path
    packed_model: Path | None
    write_metrics: Callable[[dict[str, Any]], Path]
    started: float


def train(job: Job, loader: Loader, validation: Loader) -> None:
    """Train for all epochs or until early stopping; the best model by validation mAP is what is kept."""
    hp = job.hyperparameters
    contexts = devices()
    if job.gpus and contexts[0].device_type == "cpu":
        raise UserError(
            f"The machine's driver has {job.gpus} GPUs, but CUDA 11.2 cannot use it, perhaps as it is older; use an "
            "instance with a newer driver (450.80 or above)."
        )
    logger.info("Using %s as training context.", contexts)
    network = build_network(hp.base_network, hp.image_shape, hp.num_classes)
    trainer = Trainer(network, starting_values(network, job), hp, contexts, loader.steps())
    predictors = {
        kind: Predictor(engine, network.anchors, hp.image_shape, hp.nms_threshold, hp.nms_topk)
        for kind, engine in trainer.engines().items()
    }
    symbol = deploy_symbol(network, hp.num_classes, hp.nms_threshold, hp.nms_topk)

    def save(values: dict[str, NDArray[np.float32]]) -> Path:
        return artifact.save(job.model_directory, symbol, values, job.configuration, job.data.class_names)

    ready = time.time()
    _print_metrics(job, job.started, {"Total Records Seen": 0}, Meta="init_train_data_iter")
    with Validation(
        job.host, hp, job.data.class_names, job.data.validation, validation, predictors, save, job.write_metrics
    ) as validating:
        for epoch in range(hp.epochs):
            begun = time.time()
            result = trainer.train_epoch(epoch, loader.epoch(epoch))
            logger.info(log_lines.waited(loader.waited / result.seconds))
            _log_epoch(job, epoch, result)
            turn = (epoch + 1) % hp.validate_every == 0 or epoch + 1 == hp.epochs
            validating.close_epoch(epoch, result, trainer, turn)
            logger.info(log_lines.progress(job.host, epoch + 1, hp.epochs))
            seen = {"Total Records Seen": result.examples * (epoch + 1), "Records Since Last Reset": result.examples}
            _print_metrics(job, begun, seen, epoch=epoch, Meta="training_data_iter")
            # Only who may stop waits for the score; others train on meanwhile.
            if hp.early_stopping and turn and schedule.should_stop(hp, validating.finish()):
                logger.info(
                    "Early stopping: no improvement of the validation mAP for %d epochs.", hp.early_stopping_patience
                )
                break
        validating.finish()
    if job.packed_model is not None:
        artifact.pack(job.model_directory, job.packed_model)
    logger.info(log_lines.NO_TEST_DATA)
    milliseconds = {"setuptime": (ready - job.started) * 1000, "totaltime": (time.time() - job.started) * 1000}
    _print_metrics(job, job.started, {"epochs": epoch + 1} | milliseconds)
    logger.info(log_lines.finished(*validating.best()))


def starting_values(network: Network, job: Job) -> dict[str, NDArray[np.float32]]:
    """Parameters to start from, by name, with the network's constants: the model channel's, or drawn.

    Raises
    ------
    UserError
        When the model channel's model does not fit.
    """
    hp = job.hyperparameters
    if job.data.model is not None:
        with artifact.unpacked(job.data.model) as directory:
            return _values_of_model(network, hp, directory) | constants(network)
    values = initial_parameters(network, hp.image_shape, np.random.default_rng(hp.seed)) | constants(network)
    logger.info(log_lines.start_from_pretrained(hp.use_pretrained_model))
    if job.weights is not None:
        loaded = pretrained.load(job.weights, hp.base_network)
        logger.info(log_lines.loaded_pretrained(len(loaded), hp.base_network, str(job.weights)))
        values |= loaded
    return values


def _values_of_model(network: Network, hp: Hyperparameters, directory: Path) -> dict[str, NDArray[np.float32]]:
    description = artifact.describe(directory)
    for name in ("base_network", "num_classes"):
        theirs, ours = getattr(description, name), getattr(hp, name)
        if theirs != ours:
            raise UserError(
                f"Channel model holds a model with {name} {theirs}, but the hyperparameter {name} is {ours}; they must "
                "be the same."
            )
    loaded = artifact.load_parameters(directory)
    if "anchors" not in loaded:
        raise UserError("Channel model holds a model that was not written by this image's training; give one that was.")
    wanted = parameter_shapes(network, hp.image_shape)
    for name, shape in wanted.items():
        if name not in loaded or loaded[name].shape != shape:
            found = loaded[name].shape if name in loaded else "missing"
            raise UserError(
                f"Channel model holds a model for image_shape {description.image_shape} that does not fit image_shape "
                f"{hp.image_shape}: {name} is {found}, not {shape}; use the model's image_shape."
            )
    logger.info("Training starts from the model of channel model.")
    return {name: loaded[name] for name in wanted}


def _log_epoch(job: Job, epoch: int, result: EpochResult) -> None:
    logger.info(log_lines.train_loss(job.host, epoch, result.batches, "cross_entropy", result.cross_entropy))
    logger.info(log_lines.train_loss(job.host, epoch, result.batches, "smooth_l1", result.smooth_l1))
    logger.info(log_lines.throughput(job.host, result.examples / result.seconds))


def _print_metrics(job: Job, start: float, values: Mapping[str, float], **dimensions: object) -> None:
    print(log_lines.metrics(job.host, start, time.time(), values, **dimensions), flush=True)
