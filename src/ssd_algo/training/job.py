"""The training job, and `main()`: the only catch-all, the failure file, the exit code."""

import errno
import logging
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

from ssd_algo.contract import log_lines
from ssd_algo.contract.container import FAILURE_LIMIT, Container, available_cpus, use_all_cpus
from ssd_algo.contract.hyperparameters import Hyperparameters, final_configuration
from ssd_algo.data.loader import Loader
from ssd_algo.errors import AlgorithmError, SsdAlgoError, UserError
from ssd_algo.training import data

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ssd_algo.inference.predictor import Predictor
    from ssd_algo.model.network import Network
    from ssd_algo.training.data import TrainingData
    from ssd_algo.training.trainer import Trainer

logger = logging.getLogger(__name__)


def main() -> int:
    """Run the job of this container; returns the process's exit code."""
    log_lines.configure_logging()
    container = Container.from_environment()
    print(log_lines.entry_point("train"), flush=True)
    signal.signal(signal.SIGTERM, _stop)
    try:
        run(container)
    except Exception as error:
        cause = classify(error)
        details = "".join(traceback.format_exception(error)) if isinstance(cause, AlgorithmError) else ""
        return fail(container, cause, details)
    return 0


def _stop(*_: object) -> None:
    """End on SIGTERM; as process 1 of a container the signal would else have no effect."""
    logger.warning("Stopped by SIGTERM; the best model so far is kept.")
    sys.exit(0)


def run(container: Container) -> None:
    """Train as the container's configuration says, and leave the best model."""
    started = time.time()
    provided = container.hyperparameters()
    logger.info(log_lines.provided_configuration(str(container.hyperparameters_file), provided))
    hyperparameters = Hyperparameters.parse(provided)
    configuration = final_configuration(provided)
    logger.info(log_lines.final_configuration(configuration))
    host = only_host(container)
    training_data = data.read(container.channels(), hyperparameters.num_classes)
    use_all_cpus()
    samples = training_data.train.samples
    logger.info("Training on %d images, validating on %d.", len(samples), len(training_data.validation.samples))
    with Loader(
        samples, hyperparameters.image_shape, hyperparameters.mini_batch_size, available_cpus(), hyperparameters.seed
    ) as loader:
        train(container, host, hyperparameters, configuration, training_data, loader, started)


def train(
    container: Container,
    host: str,
    hyperparameters: Hyperparameters,
    configuration: dict[str, str],
    training_data: "TrainingData",
    loader: Loader,
    started: float,
) -> None:
    """The loop over epochs. mxnet is imported here: the loader's processes were forked before."""
    from ssd_algo.evaluation.evaluate import evaluate
    from ssd_algo.model import artifact
    from ssd_algo.model.export import deploy_symbol
    from ssd_algo.model.network import build_network
    from ssd_algo.training import cluster, schedule
    from ssd_algo.training.trainer import Trainer

    hp = hyperparameters
    devices = cluster.devices(hp.mini_batch_size)
    logger.info("Using %s as training context.", devices)
    network = build_network(hp.base_network, hp.image_shape, hp.num_classes)
    trainer = Trainer(network, starting_values(network, hp, training_data), hp, devices)
    predictor = make_predictor(trainer, network, hp)
    symbol = deploy_symbol(network, hp.num_classes, hp.nms_threshold, hp.nms_topk)
    scores: list[float] = []
    setup = time.time() - started
    print(
        log_lines.metrics(host, started, time.time(), {"Total Records Seen": 0}, Meta="init_train_data_iter"),
        flush=True,
    )
    for epoch in range(hp.epochs):
        begun = time.time()
        result = trainer.train_epoch(epoch, loader.epoch(epoch))
        logger.info(log_lines.train_loss(host, epoch, result.batches, "cross_entropy", result.cross_entropy))
        logger.info(log_lines.train_loss(host, epoch, result.batches, "smooth_l1", result.smooth_l1))
        logger.info(log_lines.throughput(host, result.examples / result.seconds))
        score = evaluate(predictor, training_data.validation.samples, hp.mini_batch_size, hp.overlap_threshold)
        logger.info(log_lines.validation_map(host, epoch, score.mean))
        logger.info("Average precision by class: %s", named(score.by_class, training_data.class_names))
        if not scores or score.mean > max(scores):
            logger.info(log_lines.best_model(score.mean))
            path = artifact.save(
                container.model_directory, symbol, trainer.values(), configuration, training_data.class_names
            )
            logger.info(log_lines.saved(str(path)))
        scores.append(score.mean)
        logger.info(log_lines.progress(host, epoch + 1, hp.epochs))
        seen = {"Total Records Seen": result.examples * (epoch + 1), "Records Since Last Reset": result.examples}
        print(log_lines.metrics(host, begun, time.time(), seen, epoch=epoch, Meta="training_data_iter"), flush=True)
        if schedule.should_stop(hp, scores):
            logger.info(
                "Early stopping: no improvement of the validation mAP for %d epochs.", hp.early_stopping_patience
            )
            break
    if not container.on_platform:
        artifact.pack(container.model_directory, container.packed_model)
    logger.info(log_lines.NO_TEST_DATA)
    ended = time.time()
    times = {"epochs": len(scores), "setuptime": setup * 1000, "totaltime": (ended - started) * 1000}
    print(log_lines.metrics(host, started, ended, times), flush=True)
    logger.info(log_lines.finished(max(scores), scores.index(max(scores))))


def only_host(container: Container) -> str:
    """This host's name.

    Raises
    ------
    UserError
        When the job has several hosts.
    """
    hosts = container.hosts()
    if len(hosts.all) > 1:
        raise UserError(
            f"The job has {len(hosts.all)} hosts ({', '.join(hosts.all)}), but this version trains on one machine; set "
            "instance_count to 1 and choose an instance with more GPUs."
        )
    return hosts.current


def starting_values(
    network: "Network", hyperparameters: Hyperparameters, training_data: "TrainingData"
) -> "dict[str, NDArray[np.float32]]":
    """Parameters to start from: the model channel's, or drawn; with the network's constants.

    Raises
    ------
    UserError
        When the model channel's model does not fit, or ImageNet weights are asked for.
    """
    import numpy as np

    from ssd_algo.model import artifact
    from ssd_algo.model.network import constants, initial_parameters, parameter_shapes

    if training_data.model is not None:
        directory = artifact.unpacked(training_data.model)
        description = artifact.describe(directory)
        for name in ("base_network", "num_classes"):
            theirs, ours = getattr(description, name), getattr(hyperparameters, name)
            if theirs != ours:
                raise UserError(
                    f"Channel model holds a model with {name} {theirs}, but the hyperparameter {name} is {ours}; they "
                    "must be the same."
                )
        loaded = artifact.load_parameters(directory)
        for name, shape in parameter_shapes(network, hyperparameters.image_shape).items():
            if name not in loaded or loaded[name].shape != shape:
                found = loaded[name].shape if name in loaded else "missing"
                raise UserError(
                    f"Channel model holds a model for image_shape {description.image_shape} that does not fit "
                    f"image_shape {hyperparameters.image_shape}: {name} is {found}, not {shape}; use the model's "
                    "image_shape."
                )
        logger.info("Training starts from the model of channel model.")
        return loaded | constants(network)
    if hyperparameters.use_pretrained_model:
        raise UserError(
            "use_pretrained_model is 1 (the default), but this image holds no ImageNet weights; set "
            "use_pretrained_model to 0, or give a trained model in a channel named model."
        )
    generator = np.random.default_rng(hyperparameters.seed)
    return initial_parameters(network, hyperparameters.image_shape, generator) | constants(network)


def make_predictor(trainer: "Trainer", network: "Network", hyperparameters: Hyperparameters) -> "Predictor":
    """The predictor that serving would use, over the parameters in training."""
    from ssd_algo.inference.predictor import Predictor

    return Predictor(
        trainer.engine(),
        network.anchors,
        hyperparameters.image_shape,
        hyperparameters.nms_threshold,
        hyperparameters.nms_topk,
    )


def named(by_class: dict[int, float], names: dict[int, str]) -> str:
    """Class values for the log: `dog 0.512, cat 0.433`."""
    return ", ".join(f"{names.get(identity, identity)} {value:.3f}" for identity, value in by_class.items())


def classify(error: Exception) -> SsdAlgoError:
    """Whose error this is: one of ours as it is, a full disk or device the user's, anything else ours."""
    if isinstance(error, UserError | AlgorithmError):
        return error
    text = str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: {text}. Use an instance with a larger volume.")
    if isinstance(error, MemoryError) or "out of memory" in text or "bad_alloc" in text:
        return UserError(
            "The device's memory is exhausted; lower mini_batch_size or image_shape, or use an instance "
            "with more memory."
        )
    return AlgorithmError(f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}")


def fail(container: Container, error: SsdAlgoError, details: str) -> int:
    """Tell the platform and the log why the job failed; returns the exit code."""
    assert isinstance(error, UserError | AlgorithmError)
    sentence = f"{error.prefix}: {error}"
    if len(sentence) > FAILURE_LIMIT:
        sentence = sentence[: FAILURE_LIMIT - 1] + "…"
    text = f"{sentence}\n\n{details}" if details else sentence
    try:
        container.write_failure(text)
    except OSError as unwritten:
        print(f"The failure file cannot be written: {unwritten}", file=sys.stderr)
    print(text, file=sys.stderr, flush=True)
    return error.exit_code
