"""Several hosts on this machine: how fast two of one core each are, and what a step's gradients cost on the way.

    python benchmarks/hosts.py

Prints one JSON line a figure. It takes about 10 minutes on 2 cores.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import figure

from ssd_algo import demo

TRAIN = [sys.executable, str(Path(__file__).parents[1] / "scripts" / "train")]
IMAGES, BATCH, EPOCHS = 64, 16, 4  # of a host
HOSTS = ("127.0.0.1", "127.0.0.2")
STEPS = 20


def main() -> None:
    together, apart = throughput(together=True), throughput(together=False)
    figure("two_hosts_times_two_jobs", together / apart, 0.85)
    figure("two_hosts", together, None, unit="images/s")
    for name in ("resnet-18", "resnet-50", "vgg-16"):
        for kind, small in (("each_array", "0"), ("small_ones_together", "")):
            found = traffic(name, small)
            figure(f"{name}_{kind}_keys", found["keys"], None, "lower", "keys/step")
            figure(
                f"{name}_{kind}_bytes", found["bytes"], None, "lower", "bytes/step of both hosts, to servers and back"
            )
            figure(f"{name}_{kind}_seconds", found["seconds"], None, "lower", "s/step")


def throughput(together: bool) -> float:
    """Images a second of two processes, one core each: hosts of one job, or two jobs."""
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        for number, name in enumerate(HOSTS):
            base = Path(folder) / name
            # The same data for both hosts, who share them; for a job as many images as a host's part.
            count = IMAGES * (len(HOSTS) if together else 1)
            demo.write_channels(base / "input" / "data", count, 2, np.random.default_rng(0))
            given = {"num_classes": 3, "num_training_samples": count, "base_network": "resnet-18", "epochs": EPOCHS}
            given |= {"use_pretrained_model": 0, "mini_batch_size": BATCH, "validate_every": EPOCHS}
            write(base, "hyperparameters", {key: str(value) for key, value in given.items()})
            if together:
                hosts = {"current_host": name, "hosts": HOSTS, "network_interface_name": "lo"}
                write(base, "resourceconfig", hosts)
            environment = os.environ | {"SAGEMAKER_BASE_DIR": str(base)}
            command = ["taskset", "-c", str(number), *TRAIN]
            processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        outs = [process.communicate()[0] for process in processes]
    found = [[float(each) for each in re.findall(r"train throughput=(\S+) records", out)] for out in outs]
    assert all(len(each) == EPOCHS for each in found), outs
    return sum(statistics.median(each[1:]) for each in found)


def write(base: Path, name: str, value: dict[str, Any]) -> None:
    folder = base / "input" / "config"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(value))


def traffic(base_network: str, small: str) -> dict[str, float]:
    """What summing a network's gradients over two hosts takes; `small` as `one_host` has it."""
    commands = [[sys.executable, __file__, name, base_network, small] for name in HOSTS]
    # The workers have nothing to compute, and would spin on the cores that all four processes share.
    idle = os.environ | {"OMP_WAIT_POLICY": "passive"}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=idle) for command in commands]
    outs = [process.communicate()[0] for process in processes]
    found: dict[str, float] = json.loads(outs[0].splitlines()[-1])
    return found


def one_host(name: str, base_network: str, small: str) -> None:
    """One of two hosts; `small` is up to how many elements gradients travel together, empty for what is usual."""
    from ssd_algo.contract.container import Hosts, set_up_mxnet
    from ssd_algo.training import parameter_server
    from ssd_algo.training.job import classify
    from ssd_algo.training.peers import Peers

    peers = Peers(Hosts(name, HOSTS, "lo"), classify, lambda lost: os._exit(1))
    peers.meet()
    set_up_mxnet(one_shape=True)
    with parameter_server.running(peers):
        import mxnet as mx
        from mxnet import gluon

        from ssd_algo.model.network import build_network, parameter_shapes
        from ssd_algo.training import cluster

        if small:
            cluster._SMALL = int(small)
        network = build_network(base_network, 300, 20)
        shapes = parameter_shapes(network, 300)
        trained = [each for each in sorted(shapes) if each not in network.symbol.list_auxiliary_states()]
        parameters = [gluon.Parameter(each, shape=shapes[each]) for each in trained]
        for each in parameters:
            each.initialize(mx.init.One())
        total = cluster.GradientSum(parameters, [mx.cpu()], peers)
        total.sum()
        mx.nd.waitall()
        peers.exchange("begin", None)
        before, started = sent(), time.perf_counter()
        for _ in range(STEPS):
            total.sum()
            mx.nd.waitall()
        seconds = (time.perf_counter() - started) / STEPS
        peers.exchange("end", None)
        found = {"keys": total.keys, "bytes": (sent() - before) / STEPS, "seconds": seconds}
        peers.leave(total.close)
    print(json.dumps(found))


def sent() -> int:
    """Bytes that loopback has carried."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split()[9])
    raise RuntimeError("no loopback interface")


if __name__ == "__main__":
    one_host(*sys.argv[1:]) if len(sys.argv) > 1 else main()
