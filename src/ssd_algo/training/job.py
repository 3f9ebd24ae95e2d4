"""The training job, and `main()`: the only catch-all, the failure file, the exit code."""

import contextlib
import dataclasses
import errno
import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ssd_algo.contract import gpus, log_lines
from ssd_algo.contract.container import (
    FAILURE_LIMIT,
    Channel,
    Container,
    available_cpus,
    check_temporary_directory,
    set_up_mxnet,
)
from ssd_algo.contract.hyperparameters import Hyperparameters, final_configuration
from ssd_algo.data import progress
from ssd_algo.data.loader import Loader, Share, Workers
from ssd_algo.data.pipe import Passes
from ssd_algo.data.spool import Spool
from ssd_algo.data.stream_loader import StreamLoader
from ssd_algo.errors import AlgorithmError, UserError
from ssd_algo.model import pretrained
from ssd_algo.training import agreement, checkpoint, data, history, parameter_server
from ssd_algo.training.peers import Lost, Peers
from ssd_algo.training.stopping import STOPPED_BEFORE_FIRST_STEP, Stop

logger = logging.getLogger(__name__)

# How MXNet, cuDNN and cuBLAS say that there is too little memory.
_NO_MEMORY = (
    "out of memory",
    "bad_alloc",
    "Failed to allocate",
    "ALLOC_FAILED",
    "reducing batch/model size",
    "Create cublas handle failed",
)


def main(base: Path | None = None) -> int:
    """Run the job of this container, or of the folder `base`; returns the process's exit code."""
    log_lines.configure_logging()
    container = Container.from_environment(base)
    print(log_lines.entry_point("train"), flush=True)
    stop = Stop()
    stop.listen()
    peers = Peers.alone()
    try:
        container.forget_failure()
        peers = Peers(container.hosts(), classify, functools.partial(end, container, stop))
        stop.before_giving_up = peers.tell_stop
        peers.meet()
        run(container, stop, peers)
    except SystemExit:
        stop.defer()
        logger.warning(STOPPED_BEFORE_FIRST_STEP)
        peers.tell_stop()
        return _leave(peers, 0)
    except Exception as error:
        stop.defer()  # the failure file comes first
        cause = classify(error)
        peers.tell_failure(cause)
        return _leave(peers, fail(container, cause, error))
    finally:
        stop.ignore()
    return 0


def _leave(peers: Peers, code: int) -> int:
    """Among several hosts end at once: MXNet would wait for the others while the interpreter ends."""
    if peers.size > 1:
        _exit(code)
    return code


def end(container: Container, stop: Stop, lost: Lost) -> None:
    """End the process as another host has: with its reason, or, once this host is to stop too, as stopped."""
    code = 1
    try:
        if lost.error is None or stop.requested:
            logger.warning("%s", lost.sentence)
            code = 0
        else:
            code = fail(container, lost.error, lost.cause)
    finally:
        _exit(code)


def _exit(code: int) -> NoReturn:
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run(container: Container, stop: Stop, peers: Peers) -> None:
    """Train as the container's configuration says, and leave the best model."""
    started = time.time()
    check_temporary_directory()
    provided = container.hyperparameters()
    logger.info(log_lines.provided_configuration(str(container.hyperparameters_file), provided))
    found = gpus_to_use(provided.get("devices", ""))
    hyperparameters = Hyperparameters.parse(provided, len(found))
    configuration = final_configuration(provided, hyperparameters)
    logger.info(log_lines.final_configuration(configuration))
    for warning in hyperparameters.warnings():
        logger.warning(warning)
    directory = container.checkpoint_directory()
    if directory is not None and checkpoint.numbered(directory):
        stop.defer()  # there is a model to leave, once the checkpoint is loaded
    channels = container.channels()
    weights = file_of_weights(container, channels, hyperparameters)
    logger.info(log_lines.number_of_gpus(found))
    training_data, checked = read_data(container, channels, hyperparameters)
    count = images_to_train_on(training_data, hyperparameters)
    logger.info("Training on %d images, validating on %d.", count, len(training_data.validation.samples))
    training_data = agreement.agree(peers, configuration, training_data, channels)
    share = agreement.training_share(peers, count, hyperparameters, channels)
    share_of_validation = agreement.validation_share(peers, channels)
    check = stop.check if peers.size == 1 else _never  # several hosts stop together, between two steps
    set_up_mxnet(one_shape=True)
    devices = device_count(hyperparameters, found)
    try:
        with (
            training_loader(training_data, hyperparameters, share, check) as loader,
            validation_loader(training_data, hyperparameters, devices, share_of_validation) as validation,
            parameter_server.running(peers),
        ):
            from ssd_algo.training import loop  # mxnet starts here: the loader's processes have been forked before

            job = loop.Job(
                hyperparameters=hyperparameters,
                configuration=configuration,
                data=training_data,
                weights=weights,
                gpus=len(found),
                model_directory=container.model_directory,
                packed_model=None if container.on_platform or not peers.is_chief else container.packed_model,
                checkpoint_directory=directory,
                write_metrics=functools.partial(write_metrics, container),
                write_report=functools.partial(container.write_text, "report.html"),
                checked=checked,
                started=started,
                peers=peers,
            )
            loop.train(job, loader, validation, stop)
    except Exception as error:
        if _has_no_memory(error):
            raise too_large(hyperparameters, len(found)) from error
        raise


def write_metrics(container: Container, document: dict[str, Any]) -> Path:
    """Leave metrics.json, and its epochs as history.csv; returns the path of the first."""
    container.write_text("history.csv", history.as_csv(document["epochs"]))
    return container.write_output("metrics.json", document)


def _never() -> None:
    """Nothing ends an epoch."""


def images_to_train_on(training_data: data.TrainingData, hyperparameters: Hyperparameters) -> int:
    """How many there are; of a stream, how many the hyperparameter says."""
    return hyperparameters.num_training_samples if training_data.piped else len(training_data.train.samples)


def training_loader(
    training_data: data.TrainingData, hyperparameters: Hyperparameters, share: Share, check: Callable[[], None]
) -> Loader | StreamLoader:
    """Batches to train on; `check` is called while a stream is waited for."""
    hp = hyperparameters
    may_skip = hp.max_bad_records - training_data.train.skipped
    if training_data.piped is None:
        return Loader(
            training_data.train.samples,
            hp.image_shape,
            hp.mini_batch_size,
            available_cpus(),
            hp.seed,
            may_skip=may_skip,
            augmented=hp.augmentation,
            cache_bytes=hp.cache_mb * 10**6,
            share=share,
        )
    # What an image is like shows when it is decoded: to look beforehand costs as much as all else that is read of it.
    channel, rules = training_data.piped, dataclasses.replace(data.rules(hp), headers=False)
    most_boxes = max(1, (hp.label_width - 2) // 5)
    steps = share.steps or -(-hp.num_training_samples // hp.mini_batch_size)
    spool = Spool(hp.spool_mb * 10**6)
    workers = Workers(
        [],
        hp.image_shape,
        hp.mini_batch_size,
        available_cpus(),
        most_boxes,
        hp.seed,
        hp.augmentation,
        draws=share.draws,
    )
    names = training_data.class_names
    passes = Passes(channel.name, channel.location, rules, spool, names, share.first, share.every)
    return StreamLoader(
        passes, workers, hp.mini_batch_size, most_boxes, hp.epochs, steps, hp.seed, may_skip, check=check
    )


def validation_loader(
    training_data: data.TrainingData, hyperparameters: Hyperparameters, devices: int, share: Share
) -> Loader:
    """Batches to score, in order: what one device holds in training, as validation runs on one."""
    return Loader(
        training_data.validation.samples,
        hyperparameters.image_shape,
        -(-hyperparameters.mini_batch_size // devices),
        available_cpus(),
        hyperparameters.seed,
        may_skip=hyperparameters.max_bad_records - training_data.validation.skipped,
        augmented=False,
        shuffled=False,
        share=share,
    )


def gpus_to_use(devices: str) -> list[gpus.Gpu]:
    """The GPUs that the hyperparameter `devices`, which may be wrong yet, asks for.

    Raises
    ------
    UserError
        When there are fewer, MXNet has no code for one, or the driver fails.
    """
    kind, _, number = devices.partition(":")
    if kind == "cpu":
        return []
    found = usable_gpus()
    if kind != "gpu" or not number.isdecimal():
        return found
    if len(found) < int(number):
        raise UserError(
            f"devices is {devices}, but this machine has {len(found)} GPUs that can be used; use auto, or another "
            "instance."
        )
    return found[: int(number)]


def device_count(hyperparameters: Hyperparameters, found: list[gpus.Gpu]) -> int:
    """Over how many devices a batch is split."""
    kind, _, number = hyperparameters.devices.partition(":")
    return int(number) if kind == "cpu" and number else max(1, len(found))


def usable_gpus() -> list[gpus.Gpu]:
    """The GPUs to train on.

    Raises
    ------
    UserError
        When there is one that MXNet has no code for, or the driver fails.
    """
    if not gpus.mxnet_is_built_for_gpus():
        with contextlib.suppress(UserError):  # a driver that fails is nothing to whom it does not matter
            for gpu in gpus.installed()[:1]:
                logger.warning("The GPU %s is not used: this image's MXNet is built for the CPU.", gpu.name)
        return []
    found = gpus.installed()
    wrong = gpus.without_code(found)
    if wrong:
        raise UserError(wrong)
    return found


def file_of_weights(
    container: Container, channels: dict[str, Channel], hyperparameters: Hyperparameters
) -> Path | None:
    """The backbone's pretrained weights: those of a channel before the image's; None where none are wanted.

    Raises
    ------
    UserError
        When they are wanted and are nowhere.
    """
    if hyperparameters.use_pretrained_model and "model" not in channels:
        if "pretrained" in channels:
            return pretrained.in_channel(Path(channels["pretrained"].location))
        return pretrained.in_image(container.pretrained_directory, hyperparameters.base_network)
    if "pretrained" in channels:
        logger.warning("Channel pretrained is not used: use_pretrained_model is 0, or there is a channel model.")
    return None


def read_data(
    container: Container, channels: dict[str, Channel], hyperparameters: Hyperparameters
) -> tuple[data.TrainingData, dict[str, Any]]:
    """Read and check the job's channels; what was found goes to the log and to data_check.json, and is returned.

    Raises
    ------
    UserError
        Naming the worst fault, and how many there are.
    """
    rules = data.rules(hyperparameters)
    training_data, findings, report = data.check(channels, rules, hyperparameters.image_shape, progress.bar)
    try:
        logger.info("The check of the data is in %s", container.write_output("data_check.json", report))
    except OSError as error:
        logger.warning("The check of the data cannot be written (%s).", error)
    for sentence in findings.short_warnings():
        logger.warning(sentence)
    for fault in findings.faults:
        logger.error("%s", fault)
    findings.raise_faults()
    return training_data, report


def classify(error: Exception) -> UserError | AlgorithmError:
    """Whose error this is: one of ours as it is, a full disk or device the user's, anything else ours."""
    if isinstance(error, UserError | AlgorithmError):
        return error
    text = str(error)
    lines = [line for line in text.splitlines() if line.strip()]  # the last says it: MXNet puts a traceback before
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"The disk is full: {text}. Use an instance with a larger volume.")
    if isinstance(error, OSError) and error.filename is not None and error.errno != errno.ENOMEM:
        return UserError(
            f"{error.filename} cannot be read or written ({error.strerror}); check it and its permissions."
        )
    if "no kernel image is available" in text:
        return UserError(f"The GPU is of a kind that MXNet's CUDA build has no code for; use {gpus.THAT_WORK}.")
    if _has_no_memory(error):
        return UserError(
            "The device's memory is exhausted; lower mini_batch_size or image_shape, or use an instance "
            "with more memory."
        )
    return AlgorithmError(f"{type(error).__name__}: {lines[-1].strip() if lines else 'no message'}")


def _has_no_memory(error: Exception) -> bool:
    """Whether MXNet, CUDA or the system could not give the memory asked for."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):
        return True
    return any(each in str(error) for each in _NO_MEMORY)


def too_large(hyperparameters: Hyperparameters, devices: int) -> UserError:
    """What to say when the devices' memory does not hold a step of training."""
    size = hyperparameters.mini_batch_size
    share = f", {-(-size // devices)} images on each of {devices} GPUs" if devices > 1 else ""
    smaller = f"mini_batch_size {max(devices, 1, size // 2)}" if size > max(devices, 1) else "a smaller base_network"
    return UserError(
        f"The memory does not hold mini_batch_size {size} at image_shape {hyperparameters.image_shape}{share}; try "
        f"{smaller}, a smaller image_shape, or an instance with more memory."
    )


def fail(container: Container, error: UserError | AlgorithmError, cause: Exception | None) -> int:
    """Tell the platform and the log why the job failed, and where if it is our fault; returns the exit code."""
    details = "".join(traceback.format_exception(cause)) if cause and isinstance(error, AlgorithmError) else ""
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
