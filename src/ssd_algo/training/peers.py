"""The hosts of a job in touch with each other: met before anything else, missed as soon as one is lost.

The first host by name listens, every other one has a connection to it. Over it go the few things on which hosts must
agree, and signs of life. MXNet's own parameter server, over which gradients go, knows neither: it waits for ever for a
host that is gone.

A message is two lengths (header 4 bytes, body 8, big-endian), a header in JSON, and a body.
"""

import collections
import fcntl
import itertools
import json
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from subprocess import Popen
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.contract.container import Hosts
from ssd_algo.errors import AlgorithmError, SsdAlgoError, UserError

logger = logging.getLogger(__name__)

PORT = 7723

_PATIENCE = 15 * 60.0  # seconds until all hosts must have come: the platform starts them minutes apart
_SAY_AGAIN = 60.0  # seconds between two lines of who waits
_BEAT = 5.0  # seconds after which who has nothing to say gives a sign of life
_SILENCE = 45  # seconds without one after which a host is lost; one that was paused for 30 is not
_LAST_WORDS = 3.0  # seconds for telling the others why this host ends
_LONGEST_GREETING = 1 << 16  # bytes
_SIOCGIFADDR = 0x8915

_LENGTHS = struct.Struct(">IQ")


@dataclass(frozen=True)
class Lost:
    """Why the job ends on a host though it did nothing wrong.

    Attributes
    ----------
    error : SsdAlgoError or None
        None where a host was stopped by the platform.
    sentence : str
    """

    error: SsdAlgoError | None
    sentence: str


class Peers:
    """The hosts of a job; alone where there is but one, and then nothing here waits or opens a socket.

    Every call that waits for others is made by all hosts in the same order; calls of different tags may cross. When a
    host is lost, `end` is called in another thread, as the main one may wait for it in MXNet: it ends the process.

    Parameters
    ----------
    hosts : Hosts
        Where its network interface is empty or not there, that of the route to the others is used.
    end : callable
        Ends the process for a reason.

    Attributes
    ----------
    rank : int
        This host's number by name; 0 is the chief, which writes what the job leaves.
    """

    def __init__(self, hosts: Hosts, end: Callable[[Lost], None]) -> None:
        if hosts.current not in hosts.all:
            raise UserError(
                f"resourceconfig.json: current_host {hosts.current} is not among the hosts ({', '.join(hosts.all)})."
            )
        self.names, self.rank = hosts.all, hosts.all.index(hosts.current)
        self._interface, self._end = hosts.interface, end
        self._links: dict[int, _Link] = {}
        self._mail: dict[tuple[str, int], queue.SimpleQueue[bytes]] = collections.defaultdict(queue.SimpleQueue)
        self._lock = threading.Condition()  # of links and mail
        self._over = threading.Lock()  # taken by who ends the process, or leaves
        self._left = False
        self._watched: list[tuple[str, Popen[bytes]]] = []

    @classmethod
    def alone(cls) -> "Peers":
        """One host."""
        return cls(Hosts("algo-1", ("algo-1",)), lambda _: None)

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
            return [body, *(self._taken(tag, rank) for rank in range(1, self.size))]
        self._links[0].send({"kind": "mail", "tag": tag}, body)
        return []

    def share(self, tag: str, body: bytes = b"") -> bytes:
        """What the chief has, at every host."""
        if not self.is_chief:
            return self._taken(tag, 0)
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

    def leave(self, close: Callable[[], None]) -> None:
        """End the job together: all hosts are done, all close what they share, then nobody is missed any more."""
        if self.size == 1:
            return
        self.exchange("done", None)
        self._watched = []
        close()
        self.exchange("closed", None)
        for link in self._links.values():
            link.send({"kind": "bye"})
        for link in self._links.values():
            link.ended.wait(_LAST_WORDS)  # who closes before the other has said it seems lost
        self._over.acquire()
        self._left = True
        for link in self._links.values():
            link.flush()
            link.socket.close()

    def tell_failure(self, error: SsdAlgoError) -> None:
        """Tell the others that this host fails, and why; nothing is heard of them any more."""
        self._say_last({"kind": "failed", "host": self.host, "code": _code(error), "sentence": str(error)})

    def tell_stop(self) -> None:
        """Tell the others that this host was stopped by the platform."""
        self._say_last({"kind": "stopped", "host": self.host})

    def _say_last(self, header: dict[str, Any]) -> None:
        if not self._links or self._left:
            return
        if not self._over.acquire(blocking=False):
            threading.Event().wait()  # for ever: another thread is ending the process, and writes its reason
        self._tell_all(header)

    def _tell_all(self, header: dict[str, Any]) -> None:
        for link in list(self._links.values()):
            link.send(header)
        for link in list(self._links.values()):
            link.flush()

    def _receive_all(self, patience: float) -> None:
        """The chief: take in every other host."""
        try:
            listener = socket.create_server(("", PORT), backlog=self.size)
        except OSError as error:
            raise UserError(
                f"Port {PORT}, at which the hosts of a job meet, cannot be used ({error.strerror}); end what uses it."
            ) from error
        with listener:
            threading.Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()
            with self._lock:
                before: list[str] = []
                for again in _times(patience):
                    missing = [name for rank, name in enumerate(self.names) if rank and rank not in self._links]
                    if not missing:
                        break
                    if again.over:
                        raise UserError(_did_not_come(", ".join(missing), patience))
                    if again.say or missing != before:
                        here = self.size - len(missing)
                        logger.info("Waiting for %s (%d of %d hosts are here).", ", ".join(missing), here, self.size)
                    before = missing
                    self._lock.wait(1)
        for link in self._links.values():
            link.send({"kind": "mail", "tag": "welcome"})

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed: all are here
                return
            threading.Thread(target=self._greet, args=(connection,), name="peer", daemon=True).start()

    def _greet(self, connection: socket.socket) -> None:
        """The chief: hear who has connected, then listen to it if it is one of the job's."""
        link = _Link(connection)
        try:
            header, _ = link.receive(_LONGEST_GREETING)
            name, hosts = header["name"], header["hosts"]
        except (OSError, ValueError, KeyError, TypeError):
            connection.close()  # something else on the network
            return
        with self._lock:
            rank = self.names.index(name) if name in self.names else 0
            if hosts != list(self.names) or rank == 0 or rank in self._links:
                link.send({"kind": "refused", "hosts": self.names})
                link.flush()
                connection.close()
                return
            self._links[rank] = link
            self._lock.notify()
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
        connection.settimeout(None)
        link = self._links[0] = _Link(connection)
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

    def _taken(self, tag: str, rank: int) -> bytes:
        return self._mailbox(tag, rank).get()

    def _listen(self, rank: int, link: "_Link") -> None:
        """Take what another host sends until it is lost or the job ends."""
        name = self.names[rank]
        try:
            while True:
                header, body = link.receive()
                if header["kind"] == "mail":
                    self._mailbox(header["tag"], rank).put(body)
                elif header["kind"] == "bye":
                    link.ended.set()
                    return
                elif header["kind"] == "refused":
                    self._lose(Lost(UserError(_other_hosts(name, header["hosts"], self.names)), ""))
                elif header["kind"] == "failed":
                    self._lose(_failed(header), header)
                elif header["kind"] == "stopped":
                    self._lose(Lost(None, f"Host {header['host']} was stopped: so is the job."), header)
        except (OSError, ValueError):
            self._lose(_gone(name, "its connection ended"))

    def _watch(self) -> None:
        """Look after the other hosts, and after this host's processes.

        Silence is counted in looks, so that a host that was itself paused does not miss the others at once.
        """
        for _ in itertools.count():
            time.sleep(1)
            for rank, link in list(self._links.items()):
                link.silence += 1
                if link.silence > _SILENCE and not link.ended.is_set():
                    self._lose(_gone(self.names[rank], f"nothing was heard of it for {_SILENCE} seconds"))
            for name, process in list(self._watched):
                if process.poll() is not None:
                    sentence = f"its {name} ended with exit code {process.returncode}, perhaps for want of memory"
                    self._lose(_gone(self.host, sentence))

    def _lose(self, lost: Lost, header: dict[str, Any] | None = None) -> None:
        """End the process, the others told; once, and not when the job is over or this host has failed itself."""
        if self._over.acquire(blocking=False):
            if header is None:
                header = {"kind": "failed", "host": "", "code": _code(lost.error), "sentence": lost.sentence}
            self._tell_all(header)
            self._end(lost)


class _Link:
    """A connection to another host; what is sent waits in a queue, so that a slow host holds up nobody.

    Attributes
    ----------
    silence : int
        Looks since it was last heard of.
    ended : Event
        Set when it has left as agreed.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket, self.silence, self.ended = connection, 0, threading.Event()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._outgoing: queue.SimpleQueue[tuple[dict[str, Any], bytes] | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._send_queued, name="send", daemon=True).start()

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        self._outgoing.put((header, body))

    def flush(self) -> None:
        """Wait, but not for long, until all has been sent."""
        sent = threading.Event()
        self._outgoing.put(sent)
        sent.wait(_LAST_WORDS)

    def _send_queued(self) -> None:
        beat: tuple[dict[str, Any], bytes] = ({"kind": "beat"}, b"")
        try:
            while True:
                try:
                    item = self._outgoing.get(timeout=_BEAT)
                except queue.Empty:
                    item = beat
                if isinstance(item, threading.Event):
                    item.set()
                    continue
                header = json.dumps(item[0]).encode()
                self.socket.sendall(_LENGTHS.pack(len(header), len(item[1])) + header)
                self.socket.sendall(item[1])
        except OSError:
            return  # who listens notices

    def receive(self, limit: int | None = None) -> tuple[dict[str, Any], bytes]:
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
        decoded: dict[str, Any] = json.loads(self._exactly(header))
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


def first_difference(
    names: Sequence[str], facts: Sequence[Mapping[str, object]], may_lack: str | None = None
) -> str | None:
    """In what one host differs from the first, as a sentence; None when in nothing.

    Parameters
    ----------
    names : sequence of str
        The hosts.
    facts : sequence of dict
        Of each host.
    may_lack : str or None
        Of facts whose name begins so, a host may have none.
    """
    first = facts[0]
    for host, other in zip(names[1:], facts[1:], strict=True):
        for name in [*first, *(each for each in other if each not in first)]:
            lacks = may_lack is not None and name.startswith(may_lack) and not (name in first and name in other)
            if first.get(name) != other.get(name) and not lacks:
                ours, theirs = (each.get(name, "none") for each in (first, other))
                return (
                    f"The hosts do not agree on the {name}: {names[0]} has {ours}, {host} has {theirs}; give all hosts "
                    "the same."
                )
    return None


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


def _code(error: SsdAlgoError | None) -> int:
    return error.exit_code if isinstance(error, UserError | AlgorithmError) else 0


def _failed(header: dict[str, Any]) -> Lost:
    sentence = f"Host {header['host']} failed: {header['sentence']}" if header["host"] else header["sentence"]
    kind = UserError if header["code"] == UserError.exit_code else AlgorithmError
    return Lost(kind(sentence), sentence)


def _gone(name: str, reason: str) -> Lost:
    sentence = (
        f"Host {name} was lost: {reason}. Start the job again; with a folder for checkpoints it goes on from the "
        "newest one."
    )
    return Lost(AlgorithmError(sentence), sentence)


def _did_not_come(names: str, patience: float) -> str:
    return (
        f"{names} did not come within {patience / 60:g} minutes; see why in its log, and that the security group "
        "allows all traffic between the job's hosts."
    )


def _other_hosts(chief: str, theirs: Sequence[str], ours: Sequence[str]) -> str:
    return (
        f"{chief} is the first host of another job, or has this host already: its hosts are {', '.join(theirs)}, those "
        f"of this host {', '.join(ours)}."
    )
