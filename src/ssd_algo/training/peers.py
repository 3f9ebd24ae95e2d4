"""The hosts of a job in touch with each other: met before anything else, missed as soon as one is lost.

The first host by name listens, every other one has a connection to it. Over it go the few things on which hosts must
agree, and signs of life. MXNet's own parameter server, over which gradients go, knows neither: it waits for ever for a
host that is gone.
"""

import collections
import contextlib
import fcntl
import itertools
import json
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.contract.container import Hosts
from ssd_algo.errors import AlgorithmError, UserError
from ssd_algo.training.link import Header, Link

logger = logging.getLogger(__name__)

PORT = 7723

_PATIENCE = 15 * 60.0  # seconds until all hosts must have come: the platform starts them minutes apart
_SAY_AGAIN = 60.0  # seconds between two lines of who waits
_SILENCE = 45  # seconds without a sign of life after which a host is lost; one that was paused for 30 is not
_LAST_WORDS = 3.0  # seconds for telling the others why this host ends
_GREETING = 10.0  # seconds for a greeting, of at most
_LONGEST_GREETING = 1 << 16  # bytes
_GREETINGS = 64  # at once: whatever else is on the network may connect
_SIOCGIFADDR = 0x8915

Error = UserError | AlgorithmError


class Disagreement(UserError):
    """What all hosts find at once, so that all say the same of it."""


@dataclass(frozen=True)
class Lost:
    """Why the job ends on a host in the middle of whatever it does.

    Attributes
    ----------
    error : Error or None
        None where a host was stopped by the platform.
    sentence : str
    cause : Exception or None
        What was raised on this host; None where another one is the reason.
    """

    error: Error | None
    sentence: str
    cause: Exception | None = None


class Peers:
    """The hosts of a job; alone where there is but one, and then nothing here waits or opens a socket.

    Every call that waits for others is made by all hosts in the same order; calls of different tags may cross. When a
    host is lost, `end` is called in another thread, as the main one may wait for it in MXNet: it ends the process.

    Parameters
    ----------
    hosts : Hosts
        Where its network interface is empty or not there, that of the route to the others is used.
    classify : callable
        Whose error an exception is.
    end : callable
        Ends the process for a reason.

    Attributes
    ----------
    rank : int
        This host's number by name; 0 is the chief, which writes what the job leaves.
    """

    def __init__(self, hosts: Hosts, classify: Callable[[Exception], Error], end: Callable[[Lost], None]) -> None:
        if hosts.current not in hosts.all:
            raise UserError(
                f"resourceconfig.json: current_host {hosts.current} is not among the hosts ({', '.join(hosts.all)})."
            )
        self.names, self.rank = hosts.all, hosts.all.index(hosts.current)
        self._interface, self._classify, self._end = hosts.interface, classify, end
        self._links: dict[int, Link] = {}
        self._mail: dict[tuple[str, int], queue.SimpleQueue[bytes]] = collections.defaultdict(queue.SimpleQueue)
        self._lock = threading.Condition()  # of links and mail
        self._met = self._left = False
        self._over = threading.Lock()  # taken by who ends the process, or leaves
        self._watched: list[tuple[str, Popen[bytes]]] = []

    @classmethod
    def alone(cls) -> "Peers":
        """One host."""
        return cls(Hosts("algo-1", ("algo-1",)), lambda error: AlgorithmError(str(error)), lambda _: None)

    @property
    def size(self) -> int:
        """Number of hosts."""
        return len(self.names)

    @property
    def host(self) -> str:
        """This host's name."""
        return self.names[self.rank]

    @property
    def is_chief(self) -> bool:
        return self.rank == 0

    def meet(self, patience: float = _PATIENCE) -> None:
        """Wait until all hosts are there.

        Raises
        ------
        UserError
            When one does not come, or the port is taken.
        """
        if self.size == 1:
            return
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        if self.is_chief:
            self._receive_all(patience)
        else:
            self._call_on_chief(patience)
        logger.info("All %d hosts are here: %s.", self.size, ", ".join(self.names))

    def address(self) -> str:
        """This host's IP address, as the others reach it."""
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                request = struct.pack("256s", self._interface.encode()[:15])
                return socket.inet_ntoa(fcntl.ioctl(any_socket, _SIOCGIFADDR, request)[20:24])
        except OSError:
            if self._interface:
                logger.info("There is no network interface %s: that of the route is used.", self._interface)
        return str(next(iter(self._links.values())).socket.getsockname()[0])

    def gather(self, tag: str, body: bytes) -> list[bytes]:
        """What each host has, by rank, at the chief; nothing at others, which do not wait."""
        if self.is_chief:
            return [body, *(self._mailbox(tag, rank).get() for rank in range(1, self.size))]
        self._links[0].send({"kind": "mail", "tag": tag}, body)
        return []

    def share(self, tag: str, body: bytes = b"") -> bytes:
        """What the chief has, at every host."""
        if not self.is_chief:
            return self._mailbox(tag, 0).get()
        for link in self._links.values():
            link.send({"kind": "mail", "tag": tag}, body)
        return body

    def exchange(self, tag: str, value: Any) -> list[Any]:
        """What each host has, by rank, at every host; of what JSON can hold."""
        if self.size == 1:
            return [value]
        answers = self.gather(tag, json.dumps(value).encode())
        found: list[Any] = json.loads(self.share(tag, json.dumps([json.loads(each) for each in answers]).encode()))
        return found

    def mean(self, tag: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean over all hosts of a float32 array (N,), at every host."""
        if self.size == 1:
            return values
        shares = [np.frombuffer(each, dtype=np.float32) for each in self.gather(tag, values.tobytes())]
        return np.frombuffer(self.share(tag, np.mean(shares, axis=0).tobytes() if shares else b""), dtype=np.float32)

    def watch(self, name: str, process: Popen[bytes]) -> None:
        """From now on the job ends when a process of this host does."""
        self._watched.append((name, process))

    def unwatch(self) -> None:
        """This host's processes may end."""
        self._watched = []

    @contextlib.contextmanager
    def within(self, seconds: float, sentence: str) -> Iterator[None]:
        """End the job, as the user can mend it, when what is done here takes longer."""
        timer = threading.Timer(seconds, self._lose, [Lost(UserError(sentence), sentence)])
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def leave(self, close: Callable[[], None]) -> None:
        """End the training together: all hosts are done, all close what they share, then nobody is missed any more."""
        if self.size == 1:
            return
        self.exchange("done", None)
        self.unwatch()
        close()
        self.exchange("closed", None)
        self._tell_all({"kind": "bye"})
        for link in self._links.values():
            link.ended.wait(_LAST_WORDS)  # who closes before the other has said it seems lost
        self._take_over()
        self._left = True

    def close(self) -> None:
        """After `leave`, end the job: the others when the chief does, which may have had things to write.

        Docker Compose, as in the platform's local mode, stops all of a job's containers when one ends.
        """
        if self.size > 1 and not self.is_chief:
            self._links[0].wait_for_end(_SILENCE)
        for link in self._links.values():
            link.socket.close()

    def fail(self, error: Exception) -> None:
        """End the process, as this host fails; from any thread, where others may wait for ever for what it was to do.

        Several hosts only.
        """
        cause = self._classify(error)
        self._lose(Lost(cause, str(cause), error), self._failure(cause))
        threading.Event().wait()  # for ever: another thread is ending the process

    def tell_failure(self, error: Error) -> None:
        """Tell the others that this host fails, and why; nothing is heard of them any more."""
        self._say_last(self._failure(error))

    def tell_stop(self) -> None:
        """Tell the others that this host was stopped by the platform."""
        self._say_last({"kind": "stopped", "host": self.host})

    def _failure(self, error: Error) -> Header:
        host = "" if isinstance(error, Disagreement) else self.host
        return {"kind": "failed", "host": host, "code": error.exit_code, "sentence": str(error)}

    def _say_last(self, header: Header) -> None:
        if self._links and not self._left:
            self._take_over()
            self._tell_all(header)

    def _take_over(self) -> None:
        """Be the one who ends the process; where another thread is, wait for that."""
        if not self._over.acquire(blocking=False):
            threading.Event().wait()

    def _tell_all(self, header: Header) -> None:
        links = list(self._links.values())
        for link in links:
            link.send(header)
        until = time.monotonic() + _LAST_WORDS
        for sent in [link.flushed() for link in links]:
            sent.wait(max(0.0, until - time.monotonic()))

    def _receive_all(self, patience: float) -> None:
        """The chief: take in every other host."""
        try:
            listener = socket.create_server(("", PORT), backlog=self.size)
        except OSError as error:
            raise UserError(
                f"Port {PORT}, at which the hosts of a job meet, cannot be used ({error.strerror}); end what uses it."
            ) from error
        threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()
        try:
            with self._lock:
                self._wait_for_all(patience)
        finally:
            self._met = True
            listener.shutdown(socket.SHUT_RDWR)  # a close alone would leave it listening while `accept` waits
            listener.close()
        for link in self._links.values():
            link.send({"kind": "mail", "tag": "welcome"})

    def _wait_for_all(self, patience: float) -> None:
        before: list[str] = []
        for again in _times(patience):
            missing = [name for rank, name in enumerate(self.names) if rank and rank not in self._links]
            if not missing:
                return
            if again.over:
                raise UserError(_did_not_come(", ".join(missing), patience))
            if again.say or missing != before:
                here = self.size - len(missing)
                logger.info("Waiting for %s (%d of %d hosts are here).", ", ".join(missing), here, self.size)
            before = missing
            self._lock.wait(1)

    def _accept(self, listener: socket.socket) -> None:
        places = threading.BoundedSemaphore(_GREETINGS)
        while not self._met:
            try:
                connection, _ = listener.accept()
            except OSError:  # it is closed, or the connection already is, or there are too many files
                time.sleep(0.1)
                continue
            places.acquire()
            threading.Thread(target=self._greet, args=(connection, places), name="peer", daemon=True).start()

    def _greet(self, connection: socket.socket, places: threading.BoundedSemaphore) -> None:
        """The chief: hear who has connected, then listen to it if it is one of the job's."""
        link = Link(connection)
        try:
            connection.settimeout(_GREETING)
            header, _ = link.receive(_LONGEST_GREETING)
            name, hosts = str(header["name"]), [str(each) for each in header["hosts"]]
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()  # something else on the network
            return
        finally:
            places.release()
        with self._lock:
            rank = self.names.index(name) if name in self.names else 0
            if rank == 0 or rank in self._links:
                logger.warning("%s is not waited for: its connection is not taken.", name)
                connection.close()
                return
            link.open()
            self._links[rank] = link
            self._lock.notify()
        if hosts != list(self.names):
            self._lose(_as_error(UserError(_other_hosts(self.host, self.names, name, hosts))))
        self._listen(rank, link)

    def _call_on_chief(self, patience: float) -> None:
        """Another host: connect to the chief, and wait until it has all."""
        chief = self.names[0]
        for again in _times(patience):
            if again.over:
                raise UserError(_did_not_come(chief, patience))
            try:
                connection = socket.create_connection((chief, PORT), timeout=5)
                break
            except OSError as error:  # no such name yet, no answer, or nobody listens
                if again.say:
                    logger.info("Waiting for %s (%s).", chief, error.strerror or error)
                time.sleep(again.pause)
        link = self._links[0] = Link(connection)
        link.open()
        link.send({"kind": "hello", "name": self.host, "hosts": self.names})
        threading.Thread(target=self._listen, args=(0, link), name="peer", daemon=True).start()
        for again in _times(patience):
            try:
                self._mailbox("welcome", 0).get(timeout=1)
                return
            except queue.Empty:
                if again.over:
                    raise UserError(_did_not_come("Another host", patience)) from None
                if again.say:
                    logger.info("Waiting for the other hosts.")

    def _mailbox(self, tag: str, rank: int) -> "queue.SimpleQueue[bytes]":
        with self._lock:
            return self._mail[tag, rank]

    def _listen(self, rank: int, link: Link) -> None:
        """Take what another host sends until it is lost or the job ends."""
        try:
            while True:
                header, body = link.receive()
                if header["kind"] == "mail":
                    self._mailbox(header["tag"], rank).put(body)
                elif header["kind"] == "bye":
                    link.ended.set()
                    return
                elif header["kind"] == "failed":
                    self._lose(_failed(header), header)
                elif header["kind"] == "stopped":
                    self._lose(Lost(None, f"Host {header['host']} was stopped: so is the job."), header)
        except (OSError, ValueError):
            self._lose(_gone(self.names[rank], "its connection ended"))

    def _watch(self) -> None:
        """Look after the other hosts, and after this host's processes.

        Silence is counted in looks, so that a host that was itself paused does not miss the others at once.
        """
        while True:
            time.sleep(1)
            for rank, link in list(self._links.items()):
                link.silence += 1
                if link.silence > _SILENCE and not link.ended.is_set():
                    self._lose(_gone(self.names[rank], f"nothing was heard of it for {_SILENCE} seconds"))
            for name, process in list(self._watched):
                if process.poll() is not None:
                    self._lose(_gone(self.host, f"its {name} ended with exit code {process.returncode}"))

    def _lose(self, lost: Lost, header: Header | None = None) -> None:
        """End the process, the others told; once, and not when the job is over or this host ends already."""
        if self._over.acquire(blocking=False):
            if header is None:
                assert lost.error is not None
                header = self._failure(lost.error) | {"host": ""}
            self._tell_all(header)
            self._end(lost)


@dataclass(frozen=True)
class _Time:
    """One of many tries: whether it is the last, whether to say so, and seconds to the next."""

    over: bool
    say: bool
    pause: float


def _times(patience: float) -> Iterator[_Time]:
    """Tries without end, the first at once, then further and further apart; from so many seconds on they are over."""
    said = time.monotonic()
    until = said + patience
    for number in itertools.count():
        now = time.monotonic()
        say = number == 0 or now - said >= _SAY_AGAIN
        said = now if say else said
        yield _Time(now >= until, say, min(5.0, 0.1 * 1.5 ** min(number, 20)))


def _as_error(error: Error) -> Lost:
    return Lost(error, str(error))


def _failed(header: Header) -> Lost:
    sentence = f"Host {header['host']} failed: {header['sentence']}" if header["host"] else header["sentence"]
    kind = UserError if header["code"] == UserError.exit_code else AlgorithmError
    return _as_error(kind(sentence))


def _gone(name: str, reason: str) -> Lost:
    return _as_error(
        AlgorithmError(
            f"Host {name} was lost: {reason}. Start the job again; with a folder for checkpoints it goes on from the "
            "newest one."
        )
    )


def _did_not_come(names: str, patience: float) -> str:
    return (
        f"{names} did not come within {patience / 60:g} minutes; see why in its log, that its resourceconfig.json "
        "has its own name as current_host, and that the security group allows all traffic between the job's hosts."
    )


def _other_hosts(chief: str, ours: Sequence[str], name: str, theirs: Sequence[str]) -> str:
    return (
        f"The hosts of the job are {', '.join(ours)} for {chief}, but {', '.join(theirs)} for {name}; give all hosts "
        "the same resourceconfig.json but for current_host."
    )
