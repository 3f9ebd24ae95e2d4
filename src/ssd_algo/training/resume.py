"""A whole training as a checkpoint and back, and what may differ between the jobs at both ends."""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo import __version__
from ssd_algo.errors import UserError
from ssd_algo.training.checkpoint import Checkpoint
from ssd_algo.training.data import TrainingData, fingerprint
from ssd_algo.training.peers import Peers
from ssd_algo.training.trainer import EpochSoFar, Trainer, below
from ssd_algo.training.validation import Validation

logger = logging.getLogger(__name__)

# Other values of these are another network.
_NETWORK = ("base_network", "num_classes", "image_shape")
# Other values of these are other batches: an epoch that had begun begins anew.
_BATCHES = ("mini_batch_size", "seed")
# Say nothing of how a training goes on.
_WITHOUT_EFFECT = (
    "num_training_samples",
    "label_width",
    "checkpoint_minutes",
    "spool_mb",
    "max_bad_records",
    "devices",
    "transfer",
    "use_pretrained_model",
)


def snapshot(
    configuration: Mapping[str, str],
    data: TrainingData,
    steps_an_epoch: int,
    hosts: int,
    trainer: Trainer,
    validation: Validation,
) -> Checkpoint:
    """The training between two steps; waits for scores that are being made.

    Parameters
    ----------
    configuration : dict of strings, as `hyperparams.json`
    hosts : int
        That train together.
    """
    trainer_state, arrays = trainer.snapshot()
    validation_state, best = validation.snapshot()
    state = {
        "version": __version__,
        "hyperparameters": dict(configuration),
        "data": _described(data),
        "steps_an_epoch": steps_an_epoch,
        "hosts": hosts,
        "trainer": trainer_state,
        "validation": validation_state,
    }
    return Checkpoint(state, arrays | best)


def _described(data: TrainingData) -> dict[str, Any]:
    """By what the data are known again: number and some of the names of the training images, the classes."""
    return fingerprint(data.train) | {"classes": {str(k): v for k, v in data.class_names.items()}}


def values(
    checkpoint: Checkpoint, configuration: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """The network's parameters and constants, by name, which must have these shapes.

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
    found = below("parameters", checkpoint.arrays)
    # A model of the built-in's brings a network of its own.
    other = next((name for name in sorted(shapes) if name not in found or found[name].shape != shapes[name]), None)
    if other is not None:
        raise UserError(
            f"The checkpoint is of another network: its {other} is "
            f"{found[other].shape if other in found else 'missing'}, not {shapes[other]}; give the channel model that "
            "the training began with, or none if it had none, or an empty folder for checkpoints."
        )
    return found


def restore(
    checkpoint: Checkpoint,
    configuration: Mapping[str, str],
    data: TrainingData,
    steps_an_epoch: int,
    peers: Peers,
    trainer: Trainer,
    validation: Validation,
) -> None:
    """Go on from a checkpoint, all hosts at the same step; the log says which hyperparameters are others now.

    Raises
    ------
    UserError
        When the classes have other names.
    """
    before, ours, theirs = checkpoint.state["hyperparameters"], _described(data), checkpoint.state["data"]
    for identity in sorted(ours["classes"].keys() & theirs["classes"].keys()):
        if ours["classes"][identity] != theirs["classes"][identity]:
            raise UserError(
                f'The checkpoint\'s class {identity} is "{theirs["classes"][identity]}", but that of the data is '
                f'"{ours["classes"][identity]}"; give the same data, or an empty folder for checkpoints.'
            )
    changed = [name for name in configuration if _matters(name) and configuration[name] != before.get(name)]
    if changed:
        now = ", ".join(f"{name} {configuration[name]} (was {before.get(name)})" for name in changed)
        logger.info("Training goes on with other hyperparameters than the checkpoint's: %s.", now)
    arrays, state = dict(checkpoint.arrays), dict(checkpoint.state["trainer"])
    if "optimizer" in changed:
        arrays = {name: each for name, each in arrays.items() if not name.startswith("optimizer/")}
    # The chief decides: a shard's images are its own.
    other_images = peers.exchange("images", any(ours[name] != theirs[name] for name in ("images", "names")))[0]
    steps_before = checkpoint.state["steps_an_epoch"]
    other_batches = any(name in _BATCHES for name in changed) or steps_an_epoch != steps_before
    if other_images or other_batches or peers.size != checkpoint.state["hosts"]:
        what = "images" if other_images else "batches"
        logger.warning("The %s are others than the checkpoint's: training goes on at the start of an epoch.", what)
        state = _at_epoch(state, steps_before, steps_an_epoch)
    trainer.restore(state, arrays)
    validation.restore(checkpoint.state["validation"], arrays)
    so_far = trainer.so_far
    logger.info("Training goes on in epoch %d after batch %d.", so_far.epoch, so_far.batches)


def _matters(name: str) -> bool:
    return not name.startswith("_") and name not in _WITHOUT_EFFECT


def _at_epoch(state: dict[str, Any], steps_before: int, steps_an_epoch: int) -> dict[str, Any]:
    """The trainer's state for other batches than the checkpoint's: an epoch that had not ended begins anew."""
    first = state["so_far"][0]
    if first["batches"] >= steps_before:
        ended = [each | {"batches": steps_an_epoch} for each in state["so_far"]]
        return {"updates": (first["epoch"] + 1) * steps_an_epoch, "so_far": ended}
    begun = [asdict(EpochSoFar(first["epoch"])) for _ in state["so_far"]]
    return {"updates": first["epoch"] * steps_an_epoch, "so_far": begun}
