"""One epoch of training, over all devices."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from numpy.typing import NDArray

from ssd_algo.contract import log_lines
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.data.loader import Batch
from ssd_algo.errors import UserError
from ssd_algo.inference.engines import MXNetEngine
from ssd_algo.model.network import CONSTANTS, Network, set_parameters
from ssd_algo.model.targets import INPUTS, training_symbol
from ssd_algo.training.cluster import GradientSum, ServerUpdates, is_asynchronous
from ssd_algo.training.peers import Peers
from ssd_algo.training.recipe import RECIPES
from ssd_algo.training.schedule import AVERAGE_EVERY, ServerSchedule, averaging_rate, learning_rate
from ssd_algo.training.stopping import Stopped

logger = logging.getLogger(__name__)

_READ_EVERY = 10  # steps between reads of the loss, so that a step never waits for the one before
_QUEUED_SECONDS = 5.0  # but no more steps than take this long: who stops the training waits for them
_LOG_EVERY = 100  # batches


@dataclass(frozen=True)
class EpochResult:
    """Means of an epoch's losses over all chosen anchors of all hosts, and its size on this one."""

    cross_entropy: float
    smooth_l1: float
    batches: int
    examples: int
    seconds: float


@dataclass
class EpochSoFar:
    """An epoch as far as it has been trained.

    Attributes
    ----------
    epoch : int
    batches, examples : int
    seconds : float
    sums : list of float
        Cross entropy, smooth L1 and number of chosen anchors.
    """

    epoch: int = 0
    batches: int = 0
    examples: int = 0
    seconds: float = 0.0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    @property
    def loss(self) -> float | None:
        """Mean of both losses together, as far as they have been read; None before the first."""
        return (self.sums[0] + self.sums[1]) / self.sums[2] if self.sums[2] else None

    def result(self, sums: Sequence[float]) -> EpochResult:
        """The epoch, now that it has ended; with the sums of all hosts."""
        means = (sums[0] / max(sums[2], 1), sums[1] / max(sums[2], 1))
        return EpochResult(*means, self.batches, self.examples, self.seconds)


class Trainer:
    """Trains a network's parameters.

    Parameters
    ----------
    network : Network
    values : dict
        Parameters and constants to start from, by name.
    hyperparameters : Hyperparameters
    devices : list of mxnet contexts
        Each batch is split over them; gradients meet in the KVStore.
    steps_an_epoch : int
        What the schedule counts with.
    peers : Peers
        Hosts that train the same network, each on its own batches.

    Attributes
    ----------
    read_every : int
        Steps from one reading of the losses, for which the devices are waited for, to the next; 0 at first.
    so_far : EpochSoFar
        The epoch that is trained now or next.
    """

    def __init__(
        self,
        network: Network,
        values: dict[str, NDArray[np.float32]],
        hyperparameters: Hyperparameters,
        devices: list[mx.Context],
        steps_an_epoch: int,
        peers: Peers,
    ) -> None:
        self._peers = peers
        self._network, self._hyperparameters, self._devices = network, hyperparameters, devices
        self._recipe, self._steps_an_epoch = RECIPES[hyperparameters.recipe], steps_an_epoch
        frozen = frozen_parameters(hyperparameters.freeze_layer_pattern, network)
        if hyperparameters.freeze_layer_pattern and not frozen:
            weights = [name for name in network.symbol.list_arguments() if name.endswith("_weight")]
            logger.warning(
                'freeze_layer_pattern "%s" matches no parameter, so that all are trained; their names are like %s.',
                hyperparameters.freeze_layer_pattern,
                ", ".join(weights[:: len(weights) // 4]),
            )
        inputs = [mx.sym.var(name, dtype=dtype) for name, dtype in INPUTS.items()]
        self._block = gluon.SymbolBlock(training_symbol(network, frozen), inputs)
        set_parameters(self._block, values, devices)
        self._parameters = self._block.collect_params()
        for name, parameter in self._parameters.items():
            parameter.wd_mult = 1.0 if name.endswith(self._recipe.decayed) else 0.0
            if name in CONSTANTS or name in frozen:
                parameter.grad_req = "null"
        self._block.hybridize(static_alloc=True, static_shape=True)
        ordered = [self._parameters[name] for name in sorted(self._parameters)]
        self._trained = [parameter for parameter in ordered if parameter.grad_req != "null"]
        if not self._trained:
            raise UserError(
                f'freeze_layer_pattern "{hyperparameters.freeze_layer_pattern}" matches every parameter, so that none '
                "is left to train; narrow it."
            )
        settings = _optimizer_settings(hyperparameters)
        self._optimizer = gluon.Trainer(self._trained, hyperparameters.optimizer, settings, kvstore=None)
        self._sum: GradientSum | None = None
        self._servers: ServerUpdates | None = None
        if is_asynchronous(hyperparameters, peers):
            settings["rescale_grad"] = 1 / hyperparameters.mini_batch_size
            rates = ServerSchedule(hyperparameters, steps_an_epoch, peers.size)
            optimizer = mx.optimizer.create(hyperparameters.optimizer, lr_scheduler=rates, **settings)
            self._servers = ServerUpdates(self._trained, optimizer, peers)
        else:
            self._sum = GradientSum(self._trained, devices, peers)
        self._updates = 0
        self._hosts_so_far: list[dict[str, Any]] = []  # by rank, at the last pause
        self.read_every = 0  # until the first step has shown how long one takes
        self.so_far = EpochSoFar()
        self._average = None
        if self._recipe.average is not None:
            self._average = Average(network, values, devices[0], self._parameters, self._trained)

    def engines(self) -> dict[str, MXNetEngine]:
        """By the kind of weights that they always use, forward passes on the first device."""
        engines = {"last": MXNetEngine(self._network.symbol, self._devices[0], self._parameters)}
        return engines if self._average is None else engines | {"averaged": self._average.engine}

    @property
    def learning_rate(self) -> float:
        """Of the last step."""
        return float(self._optimizer.learning_rate)

    def values(self, kind: str = "last") -> dict[str, NDArray[np.float32]]:
        """Parameters, BatchNorm's statistics and the constants, by name; of one of the kinds that `engines` has.

        The statistics are the means over the devices, each of which has those of its share of the images; over all
        hosts' devices after `train_epoch`.
        """
        values = self._values_of_first_device() | {name: self._mean_statistic(name) for name in self._statistics()}
        return values if kind == "last" or self._average is None else values | self._average.engine.values()

    def train_epoch(
        self, epoch: int, batches: Iterable[Batch], pause: Callable[[], bool] = lambda: False
    ) -> EpochResult | None:
        """Train on the batches of an epoch, counted from 0, until none is left or, after a step, `pause` says so.

        Returns
        -------
        EpochResult or None
            None after a pause: the epoch goes on with the next call. Nothing runs on the devices then.

        Raises
        ------
        UserError
            When the loss is not finite.
        """
        if self.so_far.epoch != epoch:
            self.so_far = EpochSoFar(epoch)
        so_far, before, start = self.so_far, self.so_far.seconds, time.time()
        paused = self._train(batches, pause)
        mx.nd.waitall()  # the last update belongs to the epoch
        if self._servers is not None:
            self._share_parameters(self._servers)
        if not paused or self._peers.size > 1:
            self._share_statistics()
        so_far.seconds = before + time.time() - start
        if paused:
            self._hosts_so_far = self._peers.exchange("so far", asdict(so_far))
            return None
        logger.info(log_lines.batches_done(epoch, so_far.batches, so_far.examples, so_far.seconds))
        self.so_far = EpochSoFar(epoch + 1)
        sums = np.sum(self._peers.exchange("losses", so_far.sums), axis=0)
        return so_far.result(sums.tolist())

    def close(self) -> None:
        """Leave what the hosts share; waits for all of them."""
        mx.nd.waitall()
        for each in (self._sum, self._servers):
            if each is not None:
                each.close()

    def _train(self, batches: Iterable[Batch], pause: Callable[[], bool]) -> bool:
        """Steps until the batches end or a pause; returns whether there was one."""
        so_far, start, read_at, paused = self.so_far, time.time(), time.perf_counter(), False
        unread: list[tuple[int, list[mx.nd.NDArray]]] = []
        try:
            for batch in batches:
                so_far.batches += 1
                unread.append((so_far.batches, self._step(batch)))
                so_far.examples += int(batch.weights.sum())
                if len(unread) > self.read_every:
                    late = unread[-1:] if self.read_every else []
                    self._read(unread[: len(unread) - len(late)])
                    now = time.perf_counter()
                    seconds_a_step = (now - read_at) / (len(unread) - len(late))
                    self.read_every = int(min(_READ_EVERY, _QUEUED_SECONDS / seconds_a_step))
                    unread, read_at = late, now
                if so_far.batches % _LOG_EVERY == 0:
                    seconds = so_far.seconds + time.time() - start
                    logger.info(log_lines.batches_done(so_far.epoch, so_far.batches, so_far.examples, seconds))
                paused = pause()
                if paused:
                    break
        except Stopped:  # who makes batches waited, and is not to any more
            paused = True
        self._read(unread)
        return paused

    def snapshot(self) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
        """All that a later training needs to go on from here, between two steps: for JSON, and copies of arrays.

        The arrays are named `parameters/NAME`, `statistics/DEVICE/NAME` (BatchNorm's on the other devices),
        `optimizer/NAME/NUMBER`, unless servers have it, and `average/NAME`.
        """
        arrays = {f"parameters/{name}": value for name, value in self._values_of_first_device().items()}
        for number, device in list(enumerate(self._devices))[1:]:
            for name in self._statistics():
                arrays[f"statistics/{number}/{name}"] = self._parameters[name].data(device).asnumpy()
        if self._servers is None:
            for parameter, states in zip(self._trained, self._optimizer_states(0), strict=True):
                for number, state in enumerate(states):
                    arrays[f"optimizer/{parameter.name}/{number}"] = state.asnumpy()
        if self._average is not None:
            arrays |= {f"average/{name}": value for name, value in self._average.engine.values().items()}
        return {"updates": self._updates, "so_far": self._hosts_so_far}, arrays

    def restore(self, state: dict[str, Any], arrays: dict[str, NDArray[np.float32]]) -> None:
        """Go on from a snapshot of the same network; what it lacks, as of another optimizer, starts anew."""
        self._updates, self.so_far = state["updates"], _own_so_far(state["so_far"], self._peers)
        values = below("parameters", arrays)
        for name, parameter in self._parameters.items():
            parameter.set_data(mx.nd.array(values[name]))
        for number, device in list(enumerate(self._devices))[1:]:
            for name in self._statistics():
                own = arrays.get(f"statistics/{number}/{name}", values[name])
                self._parameters[name].data(device)[:] = mx.nd.array(own)
        # Counts of updates, of which Adam's correction of its bias is made.
        optimizer = self._optimizer.optimizer
        optimizer.begin_num_update = optimizer.num_update = self._updates
        last = max(0, self._updates - 1)
        optimizer.set_learning_rate(learning_rate(self._hyperparameters, last, self._steps_an_epoch))
        if self._servers is not None:
            self._servers.begin(self._updates)
        for number in range(len(self._devices)):
            for parameter, states in zip(self._trained, self._optimizer_states(number), strict=True):
                names = [f"optimizer/{parameter.name}/{each}" for each in range(len(states))]
                if all(name in arrays for name in names):
                    for name, each in zip(names, states, strict=True):
                        each[:] = mx.nd.array(arrays[name])
        if self._average is not None:
            for name, average in self._average.engine.arrays().items():
                average[:] = mx.nd.array(arrays.get(f"average/{name}", values[name]))
        mx.nd.waitall()

    def _values_of_first_device(self) -> dict[str, NDArray[np.float32]]:
        return {name: each.data(self._devices[0]).asnumpy() for name, each in self._parameters.items()}

    def _mean_statistic(self, name: str) -> NDArray[np.float32]:
        shares = [each.asnumpy() for each in self._parameters[name].list_data()]
        return np.mean(shares, axis=0) if len(shares) > 1 else shares[0]

    def _share_statistics(self) -> None:
        """When nothing runs, every device goes on with the means over all, of all hosts; so does the average."""
        names = self._statistics()
        if len(self._devices) * self._peers.size > 1 and names:
            means = [self._mean_statistic(name) for name in names]
            together = self._peers.mean("statistics", np.concatenate([each.ravel() for each in means]))
            for name, mean in zip(names, _apart(together, means), strict=True):
                self._parameters[name].set_data(mean)
            mx.nd.waitall()
        if self._average is not None:
            self._average.copy_statistics()
            mx.nd.waitall()

    def _share_parameters(self, servers: ServerUpdates) -> None:
        """When nothing runs, every host goes on with the servers' parameters, and the chief's average."""
        servers.meet()
        if self._average is not None:
            averages = self._average.engine.arrays()
            trained = [averages[each.name] for each in self._trained]
            own = np.concatenate([each.asnumpy().ravel() for each in trained]) if self._peers.is_chief else None
            shared = np.frombuffer(self._peers.share("average", b"" if own is None else own.tobytes()), np.float32)
            for array, values in zip(trained, _apart(shared, trained), strict=True):
                array[:] = values

    def _statistics(self) -> list[str]:
        return [str(name) for name in self._network.symbol.list_auxiliary_states()]

    def _optimizer_states(self, device: int) -> list[Sequence[mx.nd.NDArray]]:
        """What the optimizer keeps for each trained parameter on a device: momentum, or Adam's two means, ..."""
        updater = self._optimizer._updaters[device]
        found: list[Sequence[mx.nd.NDArray]] = []
        for index, parameter in enumerate(self._trained):
            if index not in updater.states:
                weight = parameter.data(self._devices[device])
                updater.states[index] = updater.optimizer.create_state_multi_precision(index, weight)
                updater.states_synced[index] = True
            state = updater.states[index]
            found.append(() if state is None else state if isinstance(state, tuple) else (state,))
        return found

    def _step(self, batch: Batch) -> list[mx.nd.NDArray]:
        """One update; returns each device's summed losses, not waited for."""
        arrays = (batch.images, batch.boxes, batch.classes, batch.weights)
        shares = zip(*(self._split(array) for array in arrays), strict=True)
        with autograd.record():
            outputs = [self._block(*share) for share in shares]
        autograd.backward([loss for loss, _ in outputs])
        self._update(batch)
        return [parts for _, parts in outputs]

    def _update(self, batch: Batch) -> None:
        """Change the parameters by the gradients, which are sums over the batch, and all hosts' batches."""
        hp, batch_size = self._hyperparameters, len(batch.weights)
        self._set_learning_rate(learning_rate(hp, self._updates, self._steps_an_epoch))
        if self._servers is not None and batch.weights.any():
            self._clip(batch_size / len(self._devices))  # before devices' gradients are summed: each has its share
            self._servers.update()
        elif self._servers is not None:
            self._servers.pull()  # an update by gradients that are 0 would still be one
        elif self._sum is not None:
            self._sum.sum()
            self._clip(batch_size * self._peers.size)
            self._optimizer.update(batch_size * self._peers.size)
        if self._average is not None and self._updates % AVERAGE_EVERY == 0:
            rate = averaging_rate(hp, self._updates, hp.epochs * self._steps_an_epoch)
            self._average.follow(rate)
        self._updates += 1

    def _clip(self, images: float) -> None:
        """As the recipe says; gradients are sums over so many images."""
        if self._recipe.clipped_norm is not None:
            for device in self._devices:
                gradients = [parameter.grad(device) for parameter in self._trained]
                # check_isfinite reads a scalar; a gradient that is not finite shows in the loss one step later
                gluon.utils.clip_global_norm(gradients, self._recipe.clipped_norm * images, check_isfinite=False)

    def _split(self, array: NDArray[np.generic]) -> list[mx.nd.NDArray]:
        whole = mx.nd.array(array, dtype=array.dtype)
        return gluon.utils.split_and_load(whole, self._devices, even_split=False)

    def _read(self, steps: list[tuple[int, list[mx.nd.NDArray]]]) -> None:
        """Add each step's cross entropy, smooth L1 and number of chosen anchors to the epoch's sums."""
        for number, parts in steps:
            values = np.sum([part.asnumpy() for part in parts], axis=0, dtype=np.float64)
            if not np.isfinite(values).all():
                where = f"epoch {self.so_far.epoch}, step {number}"
                raise diverged(f"The loss is not finite at {where}", self._optimizer.learning_rate)
            self.so_far.sums = [total + float(value) for total, value in zip(self.so_far.sums, values, strict=True)]

    def _set_learning_rate(self, rate: float) -> None:
        """For the next update; the log tells it where the schedule is in steps, else once an epoch."""
        if rate == self._optimizer.learning_rate:
            return
        self._optimizer.set_learning_rate(rate)
        smooth = self._hyperparameters.lr_scheduler == "cosine" or self._recipe.warm_up > 0
        if not smooth or self._updates % self._steps_an_epoch == 0:
            logger.info(log_lines.learning_rate(self._updates + 1, rate))


class Average:
    """An exponential moving average of a network's trained parameters, on one device.

    BatchNorm's statistics, which are moving averages themselves, are copied at an epoch's end: MXNet writes them
    without its engine's knowledge, so that they may be read only when nothing runs.
    """

    def __init__(
        self,
        network: Network,
        values: dict[str, NDArray[np.float32]],
        device: mx.Context,
        parameters: gluon.ParameterDict,
        trained: list[gluon.Parameter],
    ) -> None:
        self.engine = MXNetEngine(network.symbol, device, values)
        averages = self.engine.arrays()
        self._trained = [(averages[each.name], each.data(device)) for each in trained]
        statistics = network.symbol.list_auxiliary_states()
        self._statistics = [(averages[name], parameters[name].data(device)) for name in statistics]

    def follow(self, rate: float) -> None:
        """Move towards the parameters by a share of the way."""
        for average, new in self._trained:
            # Gradient descent at this rate, with the negative of the new values as gradient and weight decay 1, is
            # average - rate * (average - new), in one pass over the memory.
            mx.nd.sgd_update(average, new, lr=rate, wd=1.0, rescale_grad=-1.0, lazy_update=False, out=average)

    def copy_statistics(self) -> None:
        """Take BatchNorm's statistics as they are; nothing may run meanwhile."""
        for average, new in self._statistics:
            new.copyto(average)


def _apart(
    together: NDArray[np.float32], like: Sequence[NDArray[np.float32] | mx.nd.NDArray]
) -> Iterator[mx.nd.NDArray]:
    """Arrays of the shapes of others, from one that holds the values of all, one after the other."""
    parts = np.split(together, np.cumsum([each.size for each in like])[:-1])
    return (mx.nd.array(part.reshape(each.shape)) for part, each in zip(parts, like, strict=True))


def _own_so_far(of_hosts: list[dict[str, Any]], peers: Peers) -> EpochSoFar:
    """A host's part of an epoch as far as it has been trained; of another number of hosts the chief has all."""
    if len(of_hosts) == peers.size:
        return EpochSoFar(**of_hosts[peers.rank])
    first = of_hosts[0]
    if not peers.is_chief:
        return EpochSoFar(first["epoch"], first["batches"], seconds=first["seconds"])
    sums = [sum(each) for each in zip(*(each["sums"] for each in of_hosts), strict=True)]
    return EpochSoFar(
        first["epoch"], first["batches"], sum(each["examples"] for each in of_hosts), first["seconds"], sums
    )


def below(prefix: str, arrays: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """The arrays of a snapshot whose names are `prefix/NAME`, by NAME."""
    start = f"{prefix}/"
    return {name.removeprefix(start): each for name, each in arrays.items() if name.startswith(start)}


def frozen_parameters(pattern: str, network: Network) -> frozenset[str]:
    """Names that the pattern matches from their start; none for an empty pattern."""
    names = [*network.symbol.list_arguments(), *network.symbol.list_auxiliary_states()]
    return frozenset(name for name in names if pattern and re.match(pattern, name))


def diverged(what: str, rate: float) -> UserError:
    """The error of a training that left the finite numbers; `what` says where, `rate` is the learning rate."""
    return UserError(
        f"{what}; lower learning_rate (it is {rate:g}) by ten, check the boxes of the training data, and begin with an "
        "empty folder for checkpoints, if there is one. The last good "
        "model is kept."
    )


def _optimizer_settings(hyperparameters: Hyperparameters) -> dict[str, float]:
    """The built-in's use of its hyperparameters: momentum for sgd, weight decay for sgd and rmsprop."""
    settings = {"learning_rate": hyperparameters.learning_rate, "wd": 0.0}
    if hyperparameters.optimizer == "sgd":
        settings["momentum"] = hyperparameters.momentum
    if hyperparameters.optimizer in ("sgd", "rmsprop"):
        settings["wd"] = hyperparameters.weight_decay
    return settings
