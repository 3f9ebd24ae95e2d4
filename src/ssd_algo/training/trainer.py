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
from ssd_algo.training.recipe import RECIPES
from ssd_algo.training.schedule import AVERAGE_EVERY, averaging_rate, learning_rate

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
    steps_an_epoch : int
        What the schedule counts with.
    """

    def __init__(
        self,
        network: Network,
        values: dict[str, NDArray[np.float32]],
        hyperparameters: Hyperparameters,
        devices: list[mx.Context],
        steps_an_epoch: int,
    ) -> None:
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
        self._optimizer = gluon.Trainer(
            self._trained,
            hyperparameters.optimizer,
            _optimizer_settings(hyperparameters),
            kvstore="device",  # dist_* is between machines, and there is one
            update_on_kvstore=False,
        )
        self._updates = 0
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
        """Parameters, BatchNorm's statistics and the constants, by name; of one of the kinds that `engines` has."""
        values = {name: each.data(self._devices[0]).asnumpy() for name, each in self._parameters.items()}
        return values if kind == "last" or self._average is None else values | self._average.engine.values()

    def train_epoch(self, epoch: int, batches: Iterable[Batch]) -> EpochResult:
        """Train on the batches of an epoch, counted from 0.

        Raises
        ------
        UserError
            When the loss is not finite.
        """
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
        if self._average is not None:
            self._average.copy_statistics()
            mx.nd.waitall()
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
        self._update(len(batch.weights))
        return [parts for _, parts in outputs]

    def _update(self, batch_size: int) -> None:
        """Change the parameters by the gradients, which are sums over the batch."""
        hp = self._hyperparameters
        self._set_learning_rate(learning_rate(hp, self._updates, self._steps_an_epoch))
        self._optimizer.allreduce_grads()
        if self._recipe.clipped_norm is not None:
            for device in self._devices:
                gradients = [parameter.grad(device) for parameter in self._trained]
                # check_isfinite reads a scalar; a gradient that is not finite shows in the loss one step later
                gluon.utils.clip_global_norm(gradients, self._recipe.clipped_norm * batch_size, check_isfinite=False)
        self._optimizer.update(batch_size)
        if self._average is not None and self._updates % AVERAGE_EVERY == 0:
            rate = averaging_rate(hp, self._updates, hp.epochs * self._steps_an_epoch)
            self._average.follow(rate)
        self._updates += 1

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
