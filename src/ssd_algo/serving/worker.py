"""gunicorn's worker process, so that no client can keep the others or /ping waiting."""

import errno
import json
import logging
import re
import select
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

from gunicorn import util
from gunicorn.http import errors
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

logger = logging.getLogger(__name__)

# Seconds for a client: to send headers that do not come at once, to take the next piece of an answer, to begin a
# request once the server is to end, to close its side after the server has closed its own.
_HEADERS, _PIECE, _BEGIN, _CLOSE = 20.0, 20.0, 2.0, 2.0
# Of the grace period at SIGTERM, until when an image must have been begun with.
_LAST_START_SECONDS = 18.0

_PING_THREADS = 4
_MOST_HEADERS = 1 << 16  # bytes to wait for without a thread
_REQUEST_LINE = re.compile(rb"\S+ \S+ HTTP/\d\.\d\r")
_PING = re.compile(rb"GET /ping HTTP/(?:(?!\r\n\r\n|content-length|transfer-encoding).)*\r\n\r\n", re.DOTALL | re.I)

_STATUSES = {
    errors.LimitRequestLine: HTTPStatus.REQUEST_URI_TOO_LONG,
    errors.LimitRequestHeaders: HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    errors.ExpectationFailed: HTTPStatus.EXPECTATION_FAILED,
}

_reading = threading.local()


@contextmanager
def reading_until(deadline: float) -> Iterator[None]:
    """Let this thread read from its connection until a time of `time.monotonic`; then reading raises TimeoutError."""
    _reading.deadline = deadline
    try:
        yield
    finally:
        _reading.deadline = None


class _Unreader(SocketUnreader):  # type: ignore[misc]
    """Bytes of a connection, until a time: gunicorn asks again and again, and a trickle never ends."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.headers_until = time.monotonic() + _HEADERS

    def chunk(self, size_hint: int | None = None) -> bytes:
        left = (getattr(_reading, "deadline", None) or self.headers_until) - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.sock.settimeout(left)
        try:
            return bytes(super().chunk(size_hint))
        finally:
            self.sock.settimeout(_PIECE)


class _Connection(TConn):  # type: ignore[misc]
    """A connection to a client, who may be slow, silent or gone."""

    asks_for_ping = False

    def __init__(self, worker: "Worker", *parts: Any) -> None:
        super().__init__(*parts)
        self._worker = worker

    def init(self) -> None:
        """Prepare for a request; on its thread."""
        if not self.initialized:
            super().init()
            self.parser.unreader = _Unreader(self.sock)
        self.parser.unreader.headers_until = time.monotonic() + _HEADERS
        self.sock.settimeout(_PIECE)

    def has_headers(self) -> bool:
        """Whether a request is worth a thread; if not, the socket counts as readable when there is more."""
        try:
            come = self.sock.recv(_MOST_HEADERS, socket.MSG_PEEK)
        except OSError:
            come = b""
        self.asks_for_ping = bool(_PING.fullmatch(come))
        line, newline, _ = come.partition(b"\n")
        wrong = newline and not _REQUEST_LINE.fullmatch(line)  # no headers need follow to refuse it
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        complete = b"\r\n\r\n" in come or len(come) >= _MOST_HEADERS or wrong or poll.poll(0)  # nothing more comes
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1 if complete else len(come) + 1)
        return bool(complete)

    def close(self, graceful: bool = False) -> None:
        """Close; `graceful` lets the other side close first, or it might lose the answer."""
        if graceful and self._worker.poller is not None:
            self._worker.linger(self)
        else:
            super().close()


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a log record is more than that a client was too slow."""
    return not (record.exc_info and isinstance(record.exc_info[1], TimeoutError))


class Worker(ThreadWorker):  # type: ignore[misc]
    """A worker process, which answers all that it was sent before it ends, and in JSON whatever it was sent."""

    wsgi: Any = None

    def init_process(self) -> None:
        """Called in the new process; serves until the end."""
        logging.getLogger("gunicorn.error").addFilter(_is_news)
        self._pings = ThreadPoolExecutor(_PING_THREADS, thread_name_prefix="ping")
        self._lingering: deque[_Connection] = deque()
        super().init_process()

    def accept(self, listener: Any) -> None:
        """Take a connection; it gets a thread when it has sent a request's headers, or silence could keep all busy."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ECONNABORTED, errno.EMFILE, errno.ENFILE):
                return
            raise
        self.nr_conns += 1
        connection = _Connection(self, self.cfg, client, address, listener.getsockname())
        connection.set_timeout()
        self.pending_conns.append(connection)
        self.poller.register(client, selectors.EVENT_READ, partial(self.on_pending_socket_readable, connection))

    def on_pending_socket_readable(self, conn: _Connection, client: Any) -> None:
        """A new connection has sent something."""
        if conn.has_headers():
            super().on_pending_socket_readable(conn, client)

    def on_client_socket_readable(self, conn: _Connection, client: Any) -> None:
        """A connection that was kept alive has."""
        if conn.has_headers():
            super().on_client_socket_readable(conn, client)

    def enqueue_req(self, conn: _Connection) -> None:
        """Give a connection a thread; of its own kind for /ping, which must be answered whatever keeps the others."""
        pool = self._pings if conn.asks_for_ping else self.tpool
        conn.asks_for_ping = False  # what follows on the connection without a look at it is something else
        answering = pool.submit(self.handle, conn)
        answering.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def linger(self, conn: _Connection) -> None:
        """Close our side of a connection; its other side has a while to close, and nobody waits for it."""
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.setblocking(False)
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._on_lingering_socket_readable, conn))
        except (OSError, ValueError, KeyError):
            util.close(conn.sock)
            return
        conn.timeout = time.monotonic() + _CLOSE
        self.nr_conns += 1
        self._lingering.append(conn)

    def _on_lingering_socket_readable(self, conn: _Connection, client: Any) -> None:
        try:
            ended = not client.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            ended = True
        if ended:
            self._let_go(conn)

    def _let_go(self, conn: _Connection) -> None:
        self._lingering.remove(conn)
        self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        util.close(conn.sock)

    def murder_pending(self) -> None:
        """Close connections whose time is over."""
        super().murder_pending()
        while self._lingering and self._lingering[0].timeout <= time.monotonic():
            self._let_go(self._lingering[0])

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
        for conn in self.pending_conns:
            conn.timeout = min(conn.timeout, time.monotonic() + _BEGIN)

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
