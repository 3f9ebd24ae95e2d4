"""MXNet's parameter server: a scheduler on the first host, a server on each, as processes of their own.

    python -m ssd_algo.training.parameter_server ROLE SCHEDULER PORT HOSTS ADDRESS PARENT

runs one of them, for as long as the process PARENT, which started it, lives at most.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

from ssd_algo.contract.container import hide_gpus, set_up_kvstore, set_up_mxnet
from ssd_algo.training.peers import Peers

PORT = 7724  # the scheduler's; servers and workers have any

_PR_SET_PDEATHSIG = 1
_PATIENCE = 10  # seconds for them to end by themselves


@contextlib.contextmanager
def running(peers: Peers) -> Iterator[None]:
    """Start this host's processes and make this one a worker; before mxnet is imported, and from the main thread.

    They end by themselves when the last worker has left. One host needs none.
    """
    if peers.size == 1:
        yield
        return
    address = peers.address()
    scheduler = peers.exchange("address", address)[0]
    set_up_kvstore("worker", scheduler, PORT, peers.size, address)
    processes = []
    for role in ["scheduler", "server"] if peers.is_chief else ["server"]:
        arguments = [role, scheduler, str(PORT), str(peers.size), address, str(os.getpid())]
        process = subprocess.Popen([sys.executable, "-m", __name__, *arguments], stdin=subprocess.DEVNULL)
        peers.watch(f"parameter {role}" if role == "server" else role, process)
        processes.append(process)
    try:
        yield
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE)
    finally:
        peers.unwatch()
        for process in processes:
            process.kill()
            process.wait()


def main(role: str, scheduler: str, port: str, hosts: str, address: str, parent: str) -> None:
    """Run the scheduler or a server; `parent` is the process that started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whatever kills the parent kills us
    if os.getppid() != int(parent):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all of the job's processes, it is for the parent
    set_up_kvstore(role, scheduler, int(port), int(hosts), address)
    hide_gpus()
    set_up_mxnet(one_shape=True)
    import mxnet  # noqa: F401 - in these roles the import returns when the last worker has left


if __name__ == "__main__":
    main(*sys.argv[1:])
