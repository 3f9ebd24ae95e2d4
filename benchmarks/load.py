"""The clients of benchmarks/serving.py: many in a closed loop.

They run in a process of their own, so that they cost the one that measures nothing. Times are those of
`time.monotonic`, which all processes of a machine share.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from typing import NamedTuple

MOST_SECONDS = 60.0  # for an answer
_PING_EVERY = 0.1


class Answer(NamedTuple):
    """A request: when its connection was begun, it was begun, all of it was sent (0: never), and it was answered."""

    connected: float
    begun: float
    sent: float
    ended: float
    status: int  # 0: no answer
    may_retry: bool  # whether it says when


def connect(port: int, timeout: float = MOST_SECONDS) -> HTTPConnection:
    return HTTPConnection("127.0.0.1", port, timeout=timeout)


def post(connection: HTTPConnection, body: bytes) -> None:
    connection.request("POST", "/invocations", body, {"Content-Type": "image/jpeg"})


def closed_loop(port: int, body: bytes, clients: int, seconds: float, fresh: bool = False) -> list[Answer]:
    """What so many clients see, each of which sends again as soon as it has an answer.

    They keep their connections; with `fresh` every other one makes a new one for each request.
    """
    until = time.monotonic() + seconds
    with ThreadPoolExecutor(clients) as pool:
        begun = [pool.submit(_client, port, body, until, fresh and number % 2 == 1) for number in range(clients)]
        return [answer for each in begun for answer in each.result()]


def closed_loop_with_pings(port: int, body: bytes, clients: int, seconds: float) -> tuple[list[Answer], list[float]]:
    """The same, and the seconds of each `/ping` meanwhile, ten a second; infinite when it is not 200."""
    pings: list[float] = []
    over = threading.Event()
    pinger = threading.Thread(target=_ping, args=(port, pings, over))
    pinger.start()
    answers = closed_loop(port, body, clients, seconds)
    over.set()
    pinger.join()
    return answers, pings


def _client(port: int, body: bytes, until: float, fresh: bool) -> list[Answer]:
    connection, answers, connected = connect(port), [], 0.0
    while (begun := time.monotonic()) < until:
        sent, status, may_retry = 0.0, 0, False
        try:
            if connection.sock is None:
                connected = begun
                connection.connect()
            post(connection, body)
            sent = time.monotonic()
            response = connection.getresponse()
            response.read()
            status, may_retry = response.status, "Retry-After" in response.headers
        except (OSError, HTTPException):
            connection.close()
        answers.append(Answer(connected, begun, sent, time.monotonic(), status, may_retry))
        if fresh:
            connection.close()
        if not status:
            time.sleep(0.05)  # the server is gone, or not there yet
    connection.close()
    return answers


def _ping(port: int, pings: list[float], over: threading.Event) -> None:
    """As the platform does, each with a connection of its own."""
    while not over.wait(_PING_EVERY):
        connection, begun = connect(port), time.monotonic()
        try:
            connection.request("GET", "/ping")
            response = connection.getresponse()
            response.read()
            pings.append(time.monotonic() - begun if response.status == 200 else float("inf"))
        except (OSError, HTTPException):
            pings.append(float("inf"))
        connection.close()
