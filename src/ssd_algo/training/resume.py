"""A whole training as a checkpoint and back, and what may differ between the jobs at both ends."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo import __version__
from ssd_algo.errors import UserError
from ssd_algo.training.checkpoint import Checkpoint
from ssd_algo.training.trainer import Trainer
from ssd_algo.training.validation import Validation

logger = logging.getLogger(__name__)

# Other values of these are another network.
_NETWORK = ("base_network", "num_classes", "image_shape")
# Other values of these are other batches: an epoch that had begun begins anew.
_BATCHES = ("mini_batch_size", "seed")
# Say nothing of how a training goes on.
_WITHOUT_EFFECT = ("num_training_samples", "label_width", "checkpoint_minutes", "max_bad_records", "cache_mb")


def snapshot(configuration: Mapping[str, str], samples: int, trainer: Trainer, validation: Validation) -> Checkpoint:
    """The training between two steps; waits for scores that are being made.

    Parameters
    ----------
    configuration : dict of strings, as `hyperparams.json`
    samples : int
        Training images.
    """
    trainer_state, arrays = trainer.snapshot()
    validation_state, best = validation.snapshot()
    state = {
        "version": __version__,
        "hyperparameters": dict(configuration),
        "samples": samples,
        "trainer": trainer_state,
        "validation": validation_state,
    }
    return Checkpoint(state, arrays | best)


def values(checkpoint: Checkpoint, configuration: Mapping[str, str]) -> dict[str, NDArray[np.float32]]:
    """The network's parameters and constants, by name.

    Raises
    ------
    UserError
        When they are another network's.
    """
    before = checkpoint.state["hyperparameters"]
    for name in _NETWORK:
        if configuration[name] != before.get(name):
            raise UserError(
                f"The checkpoint has {name} {before.get(name)}, but the hyperparameter {name} is "
                f"{configuration[name]}; give the checkpoint's value, or an empty folder for checkpoints."
            )
    return {n.removeprefix("parameters/"): each for n, each in checkpoint.arrays.items() if n.startswith("parameters/")}


def restore(
    checkpoint: Checkpoint,
    configuration: Mapping[str, str],
    samples: int,
    steps_an_epoch: int,
    trainer: Trainer,
    validation: Validation,
) -> None:
    """Go on from a checkpoint; the log says which hyperparameters are others now."""
    before = checkpoint.state["hyperparameters"]
    changed = [name for name in configuration if _matters(name) and configuration[name] != before.get(name)]
    if changed:
        now = ", ".join(f"{name} {configuration[name]} (was {before.get(name)})" for name in changed)
        logger.info("Training goes on with other hyperparameters than the checkpoint's: %s.", now)
    arrays, state = dict(checkpoint.arrays), dict(checkpoint.state["trainer"])
    if "optimizer" in changed:
        arrays = {name: each for name, each in arrays.items() if not name.startswith("optimizer/")}
    if checkpoint.state["samples"] != samples or any(name in _BATCHES for name in changed):
        state = _at_epoch(state, checkpoint.state["samples"], samples, steps_an_epoch)
    trainer.restore(state, arrays)
    validation.restore(checkpoint.state["validation"], arrays)
    so_far = trainer.so_far
    logger.info("Training goes on in epoch %d after batch %d.", so_far.epoch, so_far.batches)


def _matters(name: str) -> bool:
    return not name.startswith("_") and name not in _WITHOUT_EFFECT


def _at_epoch(state: dict[str, Any], samples: int, samples_now: int, steps_an_epoch: int) -> dict[str, Any]:
    """The trainer's state at an epoch's start, for batches that are not those of the checkpoint."""
    so_far = state["so_far"]
    ended = so_far["examples"] >= samples
    logger.warning(
        "The batches are others than the checkpoint's (%d training images, then %d): training goes on at the start of "
        "an epoch.",
        samples_now,
        samples,
    )
    epoch = so_far["epoch"] + ended
    return {"updates": epoch * steps_an_epoch, "so_far": {"epoch": epoch}}
