"""A process that reaches nothing but this machine."""

import socket
from typing import Any

refused: list[str] = []

_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo


def guard() -> None:
    """Refuse, and keep in `refused`, each connection and look-up but those of loopback and of Unix sockets."""
    socket.socket.connect = _guarded_connect  # type: ignore[method-assign]
    socket.getaddrinfo = _guarded_getaddrinfo  # type: ignore[assignment]


def _guarded_connect(self: socket.socket, address: Any) -> None:
    if self.family != socket.AF_UNIX:
        _check(address[0])
    _connect(self, address)


def _guarded_getaddrinfo(host: Any, *arguments: Any, **named: Any) -> Any:
    _check(host)
    return _getaddrinfo(host, *arguments, **named)


def _check(host: Any) -> None:
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    if name not in ("localhost", "::1", "0.0.0.0") and not name.startswith("127."):
        refused.append(name)
        raise OSError(f"{name} is not this machine.")
