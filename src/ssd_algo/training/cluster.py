"""The devices of a training, and the KVStore where the gradients of all devices and hosts meet."""

import itertools
from collections.abc import Sequence

import mxnet as mx
from mxnet import gluon

from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.training.peers import Peers

# Elements up to which a gradient is small: all small ones travel as one, as each array has a message of its own to and
# from every server. Weights of convolutions are larger, nearly all biases and BatchNorm's parameters are not.
_SMALL = 16_384

_PATIENCE = 15 * 60  # seconds


def contexts(devices: str, gpus: int) -> list[mx.Context]:
    """What to train on.

    Parameters
    ----------
    devices : str
        The hyperparameter.
    gpus : int
        GPUs to use; 0 means the CPU.
    """
    if gpus:
        return [mx.gpu(index) for index in range(gpus)]
    kind, _, number = devices.partition(":")
    return [mx.cpu(index) for index in range(int(number) if kind == "cpu" and number else 1)]


def is_asynchronous(hyperparameters: Hyperparameters, peers: Peers) -> bool:
    """Whether hosts do not wait for each other: then the servers update the parameters, and keep the optimizer."""
    return peers.size > 1 and hyperparameters.kv_store == "dist_async"


def kvstore_type(devices: Sequence[mx.Context], hosts: int = 1) -> str:
    """The KVStore over which devices and hosts reduce their gradients.

    Within a host the CPU reduces in `local` and `dist_sync`, the GPUs do in `device`, `nccl` and `dist_device_sync`;
    NCCL where it is built in and there are several.
    """
    on_cpu = devices[0].device_type == "cpu"
    if hosts > 1:
        return "dist_sync" if on_cpu else "dist_device_sync"
    if on_cpu:
        return "local"
    return "nccl" if len(devices) > 1 and mx.runtime.Features().is_enabled("NCCL") else "device"


def create_store(kind: str, peers: Peers) -> mx.kvstore.KVStore:
    """A KVStore; among several hosts the job ends when it cannot be made, as MXNet would wait for ever."""
    if peers.size == 1:
        return mx.kv.create(kind)
    sentence = (
        f"The parameter servers of the hosts have not found each other within {_PATIENCE // 60} minutes; the security "
        "group has to allow all traffic between the job's hosts, on all ports."
    )
    with peers.within(_PATIENCE, sentence):
        return mx.kv.create(kind)


class GradientSum:
    """Sums gradients over all devices and hosts.

    Parameters
    ----------
    parameters : list of gluon.Parameter
        On every device.
    devices : list of mxnet contexts
    peers : Peers
    """

    def __init__(self, parameters: Sequence[gluon.Parameter], devices: Sequence[mx.Context], peers: Peers) -> None:
        self._store: mx.kvstore.KVStore | None = None
        self._keys: list[str] = []
        self._values: list[list[mx.nd.NDArray]] = []
        self._small: list[list[mx.nd.NDArray]] = []  # by device
        self._together: list[mx.nd.NDArray] = []
        if len(devices) == peers.size == 1:
            return
        self._store = create_store(kvstore_type(devices, peers.size), peers)
        gradients = {parameter.name: parameter.list_grad() for parameter in parameters}
        large = {name: each for name, each in gradients.items() if each[0].size > _SMALL}
        small = [each for name, each in gradients.items() if name not in large]
        if small:
            self._small = [[each[number].reshape(-1) for each in small] for number in range(len(devices))]
            self._together = [mx.nd.concat(*each, dim=0) for each in self._small]
            large["small"] = self._together
        self._keys, self._values = list(large), list(large.values())
        for key, values in large.items():
            self._store.init(key, mx.nd.zeros(values[0].shape))
        mx.nd.waitall()
        peers.exchange("store", None)

    @property
    def keys(self) -> int:
        """Arrays that travel in a step."""
        return len(self._keys)

    def sum(self) -> None:
        """Put the sum in place of every gradient; not waited for."""
        if self._store is None:
            return
        for gradients, together in zip(self._small, self._together, strict=True):
            mx.nd.concat(*gradients, dim=0, out=together)
        for number, (key, values) in enumerate(zip(self._keys, self._values, strict=True)):
            self._store.pushpull(key, values, out=values, priority=-number)
        for gradients, together in zip(self._small, self._together, strict=True):
            # One operator for all of them, which mx.nd.split_v2 wraps without letting its outputs be given.
            starts = tuple(itertools.accumulate([0, *(each.size for each in gradients[:-1])]))
            mx.nd._internal._split_v2(together, indices=starts, axis=0, squeeze_axis=False, out=gradients)

    def close(self) -> None:
        """Leave the store; waits for all hosts to do so."""
        self._store = None


class ServerUpdates:
    """Parameters that the servers update as gradients arrive, from whichever host.

    Parameters
    ----------
    parameters : list of gluon.Parameter
        On every device.
    optimizer : mxnet.optimizer.Optimizer
        Goes to the servers; its learning rate is a `ServerSchedule`.
    peers : Peers
    """

    def __init__(self, parameters: Sequence[gluon.Parameter], optimizer: mx.optimizer.Optimizer, peers: Peers) -> None:
        self._parameters, self._optimizer, self._peers = parameters, optimizer, peers
        self._store: mx.kvstore.KVStore | None = create_store("dist_async", peers)
        # The servers do not have the parameters, from which the optimizer would learn what is decayed.
        optimizer.wd_mult = {number: each.wd_mult for number, each in enumerate(parameters)}
        self.begin(0)
        for number, parameter in enumerate(parameters):
            self._store.init(number, parameter.list_data()[0])
        mx.nd.waitall()
        peers.exchange("store", None)

    def begin(self, updates: int) -> None:
        """Have the servers count from this number of updates, those of one host, with a new optimizer."""
        assert self._store is not None
        if self._peers.is_chief:
            self._optimizer.begin_num_update = self._optimizer.num_update = updates * self._peers.size
            self._store.set_optimizer(self._optimizer)
        self._peers.exchange("optimizer", None)

    def update(self) -> None:
        """Hand the gradients over, and take the parameters as they are now; not waited for."""
        assert self._store is not None
        for number, parameter in enumerate(self._parameters):
            self._store.push(number, parameter.list_grad(), priority=-number)
        self.pull()

    def pull(self) -> None:
        """Take the parameters as they are now; not waited for."""
        assert self._store is not None
        for number, parameter in enumerate(self._parameters):
            self._store.pull(number, out=parameter.list_data(), priority=-number)

    def meet(self) -> None:
        """Wait for the updates of all hosts, then take the same parameters everywhere; nothing may run."""
        self._peers.exchange("updated", None)
        self.pull()
        mx.nd.waitall()
        self._peers.exchange("pulled", None)

    def close(self) -> None:
        """Leave the store; waits for all hosts to do so."""
        self._store = None
