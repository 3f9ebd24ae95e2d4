"""One epoch of training, over all devices."""

import logging
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

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
from ssd_algo.training.schedule import learning_rate

logger = logging.getLogger(__name__)

_READ_EVERY = 10  # steps between reads of the loss, so that a step never waits for the one before
_LOG_EVERY = 100  # batches


@dataclass(frozen=True)
class EpochResult:
    """Means of an epoch's losses over all chosen anchors, and its size."""

    cross_entropy: float
    smooth_l1: float
    batches: int
    examples: int
    seconds: float


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
    """

    def __init__(
        self,
        network: Network,
        values: dict[str, NDArray[np.float32]],
        hyperparameters: Hyperparameters,
        devices: list[mx.Context],
    ) -> None:
        self._network, self._hyperparameters, self._devices = network, hyperparameters, devices
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
            parameter.wd_mult = 1.0 if name.endswith(("_weight", "_gamma")) else 0.0
            if name in CONSTANTS or name in frozen:
                parameter.grad_req = "null"
        self._block.hybridize(static_alloc=True, static_shape=True)
        ordered = [self._parameters[name] for name in sorted(self._parameters)]
        trained = [parameter for parameter in ordered if parameter.grad_req != "null"]
        if not trained:
            raise UserError(
                f'freeze_layer_pattern "{hyperparameters.freeze_layer_pattern}" matches every parameter, so that none '
                "is left to train; narrow it."
            )
        self._optimizer = gluon.Trainer(
            trained,
            hyperparameters.optimizer,
            _optimizer_settings(hyperparameters),
            kvstore="device",  # dist_* is between machines, and there is one
            update_on_kvstore=False,
        )
        self._updates = 0

    def engine(self) -> MXNetEngine:
        """A forward pass on the first device that always uses the current parameters."""
        return MXNetEngine(self._network.symbol, self._devices[0], self._parameters)

    def values(self) -> dict[str, NDArray[np.float32]]:
        """The current parameters, BatchNorm's statistics and the constants, by name."""
        return {name: each.data(self._devices[0]).asnumpy() for name, each in self._parameters.items()}

    def train_epoch(self, epoch: int, batches: Iterable[Batch]) -> EpochResult:
        """Train on the batches of an epoch, counted from 0.

        Raises
        ------
        UserError
            When the loss is not finite.
        """
        self._set_learning_rate(epoch)
        start, examples, count = time.time(), 0, 0
        sums = np.zeros(3)
        unread: list[tuple[int, list[mx.nd.NDArray]]] = []
        for count, batch in enumerate(batches, 1):
            unread.append((count, self._step(batch)))
            examples += int(batch.weights.sum())
            if len(unread) > _READ_EVERY:
                sums += self._read(epoch, unread[:-1])
                unread = unread[-1:]
            if count % _LOG_EVERY == 0:
                logger.info(log_lines.batches_done(epoch, count, examples, time.time() - start))
        sums += self._read(epoch, unread)
        mx.nd.waitall()  # the last update belongs to the epoch
        seconds = time.time() - start
        logger.info(log_lines.batches_done(epoch, count, examples, seconds))
        chosen = max(sums[2], 1)
        return EpochResult(float(sums[0] / chosen), float(sums[1] / chosen), count, examples, seconds)

    def _step(self, batch: Batch) -> list[mx.nd.NDArray]:
        """One update; returns each device's summed losses, not waited for."""
        arrays = (batch.images, batch.boxes, batch.classes, batch.weights)
        shares = zip(*(self._split(array) for array in arrays), strict=True)
        with autograd.record():
            outputs = [self._block(*share) for share in shares]
        autograd.backward([loss for loss, _ in outputs])
        self._optimizer.step(len(batch.weights))
        self._updates += 1
        return [parts for _, parts in outputs]

    def _split(self, array: NDArray[np.generic]) -> list[mx.nd.NDArray]:
        whole = mx.nd.array(array, dtype=array.dtype)
        return gluon.utils.split_and_load(whole, self._devices, even_split=False)

    def _read(self, epoch: int, steps: list[tuple[int, list[mx.nd.NDArray]]]) -> NDArray[np.float64]:
        """Sums over the steps of cross entropy, smooth L1 and number of chosen anchors."""
        total = np.zeros(3)
        for number, parts in steps:
            values = np.sum([part.asnumpy() for part in parts], axis=0, dtype=np.float64)
            if not np.isfinite(values).all():
                raise diverged(f"The loss is not finite at epoch {epoch}, step {number}", self._optimizer.learning_rate)
            total += values
        return total

    def _set_learning_rate(self, epoch: int) -> None:
        rate = learning_rate(self._hyperparameters, epoch)
        if rate != self._optimizer.learning_rate:
            self._optimizer.set_learning_rate(rate)
            logger.info(log_lines.learning_rate(self._updates + 1, rate))


def frozen_parameters(pattern: str, network: Network) -> frozenset[str]:
    """Names that the pattern matches from their start; none for an empty pattern."""
    names = [*network.symbol.list_arguments(), *network.symbol.list_auxiliary_states()]
    return frozenset(name for name in names if pattern and re.match(pattern, name))


def diverged(what: str, rate: float) -> UserError:
    """The error of a training that left the finite numbers; `what` says where, `rate` is the learning rate."""
    return UserError(
        f"{what}; lower learning_rate (it is {rate:g}) by ten, and check the boxes of the training data. The last good "
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
