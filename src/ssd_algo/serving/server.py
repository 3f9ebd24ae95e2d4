"""The server's process: gunicorn, signals, the watch over the inference thread; `main()`."""

import ctypes
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from ssd_algo import __version__
from ssd_algo.contract import gpus, log_lines
from ssd_algo.contract.container import Container, check_temporary_directory, set_up_mxnet
from ssd_algo.errors import UserError
from ssd_algo.inference import predictor
from ssd_algo.model import artifact
from ssd_algo.serving.app import create_app
from ssd_algo.serving.batcher import Batcher
from ssd_algo.serving.metrics import Metrics
from ssd_algo.serving.settings import Settings
from ssd_algo.serving.worker import Worker

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 25  # for requests in flight at SIGTERM; the platform kills after 30
_SPARE_THREADS = 16  # beside those of requests: to refuse who finds no place
# Open at a time, and how many files are for other things.
_LEAST_CONNECTIONS, _MOST_CONNECTIONS, _OTHER_FILES = 100, 2000, 200
_SECONDS_BETWEEN_LOOKS = 0.5  # at the inference thread
_SECONDS_TO_SEE_IT = 3  # for which /ping says that the inference thread hangs before the process ends

# Of glibc's malloc.h
_M_ARENA_MAX = -8


def main(base: Path | None = None) -> int:
    """Serve this container's model, or the one in the folder `base`, until SIGTERM.

    Returns
    -------
    int
        The exit code of a server that did not come up.
    """
    log_lines.configure_logging()
    print(log_lines.entry_point("serve"), flush=True)
    directory = Container.from_environment(base).model_directory
    try:
        check_temporary_directory()
        settings = Settings.from_environment(os.environ)
        described = artifact.describe(directory)
        artifact.check_input_mean(directory, settings.input_mean)
        devices = gpus.usable()
        if not devices:
            artifact.check_precision(directory, settings.precision)
        _check_port(settings.port)
    except UserError as error:
        print(f"{error.prefix}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    logging.getLogger().setLevel(settings.log_level)
    _give_memory_back()
    _allow_connections()
    if devices or not artifact.fits_network_file(directory):
        set_up_mxnet(one_shape=False)
    if devices and settings.precision == "int8":
        logger.warning("SSD_ALGO_PRECISION is int8, which is for CPUs; the GPU computes in float32.")
    about = {
        "base_network": described.base_network,
        "image_shape": str(described.image_shape),
        "num_classes": str(described.num_classes),
        "precision": "float32" if devices else settings.precision,
        "device": f"{devices} GPUs" if devices else f"{settings.cpus} CPUs",
        "version": __version__,
    }
    logger.info("Serving %s.", ", ".join(f"{name} {value}" for name, value in about.items()))
    Server(
        settings,
        lambda: predictor.load(directory, settings.precision, devices, settings.cpus, settings.input_mean),
        described.class_names,
        about,
    ).run()
    return 0


def _check_port(port: int) -> None:
    """See that the port can be had, as gunicorn would say so in many lines.

    Raises
    ------
    UserError
    """
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("0.0.0.0", port))
        except OSError as error:
            raise UserError(
                f"Port {port} cannot be listened on ({error.strerror}); set SAGEMAKER_BIND_TO_PORT to another."
            ) from error


def _give_memory_back() -> None:
    """Let malloc keep little of what requests have freed: left alone it has a heap for each of the many threads."""
    ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _allow_connections() -> None:
    """Take as many open files as the system allows: a connection is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, with worker processes of many threads.

    Parameters
    ----------
    settings : Settings
    load : callable
        Makes the predictor, in the worker.
    class_names : dict
        Class id to name.
    about : dict
        What `/metrics` says of the model.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[], predictor.Predictor],
        class_names: dict[int, str],
        about: dict[str, str],
    ) -> None:
        self._settings, self._load, self._class_names, self._about = settings, load, class_names, about
        super().__init__()

    def load_config(self) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        connections = _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else files - _OTHER_FILES
        level = logging.getLevelName(max(logging.DEBUG, self._settings.log_level // 10 * 10))
        options: dict[str, Any] = {
            "bind": f"0.0.0.0:{self._settings.port}",
            "workers": self._settings.workers,
            "worker_class": Worker,
            "threads": self._settings.limits.requests + _SPARE_THREADS,
            "worker_connections": min(max(connections, _LEAST_CONNECTIONS), _MOST_CONNECTIONS),
            "graceful_timeout": _GRACE_SECONDS,
            "keepalive": 65,
            "timeout": 60,
            "errorlog": "-",
            "loglevel": level.lower(),
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called in the worker: the application, whose model is loaded while `/ping` already answers 503."""
        settings, metrics = self._settings, Metrics()
        metrics.describe(self._about)
        batcher = Batcher(self._load, settings.limits.requests, metrics)
        batcher.loading.add_done_callback(_end_when_loading_failed)
        threading.Thread(target=_watch, args=(batcher, settings), name="watch", daemon=True).start()
        app = create_app(batcher, settings.limits, metrics, self._class_names, settings.default_accept)
        app.extensions["batcher"] = batcher
        return app


def _watch(batcher: Batcher, settings: Settings) -> None:
    """End the process when its inference thread has died or hangs: the master starts another."""
    while not batcher.loading.done():
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        if batcher.busy_for() > settings.startup_seconds:
            sentence = (
                f"the model is not loaded after {settings.startup_seconds:g} seconds (SAGEMAKER_STARTUP_TIMEOUT)."
            )
            _end(sentence, Arbiter.WORKER_BOOT_ERROR)
    most = settings.limits.seconds
    while batcher.ready():
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        if not batcher.is_alive():
            _end("the inference thread has ended; the server process starts anew.", 1)
        if batcher.busy_for() > most + _SECONDS_TO_SEE_IT:
            _end(f"the inference thread has been busy for {most:g} seconds; the server process starts anew.", 1)


def _end(sentence: str, code: int) -> None:
    """End this process; with `WORKER_BOOT_ERROR` gunicorn's master leaves too."""
    print(f"AlgorithmError: {sentence}", file=sys.stderr, flush=True)
    os._exit(code)


def _end_when_loading_failed(loading: Future[Any]) -> None:
    """A server without a model ends."""
    error = loading.exception()
    if error is None:
        return
    sentence = f"{error.prefix}: {error}" if isinstance(error, UserError) else f"AlgorithmError: {error!r}"
    print(sentence, file=sys.stderr, flush=True)
    os._exit(Arbiter.WORKER_BOOT_ERROR)
