"""The values that training starts from: drawn, of pretrained weights, or of the model in channel model."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mxnet.base import MXNetError
from numpy.typing import NDArray

from ssd_algo.contract import log_lines
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.errors import UserError
from ssd_algo.model import artifact, pretrained
from ssd_algo.model.graph import names_of_class_heads, with_classes
from ssd_algo.model.network import (
    Network,
    build_network,
    constants,
    initial_parameters,
    parameter_shapes,
    with_momentum_of_statistics,
)
from ssd_algo.training.data import TrainingData
from ssd_algo.training.model_channel import listed, origins

logger = logging.getLogger(__name__)

# By how much a new class starts below the background, see `class_head`: e^-5 is 0.0067, the score threshold 0.01.
_BELOW_BACKGROUND = 5.0

Values = dict[str, NDArray[np.float32]]


def build_network_to_train(hyperparameters: Hyperparameters, data: TrainingData) -> Network:
    """The network of a job: a model of the built-in's goes on with the one that it has.

    Raises
    ------
    UserError
        When that is for another input, or the model is damaged.
    """
    hp = hyperparameters
    if data.model is None:
        return build_network(hp.base_network, hp.image_shape, hp.num_classes)
    with artifact.unpacked(data.model) as directory:
        model = artifact.read(directory)
        if model.preprocessing:
            logger.info("%s", model.preprocessing)
        if model.has_graph_of_builtin:
            network = _network_of_builtin(model, hp, directory)
        else:
            network = build_network(hp.base_network, hp.image_shape, hp.num_classes)
    return with_momentum_of_statistics(network, momentum_of_statistics(hp.learning_rate))


def _network_of_builtin(model: artifact.Model, hyperparameters: Hyperparameters, directory: Path) -> Network:
    side = model.description.image_shape
    if side != hyperparameters.image_shape:
        raise UserError(
            f"Channel model holds a network of the built-in algorithm for image_shape {side}, but the hyperparameter "
            f"image_shape is {hyperparameters.image_shape}; they must be the same."
        )
    count = len(model.parameters["anchors"][0])
    try:
        symbol = artifact.load_symbol(with_classes(model.symbol, hyperparameters.num_classes))
        _, shapes, _ = symbol.infer_shape(data=(1, 3, side, side))
    except (ValueError, MXNetError) as error:
        raise artifact.not_usable(directory) from error
    if shapes != [(1, count, hyperparameters.num_classes + 1), (1, count, 4)]:
        raise artifact.not_usable(directory)
    return Network(symbol, model.parameters["anchors"][0], tuple(model.parameters["data_mean"].ravel()), None)


def momentum_of_statistics(learning_rate: float) -> float:
    """Which share of a model's BatchNorm statistics a step of further training keeps.

    They need to follow no faster than the weights change. With the usual 0.9 hardly more than the last ten batches is
    left of them, whose noise an epoch at a rate of 1e-6 showed: nothing else changed in a model of drawn shapes, but
    with 8 images a step its mAP did by up to 0.035, with 0.99 by 0.005. From a rate of 0.001 on, where weights do
    change, it is 0.9.
    """
    return 1 - min(max(100 * learning_rate, 0.005), 0.1)


def starting_values(
    network: Network, hyperparameters: Hyperparameters, data: TrainingData, weights: Path | None
) -> Values:
    """The parameters to start from, with the network's constants.

    Parameters
    ----------
    network : Network
        Of these hyperparameters.
    hyperparameters : Hyperparameters
    data : TrainingData
        Its `model` has been checked; without one values are drawn.
    weights : Path or None
        Of the backbone, pretrained.

    Returns
    -------
    dict of float32 arrays by name

    Raises
    ------
    UserError
        When the file of weights is damaged, or the channel's model is, or does not fit the network.
    """
    if data.model is not None:
        with artifact.unpacked(data.model) as directory:
            values = _values_of_model(network, hyperparameters, data.class_names, directory)
        return values | constants(network)
    generator = np.random.default_rng(hyperparameters.seed)
    values = initial_parameters(network, hyperparameters.image_shape, generator) | constants(network)
    logger.info(log_lines.start_from_pretrained(hyperparameters.use_pretrained_model))
    if weights is not None:
        loaded = pretrained.load(weights, hyperparameters.base_network)
        logger.info(log_lines.loaded_pretrained(len(loaded), hyperparameters.base_network, str(weights)))
        values |= loaded
    return values


def _values_of_model(
    network: Network, hyperparameters: Hyperparameters, class_names: dict[int, str], directory: Path
) -> Values:
    read = artifact.read(directory)
    model, loaded = read.description, read.parameters
    shapes, heads = parameter_shapes(network, hyperparameters.image_shape), names_of_class_heads(read.symbol)
    for name, ours in shapes.items():
        shape = ours
        if name in heads:
            shape = (ours[0] // (hyperparameters.num_classes + 1) * (model.num_classes + 1), *ours[1:])
        if name not in loaded or loaded[name].shape != shape:
            found = loaded[name].shape if name in loaded else "missing"
            raise UserError(
                f"Channel model holds a model for image_shape {model.image_shape} that does not fit image_shape "
                f"{hyperparameters.image_shape}: {name} is {found}, not {shape}; use the model's image_shape."
            )
    logger.info("Training starts from the model of channel model.")
    values = {name: loaded[name] for name in shapes}
    if hyperparameters.transfer:
        identities = origins(model, class_names, hyperparameters.num_classes)
        _log_transfer(class_names, identities)
        values |= {n: class_head(each, model.num_classes, identities) for n, each in values.items() if n in heads}
    return values


def class_head(values: NDArray[np.float32], num_classes: int, origins: Sequence[int | None]) -> NDArray[np.float32]:
    """A class head's weight or bias for other classes than those that it was trained for.

    A class that has an origin keeps its row. A new one starts as the background: its logit is that of the background
    less 5 and the logarithm of the number of new classes. So all new ones together have less than e^-5 of the
    background's probability, none is detected before it has been trained, and the known classes keep their scores.

    Parameters
    ----------
    values : float32 (per_cell x (num_classes + 1), ...)
        Rows of an anchor's classes one after the other, the background first; one axis in a bias, four in a weight.
    num_classes : int
        Foreground classes of `values`.
    origins : sequence
        For each class of the result its id in `values`, None for a new one.

    Returns
    -------
    float32 (per_cell x (len(origins) + 1), ...)
    """
    rows = values.reshape(-1, num_classes + 1, *values.shape[1:])
    chosen = rows[:, [0, *(0 if each is None else each + 1 for each in origins)]]
    new = [index for index, each in enumerate(origins, 1) if each is None]
    if new and values.ndim == 1:
        chosen[:, new] -= np.float32(_BELOW_BACKGROUND + math.log(len(new)))
    return chosen.reshape(-1, *values.shape[1:])


def _log_transfer(class_names: dict[int, str], identities: list[int | None]) -> None:
    known = [class_names[index] for index, each in enumerate(identities) if each is not None]
    new = [class_names.get(index, str(index)) for index, each in enumerate(identities) if each is None]
    logger.info(
        "Classes carried over from the model: %s (%d). New classes: %s (%d).",
        listed(known),
        len(known),
        listed(new) or "none",
        len(new),
    )
