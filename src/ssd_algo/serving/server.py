"""The server's process: settings from the environment, gunicorn, signals; `main()`."""

import logging
import os
import sys
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from ssd_algo.contract import gpus, log_lines
from ssd_algo.contract.container import Container, hide_gpus, set_up_mxnet
from ssd_algo.errors import UserError
from ssd_algo.inference import predictor
from ssd_algo.model import artifact
from ssd_algo.serving.app import create_app
from ssd_algo.serving.batcher import InferenceThread

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 25  # for requests in flight at SIGTERM; the platform kills after 30
_THREADS = 16


@dataclass(frozen=True)
class Settings:
    """What the environment says of the server: its port, and where the model is."""

    port: int
    model_directory: Path

    @classmethod
    def from_environment(cls) -> "Settings":
        """
        Raises
        ------
        UserError
            When `SAGEMAKER_BIND_TO_PORT` is no port.
        """
        text = os.environ.get("SAGEMAKER_BIND_TO_PORT") or "8080"
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise UserError(f'SAGEMAKER_BIND_TO_PORT is "{text}"; it must be a port from 1 to 65535.')
        return cls(int(text), Container.from_environment().model_directory)


def main() -> int:
    """Serve until SIGTERM; returns the exit code of a server that did not come up."""
    log_lines.configure_logging()
    print(log_lines.entry_point("serve"), flush=True)
    try:
        settings = Settings.from_environment()
        artifact.describe(settings.model_directory)
    except UserError as error:
        print(f"{error.prefix}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    wrong = _wrong_with_gpus() if gpus.mxnet_is_built_for_gpus() else None
    if wrong:
        logger.warning("%s The CPU is used.", wrong)
        hide_gpus()
    set_up_mxnet(one_shape=False)
    _Server(settings).run()
    return 0


def _wrong_with_gpus() -> str | None:
    """Why this machine's GPUs cannot be used; None where they can, or there are none."""
    try:
        return gpus.without_code(gpus.installed())
    except UserError as error:
        return str(error)


class _Server(BaseApplication):  # type: ignore[misc]
    """gunicorn with one worker process of many threads; only the worker imports mxnet."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        options: dict[str, Any] = {
            "bind": f"0.0.0.0:{self._settings.port}",
            "workers": 1,
            "worker_class": "gthread",
            "threads": _THREADS,
            "graceful_timeout": _GRACE_SECONDS,
            "keepalive": 65,
            "errorlog": "-",
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called in the worker: the application, whose model is loaded while `/ping` already answers 503."""
        inference = InferenceThread(lambda: predictor.load(self._settings.model_directory))
        inference.loading.add_done_callback(_end_when_loading_failed)
        return create_app(inference)


def _end_when_loading_failed(loading: Future[Any]) -> None:
    """A server without a model ends: gunicorn's master leaves when its worker exits with this code."""
    error = loading.exception()
    if error is None:
        return
    sentence = f"{error.prefix}: {error}" if isinstance(error, UserError) else f"AlgorithmError: {error!r}"
    print(sentence, file=sys.stderr, flush=True)
    os._exit(Arbiter.WORKER_BOOT_ERROR)
