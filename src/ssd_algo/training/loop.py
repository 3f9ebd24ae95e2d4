"""The loop over epochs: train, validate, keep the best model, tell the log."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from ssd_algo import whole_files
from ssd_algo.contract import log_lines
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data import progress
from ssd_algo.data.loader import Loader
from ssd_algo.data.stream_loader import StreamLoader
from ssd_algo.errors import UserError
from ssd_algo.inference.predictor import Predictor
from ssd_algo.model import artifact
from ssd_algo.model.export import deploy_symbol
from ssd_algo.model.network import Network, constants, parameter_shapes
from ssd_algo.training import cluster, report, resume, schedule
from ssd_algo.training.checkpoint import Checkpoint, Checkpoints, from_arrays, to_arrays
from ssd_algo.training.data import TrainingData
from ssd_algo.training.export import export
from ssd_algo.training.peers import Peers
from ssd_algo.training.starting_point import build_network_to_train, starting_values
from ssd_algo.training.stopping import STOPPED_BEFORE_FIRST_STEP, Stop, Stopped
from ssd_algo.training.trainer import EpochResult, Trainer
from ssd_algo.training.validation import Validation, finite

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a training is given.

    Attributes
    ----------
    hyperparameters : Hyperparameters
    configuration : dict of strings
        What `hyperparams.json` says.
    data : TrainingData
    weights : Path or None
        Of the backbone, pretrained.
    gpus : int
        GPUs to train on; 0 means the CPU.
    model_directory : Path
    packed_model : Path or None
        Where to pack the model when all is done; None where the platform does it.
    checkpoint_directory : Path or None
    write_metrics : callable
        Leaves metrics.json, and history.csv, among the output.
    write_report : callable
        Leaves report.html there.
    checked : dict
        What data_check.json says.
    started : float
        When the job began, seconds since 1970.
    peers : Peers
        The chief, alone, writes model, checkpoints and metrics.
    """

    hyperparameters: Hyperparameters
    configuration: dict[str, str]
    data: TrainingData
    weights: Path | None
    gpus: int
    model_directory: Path
    packed_model: Path | None
    checkpoint_directory: Path | None
    write_metrics: Callable[[dict[str, Any]], Path]
    write_report: Callable[[str], Path]
    checked: dict[str, Any]
    started: float
    peers: Peers

    @property
    def host(self) -> str:
        """This host's name, for the log."""
        return self.peers.host


class Saver:
    """Makes values of the network's parameters the job's model.

    Attributes
    ----------
    done : bool
        Whether it has: a model that is there may be that of a job before. Hosts that are not the chief have nothing to
        do.
    """

    def __init__(self, job: Job, symbol: mx.sym.Symbol) -> None:
        self._job, self._symbol, self.done = job, symbol, not job.peers.is_chief

    def __call__(self, values: dict[str, NDArray[np.float32]]) -> Path:
        """Save; returns the path of the parameters."""
        job = self._job
        path = artifact.save(job.model_directory, self._symbol, values, job.configuration, dict(job.data.class_names))
        self.done = True
        return path


@dataclass(frozen=True)
class Run:
    """A job's training and what it works with.

    Attributes
    ----------
    job : Job
    loader : Loader or StreamLoader
    trainer : Trainer
    validation : Validation
    checkpoints : Checkpoints
    save : Saver
    stop : Stop
    """

    job: Job
    loader: Loader | StreamLoader
    trainer: Trainer
    validation: Validation
    checkpoints: Checkpoints
    save: Saver
    stop: Stop


def train(job: Job, loader: Loader | StreamLoader, validation_loader: Loader, stop: Stop) -> None:
    """Train for all epochs, until early stopping, or until the job is to stop.

    The best model by validation mAP is what is kept; of a job that is stopped before the first validation, the weights
    as they are. With a folder for checkpoints training goes on where the newest one was made.
    """
    hp = job.hyperparameters
    contexts = _devices(job)
    network = build_network_to_train(hp, job.data)
    symbol = deploy_symbol(network, hp.num_classes, hp.nms_threshold, hp.nms_topk)

    save = Saver(job, symbol)
    whole_files.forget_unfinished(job.model_directory)
    directory = job.checkpoint_directory if job.peers.is_chief else None
    logger.info(_about_checkpoints(job, directory))
    with Checkpoints(directory, hp.checkpoint_minutes) as checkpoints:
        checkpoint = _same_everywhere(job.peers, checkpoints.newest())
        if checkpoint is None:
            values = _same_values_everywhere(job, network)
        else:
            shapes = parameter_shapes(network, hp.image_shape)
            shapes |= {name: each.shape for name, each in constants(network).items()}
            values = resume.values(checkpoint, job.configuration, shapes)
        trainer = Trainer(network, values, hp, contexts, loader.steps(), job.peers)
        predictors = {
            kind: Predictor(engine, network.anchors, hp.image_shape, hp.nms_threshold, hp.nms_topk)
            for kind, engine in trainer.engines().items()
        }
        ready = time.time()
        _print_metrics(job, job.started, {"Total Records Seen": 0}, Meta="init_train_data_iter")
        with Validation(
            hp,
            job.data.class_names,
            job.data.validation,
            validation_loader,
            predictors,
            save,
            job.write_metrics,
            stop,
            job.peers,
        ) as validation:
            run = Run(job, loader, trainer, validation, checkpoints, save, stop)
            try:
                stop.defer()
                if checkpoint:
                    steps = loader.steps()
                    resume.restore(checkpoint, job.configuration, job.data, steps, job.peers, trainer, validation)
                del checkpoint, values  # as large as all that training needs
                if any(job.peers.exchange("stop", stop.requested)):
                    raise Stopped
                _train_epochs(run)
                validation.finish()
                _keep_unvalidated(run)
                last_words = None
            except Stopped:
                validation.finish()
                last_words = _leave_model(run)
            except Exception as error:
                if job.peers.size > 1:
                    job.peers.fail(error)  # at once: threads of this host may wait for others, and others for this one
                raise
            checkpoints.finish()
    job.peers.leave(trainer.close)
    _leave_results(run, ready, last_words is not None)
    if last_words is None:
        _tell_end(run, ready)
    else:
        logger.warning(last_words)
    job.peers.close()


def _leave_results(run: Run, ready: float, stopped: bool) -> None:
    """What the chief, with a model, leaves beside it: networks for serving, the archive, the report."""
    job, validation, stop = run.job, run.validation, run.stop
    if not job.peers.is_chief or not run.save.done:
        return
    begun = time.time()
    served = {} if stopped else export(job.model_directory, job.hyperparameters, job.data, stop)
    if served:
        validation.add_to_metrics({"served": served})
    seconds = {"setup_seconds": ready - job.started, "served_seconds": time.time() - begun}
    if job.packed_model is not None:
        artifact.pack(job.model_directory, job.packed_model)
    report.leave(job, validation, stop, seconds)


def _about_checkpoints(job: Job, directory: Path | None) -> str:
    if not job.peers.is_chief:
        return f"Model and checkpoints are kept by {job.peers.names[0]}."
    if directory is None:
        return log_lines.NO_CHECKPOINTS
    asynchronous = cluster.is_asynchronous(job.hyperparameters, job.peers)
    without = (
        " They hold nothing of the optimizer, which the servers keep (kv_store dist_async)." if asynchronous else ""
    )
    return f"Checkpoints are kept in {directory}.{without}"


def _same_everywhere(peers: Peers, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """The chief's checkpoint at every host; without the best model, of which the chief takes care."""
    if peers.size == 1:
        return checkpoint
    body = b""
    if checkpoint is not None:
        arrays = to_arrays(checkpoint)
        body = to_bytes({name: each for name, each in arrays.items() if not name.startswith("best/")})
    body = peers.share("checkpoint", body)
    return checkpoint if peers.is_chief or not body else from_arrays(from_bytes(body))


def _same_values_everywhere(job: Job, network: Network) -> dict[str, NDArray[np.float32]]:
    """The chief's values to start from at every host."""
    values = {}
    if job.peers.is_chief:
        values = starting_values(network, job.hyperparameters, job.data, job.weights)
    if job.peers.size == 1:
        return values
    return from_bytes(job.peers.share("values", to_bytes(values) if values else b""))


def _devices(job: Job) -> list[mx.Context]:
    contexts = cluster.contexts(job.hyperparameters.devices, job.gpus)
    if job.gpus > mx.context.num_gpus():
        raise UserError(
            f"The machine's driver has {job.gpus} GPUs, but CUDA 11.2 cannot use it, perhaps as it is older; use an "
            "instance with a newer driver (450.80 or above)."
        )
    logger.info("Using %s as training context.", contexts)
    if job.peers.size > 1:
        kind = "dist_async" if cluster.is_asynchronous(job.hyperparameters, job.peers) else "dist_sync"
        logger.info("Gradients of %d hosts meet in KVStore %s.", job.peers.size, kind)
    return contexts


def _train_epochs(run: Run) -> None:
    job, trainer, hp = run.job, run.trainer, run.job.hyperparameters
    if trainer.so_far.epoch >= hp.epochs:
        logger.warning("The checkpoint has %d epochs, and epochs is %d.", trainer.so_far.epoch, hp.epochs)
    for epoch in range(trainer.so_far.epoch, hp.epochs):
        begun = time.time()
        with progress.steps(f"epoch {epoch}", run.loader.steps(), trainer.so_far.batches) as show:
            result = _train_epoch(run, epoch, show)
        logger.info(log_lines.waited(run.loader.waited / result.seconds))
        _log_epoch(job, epoch, result)
        turn = (epoch + 1) % hp.validate_every == 0 or epoch + 1 == hp.epochs
        run.validation.close_epoch(epoch, result, trainer, turn, run.loader.waited)
        logger.info(log_lines.progress(job.host, epoch + 1, hp.epochs))
        seen = {"Total Records Seen": result.examples * (epoch + 1), "Records Since Last Reset": result.examples}
        _print_metrics(job, begun, seen, epoch=epoch, Meta="training_data_iter")
        # Only who may stop waits for the score; others train on meanwhile.
        more = epoch + 1 < hp.epochs
        if more and turn and hp.early_stopping and _no_improvement(run):
            patience = hp.early_stopping_patience
            logger.info("Early stopping: no improvement of the validation mAP for %d epochs.", patience)
            break


def _no_improvement(run: Run) -> bool:
    """Whether the chief, which has the scores, stops early."""
    peers, hp = run.job.peers, run.job.hyperparameters
    found = peers.is_chief and schedule.should_stop(hp, run.validation.wait())
    return bool(peers.exchange("early stopping", found)[0])


def _train_epoch(run: Run, epoch: int, show: Callable[[int, str], None]) -> EpochResult:
    """The rest of an epoch, with the checkpoints that fall into it.

    The one at its end is made before its validation: who goes on from it validates first.

    Parameters
    ----------
    show : callable
        As `progress.steps` makes it.

    Raises
    ------
    Stopped
        When the job is to stop; after a checkpoint.
    """
    trainer, checkpoints, stop, peers = run.trainer, run.checkpoints, run.stop, run.job.peers
    without_model = not artifact.is_there(run.job.model_directory)

    def due() -> bool:
        ended = trainer.so_far.batches == run.loader.steps()
        return checkpoints.enabled and (ended or stop.requested or checkpoints.due())

    def unsaved() -> bool:
        return without_model and not run.save.done

    def wanted() -> bool:
        return stop.requested or unsaved() or due()

    together = Together(peers, run.loader.steps())

    def pause() -> bool:
        loss = trainer.so_far.loss
        show(trainer.so_far.batches, "" if loss is None else f"loss {loss:.3f}")
        return together.pause(trainer, wanted(), stop)

    batches = run.loader.epoch(epoch, trainer.so_far.batches)
    while True:
        result = trainer.train_epoch(epoch, batches, pause)
        if result is not None:
            return result
        if unsaved():
            path = run.save(finite(trainer.values(), epoch, trainer.learning_rate))
            logger.info("The weights after the first step are in %s until the first validation.", path)
        if due():
            steps, configuration = run.loader.steps(), run.job.configuration
            checkpoints.keep(resume.snapshot(configuration, run.job.data, steps, peers.size, trainer, run.validation))
        together.check(stop)


class Together:
    """All hosts pause after the same step, and stop together: a step that one does not take, the others wait for.

    They ask each other about as often as losses are read, so that no step waits for it. One host asks nobody.
    """

    def __init__(self, peers: Peers, steps: int) -> None:
        self._peers, self._steps, self._next = peers, steps, 0
        self._stopped = False

    def pause(self, trainer: Trainer, wanted: bool, stop: Stop) -> bool:
        """Whether to pause after the step that has just been taken; `stop` learns that another host is to stop."""
        step = trainer.so_far.batches
        if self._peers.size == 1:
            return wanted
        if step < self._next and step < self._steps:
            return False
        answers = self._peers.exchange("pause", [wanted, stop.requested, trainer.read_every])
        self._next = step + max(1, min(every for _, _, every in answers))
        # What all have said counts, not `stop`: SIGTERM may have come to this host since.
        self._stopped = any(stopped for _, stopped, _ in answers)
        stop.requested = stop.requested or self._stopped
        return self._stopped or any(wants for wants, _, _ in answers)

    def check(self, stop: Stop) -> None:
        """Go on after a pause, unless all are to stop.

        Raises
        ------
        Stopped
        """
        if self._stopped or (self._peers.size == 1 and stop.requested):
            raise Stopped


def _leave_model(run: Run) -> str:
    """Of a job that is stopped: the best model so far, else the weights as they are; returns what to say at the end."""
    so_far, best = run.trainer.so_far, run.validation.best()
    where = f"Stopped by SIGTERM in epoch {so_far.epoch} after batch {so_far.batches}"
    if not run.job.peers.is_chief:
        return f"{where}; the model is with {run.job.peers.names[0]}."
    if best is not None:
        score, epoch = best
        return f"{where}; the model is the best so far: validation mAP {score:.4f} at epoch {epoch}."
    if so_far.epoch == so_far.batches == 0:
        return STOPPED_BEFORE_FIRST_STEP
    run.save(finite(run.trainer.values(), so_far.epoch, run.trainer.learning_rate))
    return f"{where}; the model is the weights as they are, as there was no validation yet."


def _keep_unvalidated(run: Run) -> None:
    """The weights as they are, where a checkpoint had all the epochs but no validation."""
    if run.job.peers.is_chief and run.validation.best() is None:
        run.save(finite(run.trainer.values(), run.trainer.so_far.epoch, run.trainer.learning_rate))


def _tell_end(run: Run, ready: float) -> None:
    job, done, best = run.job, run.trainer.so_far.epoch, run.validation.best()
    logger.info(log_lines.NO_TEST_DATA)
    milliseconds = {"setuptime": (ready - job.started) * 1000, "totaltime": (time.time() - job.started) * 1000}
    _print_metrics(job, job.started, {"epochs": done} | milliseconds)
    if not run.job.peers.is_chief:
        logger.info("Training finished: the model is with %s.", run.job.peers.names[0])
    elif best is not None:
        logger.info(log_lines.finished(*best))


def _log_epoch(job: Job, epoch: int, result: EpochResult) -> None:
    logger.info(log_lines.train_loss(job.host, epoch, result.batches, "cross_entropy", result.cross_entropy))
    logger.info(log_lines.train_loss(job.host, epoch, result.batches, "smooth_l1", result.smooth_l1))
    logger.info(log_lines.throughput(job.host, result.examples / result.seconds))


def _print_metrics(job: Job, start: float, values: Mapping[str, float], **dimensions: object) -> None:
    print(log_lines.metrics(job.host, start, time.time(), values, **dimensions), flush=True)
