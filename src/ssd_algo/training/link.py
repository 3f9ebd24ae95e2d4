"""A connection between two hosts.

A message is two lengths (header 4 bytes, body 8, big-endian), a header in JSON, and a body.
"""

import contextlib
import json
import queue
import socket
import struct
import threading
from typing import Any

_BEAT = 5.0  # seconds after which who has nothing to say gives a sign of life
_LENGTHS = struct.Struct(">IQ")

Header = dict[str, Any]


class Link:
    """A connection to another host; what is sent waits in a queue, so that a slow host holds up nobody.

    Attributes
    ----------
    silence : int
        Looks since it was last heard of; the watch counts.
    ended : Event
        Set when it has left as agreed.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self.silence, self.ended = connection, 0, threading.Event()
        self._outgoing: queue.SimpleQueue[tuple[Header, bytes] | threading.Event] = queue.SimpleQueue()

    def open(self) -> None:
        """Begin to send, and to give signs of life."""
        self.socket.settimeout(None)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=self._send_queued, name="send", daemon=True).start()

    def send(self, header: Header, body: bytes = b"") -> None:
        """Queue a message."""
        self._outgoing.put((header, body))

    def flushed(self) -> threading.Event:
        """Set when all that was queued before has been sent, or cannot be."""
        sent = threading.Event()
        self._outgoing.put(sent)
        return sent

    def wait_for_end(self, patience: float) -> None:
        """Read over what comes until the other host closes the connection, or nothing has come for so many seconds."""
        self.socket.settimeout(patience)
        with contextlib.suppress(OSError):
            while self.socket.recv(1 << 12):
                pass

    def receive(self, limit: int | None = None) -> tuple[Header, bytes]:
        """The next message's header and body.

        Raises
        ------
        OSError
        ValueError
            When it is none, or longer than the limit.
        """
        header, body = _LENGTHS.unpack(self._exactly(_LENGTHS.size))
        if limit is not None and header + body > limit:
            raise ValueError("it is too long")
        try:
            decoded = json.loads(self._exactly(header))
        except RecursionError as error:
            raise ValueError("it is too deep") from error
        if not isinstance(decoded, dict):
            raise ValueError("its header is no object")
        return decoded, bytes(self._exactly(body))

    def _exactly(self, count: int) -> bytearray:
        found = bytearray(count)
        view, done = memoryview(found), 0
        while done < count:
            received = self.socket.recv_into(view[done:])
            if not received:
                raise ConnectionError("it was closed")
            self.silence = 0
            done += received
        return found

    def _send_queued(self) -> None:
        broken = False  # who listens notices
        while True:
            try:
                item = self._outgoing.get(timeout=_BEAT)
            except queue.Empty:
                item = ({"kind": "beat"}, b"")
            if isinstance(item, threading.Event):
                item.set()
            elif not broken:
                try:
                    header = json.dumps(item[0]).encode()
                    self.socket.sendall(_LENGTHS.pack(len(header), len(item[1])) + header)
                    self.socket.sendall(item[1])
                except OSError:
                    broken = True
