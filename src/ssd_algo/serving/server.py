"""The server's process: gunicorn, signals, the watch over the inference thread; `main()`."""

import ctypes
import json
import logging
import os
import re
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any

from flask import Flask
from gunicorn import util
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.http import errors
from gunicorn.workers.gthread import TConn, ThreadWorker

from ssd_algo import __version__
from ssd_algo.contract import gpus, log_lines
from ssd_algo.contract.container import Container, set_up_mxnet
from ssd_algo.errors import UserError
from ssd_algo.inference import predictor
from ssd_algo.model import artifact
from ssd_algo.serving.app import create_app
from ssd_algo.serving.batcher import Batcher
from ssd_algo.serving.metrics import Metrics
from ssd_algo.serving.settings import Settings

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 25  # for requests in flight at SIGTERM; the platform kills after 30
_LAST_START_SECONDS = 18  # after SIGTERM, to begin with an image: what is begun must end in the grace period
_SPARE_THREADS = 16  # beside those of requests: to refuse who finds no place
_PING_THREADS = 4
_REQUEST_LINE = re.compile(rb"\S+ \S+ HTTP/\d\.\d\r")
_MOST_HEADERS = 1 << 16  # bytes, more than gunicorn takes
_SECONDS_OF_A_PART = 20.0  # for the next bytes of a request's headers, or for a client to take the next of an answer
_SECONDS_OF_SILENCE = 2.0  # that a connection may keep a server from ending
_SECONDS_BETWEEN_LOOKS = 0.5  # at the inference thread
_SECONDS_TO_SEE_IT = 3  # for which /ping says that the inference thread hangs before the process ends

# Of glibc's malloc.h
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8

_STATUSES = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
}


def main() -> int:
    """Serve until SIGTERM; returns the exit code of a server that did not come up."""
    log_lines.configure_logging()
    print(log_lines.entry_point("serve"), flush=True)
    directory = Container.from_environment().model_directory
    try:
        settings = Settings.from_environment(os.environ)
        described = artifact.describe(directory)
        artifact.check_precision(directory, settings.precision)
    except UserError as error:
        print(f"{error.prefix}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    logging.getLogger().setLevel(settings.log_level)
    _give_memory_back()
    devices = _usable_gpus()
    if devices:
        set_up_mxnet(one_shape=False)
        if settings.precision == "int8":
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
        lambda: predictor.load(directory, settings.precision, devices, settings.cpus),
        described.class_names,
        about,
    ).run()
    return 0


def _give_memory_back() -> None:
    """Let malloc keep little of what requests have freed: left alone it has a heap for each of the many threads."""
    libc = ctypes.CDLL(None)
    for parameter, value in ((_M_ARENA_MAX, 2), (_M_MMAP_THRESHOLD, 1 << 18)):
        libc.mallopt(parameter, value)


def _usable_gpus() -> int:
    """How many GPUs MXNet can use; none, with a warning, where it cannot use those of the machine."""
    if not gpus.mxnet_is_built_for_gpus():
        return 0
    try:
        found = gpus.installed()
        wrong = gpus.without_code(found)
    except UserError as error:
        found, wrong = [], str(error)
    if wrong:
        logger.warning("%s The CPU is used.", wrong)
        return 0
    return len(found)


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
        options: dict[str, Any] = {
            "bind": f"0.0.0.0:{self._settings.port}",
            "workers": self._settings.workers,
            "worker_class": Worker,
            "threads": self._settings.limits.requests + _SPARE_THREADS,
            "worker_connections": 2000,
            "graceful_timeout": _GRACE_SECONDS,
            "keepalive": 65,
            "timeout": 60,
            "errorlog": "-",
            "control_socket_disable": True,
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called in the worker: the application, whose model is loaded while `/ping` already answers 503."""
        logging.getLogger("gunicorn.error").addFilter(_is_news)
        settings, metrics = self._settings, Metrics()
        metrics.describe(self._about)
        batcher = Batcher(self._load, settings.limits.requests, metrics)
        batcher.loading.add_done_callback(_end_when_loading_failed)
        threading.Thread(target=_watch, args=(batcher, settings), name="watch", daemon=True).start()
        app = create_app(batcher, settings.limits, metrics, self._class_names, settings.default_accept)
        app.extensions["batcher"] = batcher
        return app


class Connection(TConn):  # type: ignore[misc]
    """A connection whose other side can keep neither a thread nor the worker's loop waiting for long."""

    _closing = ThreadPoolExecutor(max_workers=32, thread_name_prefix="closing")

    asks_for_ping = False

    def init(self) -> None:
        super().init()
        self.sock.settimeout(_SECONDS_OF_A_PART)

    def has_headers(self) -> bool:
        """Whether all headers of a request have come; if not, the socket counts as readable when there is more."""
        try:
            come = self.sock.recv(_MOST_HEADERS, socket.MSG_PEEK)
        except OSError:
            come = b""
        self.asks_for_ping = come.startswith(b"GET /ping ")
        line, newline, _ = come.partition(b"\n")
        wrong = newline and not _REQUEST_LINE.fullmatch(line)  # no headers need follow to refuse it
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        complete = b"\r\n\r\n" in come or len(come) >= _MOST_HEADERS or wrong or poll.poll(0)  # nothing more comes
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 if complete else len(come) + 1)
        return bool(complete)

    def close(self, graceful: bool = False) -> None:
        """Close; `graceful` waits up to 2 seconds for the other side, on a thread that has nothing else to do."""
        if graceful:
            self._closing.submit(util.close_graceful, self.sock)
        else:
            super().close()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record is more than that a client was too slow."""
    return not (record.exc_info and isinstance(record.exc_info[1], TimeoutError))


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker process, which answers all that it was sent before it ends, and in JSON whatever it was sent."""

    def init_process(self) -> None:
        self._pings = ThreadPoolExecutor(_PING_THREADS, thread_name_prefix="ping")
        super().init_process()

    def accept(self, listener: Any) -> None:
        """Take a connection; it gets a thread when it has sent a request's headers, or silence could keep all busy."""
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.nr_conns += 1
        connection = Connection(self.cfg, client, address, listener.getsockname())
        connection.set_timeout()
        self.pending_conns.append(connection)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, connection))

    def on_pending_socket_readable(self, conn: Any, client: Any) -> None:
        """A new connection has sent something."""
        if conn.has_headers():
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """A connection that was kept alive has."""
        if conn.has_headers():
            super().on_client_socket_readable(conn, client)

    def enqueue_req(self, conn: Any) -> None:
        """Give a connection a thread; of its own kind for /ping, which must be answered whatever keeps the others."""
        pool = self._pings if conn.asks_for_ping else self.tpool
        answering = pool.submit(self.handle, conn)
        answering.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM."""
        if self.alive and self.wsgi is not None:
            self.wsgi.extensions["batcher"].finish(_LAST_START_SECONDS)
            self.method_queue.defer(self._accept_waiting)
        super().handle_exit(sig, frame)

    def _accept_waiting(self) -> None:
        """Take the connections that clients have made but nobody has accepted: closing the listener resets them."""
        for listener in self.sockets:
            before = -1
            while self.nr_conns != before:
                before = self.nr_conns
                self.accept(listener)
        for conn in self.pending_conns:  # whoever has not begun to send by then
            conn.timeout = min(conn.timeout, time.monotonic() + _SECONDS_OF_SILENCE)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: Exception) -> None:
        """Answer what is no HTTP request."""
        if not isinstance(exc, errors.ParseException):
            super().handle_error(req, client, addr, exc)
            return
        status = _STATUSES.get(type(exc), HTTPStatus.BAD_REQUEST)
        body = json.dumps({"error": f"The request is not HTTP/1.1 as this server takes it: {exc}."}) + "\n"
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        try:
            util.write_nonblock(client, f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        except OSError:
            logger.debug("The sender of a bad request is gone.")


def _watch(batcher: Batcher, settings: Settings) -> None:
    """End the process when its inference thread has died or hangs: the master starts another."""
    while not batcher.loading.done():
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        if batcher.busy_for() > settings.startup_seconds:
            sentence = (
                f"the model is not loaded after {settings.startup_seconds:g} seconds (SAGEMAKER_STARTUP_TIMEOUT)."
            )
            _end(sentence, Arbiter.WORKER_BOOT_ERROR)
    most = settings.limits.hung_seconds
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
