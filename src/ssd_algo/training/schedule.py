"""Learning rate and early stopping as pure functions."""

import math
from collections.abc import Sequence

from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.training.recipe import RECIPES

_LAST_RATE = 0.01  # share of the learning rate that cosine ends at: the last steps still move

# Steps from one update of the average to the next: it costs as much as a third of the optimizer.
AVERAGE_EVERY = 5


def learning_rate(hyperparameters: Hyperparameters, step: int, steps_an_epoch: int) -> float:
    """The learning rate of a step, counted from 0.

    Warm-up is linear, as long as the recipe says. Then `step` reduces by `lr_scheduler_factor` at the start of each
    epoch of `lr_scheduler_step`, and `cosine` follows half a wave down to a hundredth at the last step (Loshchilov and
    Hutter 2017, without restarts).
    """
    steps = hyperparameters.epochs * steps_an_epoch
    warm_up = warm_up_steps(hyperparameters, steps)
    if step < warm_up:
        return hyperparameters.learning_rate * (step + 1) / (warm_up + 1)
    if hyperparameters.lr_scheduler == "cosine":
        done = (step - warm_up) / max(1, steps - 1 - warm_up)
        share = _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * min(1, done))) / 2
        return hyperparameters.learning_rate * share
    behind = sum(each <= step // steps_an_epoch for each in hyperparameters.lr_scheduler_step)
    return hyperparameters.learning_rate * hyperparameters.lr_scheduler_factor**behind


def warm_up_steps(hyperparameters: Hyperparameters, steps: int) -> int:
    """Steps of a training of `steps` whose learning rate rises."""
    recipe = RECIPES[hyperparameters.recipe]
    return min(round(recipe.warm_up * steps), recipe.longest_warm_up)


def averaging_rate(hyperparameters: Hyperparameters, step: int, steps: int) -> float:
    """How much the average of the weights takes from those after a step, counted from 0, for `AVERAGE_EVERY` steps.

    At first nearly all, as there is little to look back on.
    """
    average = RECIPES[hyperparameters.recipe].average
    assert average is not None
    one = max(1 / max(1, average * steps), 9 / (10 + step))
    return 1 - (1 - one) ** AVERAGE_EVERY


def should_stop(hyperparameters: Hyperparameters, scores: Sequence[float]) -> bool:
    """Whether early stopping ends the training after these validations' mAPs.

    One improves when its mAP exceeds the best before by more than `early_stopping_tolerance` of that best. Epochs that
    `validate_every` leaves out count as waited for.
    """
    every = hyperparameters.validate_every
    if not hyperparameters.early_stopping or len(scores) * every < hyperparameters.early_stopping_min_epochs:
        return False
    best, waited = scores[0], 0
    for score in scores[1:]:
        if score - best > hyperparameters.early_stopping_tolerance * best:
            best, waited = score, 0
        else:
            waited += every
    return waited >= hyperparameters.early_stopping_patience


class ServerSchedule:
    """The learning rate on a server, which counts every host's updates; used as MXNet's LRScheduler.

    Servers read it while they import mxnet, so that nothing here may.
    """

    def __init__(self, hyperparameters: Hyperparameters, steps_an_epoch: int, hosts: int) -> None:
        self.base_lr = hyperparameters.learning_rate
        self._hyperparameters, self._steps_an_epoch, self._hosts = hyperparameters, steps_an_epoch, hosts

    def __call__(self, num_update: int) -> float:
        return learning_rate(self._hyperparameters, (num_update - 1) // self._hosts, self._steps_an_epoch)
