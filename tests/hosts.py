"""Several hosts on one machine: processes with a network of their own, folders of their own."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from conftest import TRAIN, environment, read_until, write_config

NAMESPACE = "ssd-algo-test"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextlib.contextmanager
def network(count: int) -> Iterator[list[tuple[str, list[str]]]]:
    """For each host its name and what runs a command on it: in a network namespace, else on an address of loopback.

    What joins them is in a namespace too, so that the machine's own network, and its firewall, have no part in it.
    """
    switch, names = f"{NAMESPACE}-switch", [f"{NAMESPACE}-{number}" for number in range(count)]
    if not may_make(switch, names):
        yield [(f"127.0.0.{number + 1}", []) for number in range(count)]
        return
    try:
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            ip("netns", "add", name)
            ip("-n", switch, "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", switch, "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", name, "addr", "add", f"10.213.0.{number + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [(f"10.213.0.{number + 1}", ["ip", "netns", "exec", name]) for number, name in enumerate(names)]
    finally:
        remove([switch, *names])


def may_make(switch: str, names: Sequence[str]) -> bool:
    """Make the switch's namespace, those of tests that were killed removed; who is not root may not, nor some containers."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    remove([switch, *names])
    return subprocess.run(["ip", "netns", "add", switch], capture_output=True).returncode == 0


def remove(names: Sequence[str]) -> None:
    """Network namespaces, with all that is in them."""
    for name in names:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


@dataclass
class Host:
    """A training on one host; its log is read until the last process that holds the pipe has ended."""

    name: str
    base: Path
    prefix: list[str]
    process: subprocess.Popen[str] | None = None
    out: str = ""

    def start(self, **more: str) -> "Host":
        self.process = subprocess.Popen(
            [*self.prefix, *TRAIN],
            env=environment(self.base, **more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.out = ""
        return self

    @property
    def running(self) -> "subprocess.Popen[str]":
        assert self.process is not None
        return self.process

    def until(self, words: str) -> None:
        """Read the log up to its first line with these words."""
        self.out += read_until(self._stream, words)

    def end(self, seconds: float = 300) -> int:
        """Wait for the end of the host and of all its processes; returns the exit code."""
        code = self.running.wait(seconds)
        with self._stream as stream:
            self.out += stream.read()
        return code

    def kill(self) -> None:
        """As when memory runs out: only what was started by the platform."""
        self.running.kill()

    def signal_all(self, number: int) -> None:
        """To all of its processes, as to a container that is paused."""
        os.killpg(self.running.pid, number)

    def cut_off(self) -> None:
        """Take it off the network, without a word to anybody."""
        ip("-n", self.prefix[-1], "link", "set", "eth0", "down")

    @property
    def failure(self) -> str:
        return (self.base / "output" / "failure").read_text()

    @property
    def _stream(self) -> IO[str]:
        assert self.running.stdout is not None
        return self.running.stdout


@contextlib.contextmanager
def hosts(
    folder: Path, data: Path | Sequence[Path], hyperparameters: dict[str, str], count: int
) -> Iterator[list[Host]]:
    """Hosts of one job, none started; each with its own data, or all with the same. Those left are killed."""
    with network(count) as places:
        made = []
        for number, (name, prefix) in enumerate(places):
            host = Host(name, folder / f"host-{number}", prefix)
            (host.base / "input").mkdir(parents=True)
            (host.base / "input" / "data").symlink_to(data if isinstance(data, Path) else data[number])
            (host.base / "checkpoints").mkdir()
            write_config(host.base, "hyperparameters", hyperparameters)
            config = {"current_host": name, "hosts": [each for each, _ in places], "network_interface_name": "eth0"}
            write_config(host.base, "resourceconfig", config)
            made.append(host)
        try:
            yield made
        finally:
            for host in made:
                if host.process is not None and host.process.returncode is None:
                    host.process.kill()
                    host.end()
