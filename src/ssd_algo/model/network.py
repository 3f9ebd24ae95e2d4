"""The SSD detector as a symbol: backbone, extra feature layers, heads (Liu et al. 2016)."""

import json
from dataclasses import dataclass, replace

import mxnet as mx
import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import anchors as anchor_layout
from ssd_algo.data.boxes import Boxes
from ssd_algo.model import backbones

# RGB mean and standard deviation of ImageNet on the 0-255 scale, which GluonCV's and torchvision's weights expect.
RGB_MEAN = (123.675, 116.28, 103.53)
RGB_STD = (58.395, 57.12, 57.375)

# Fixed values that live beside the trained parameters in the artifact.
CONSTANTS = ("data_mean", "data_std", "anchors")

# How much of the feature maps the heads see. Heads sum over thousands of inputs of size one, so their outputs move that
# much faster than the backbone's; scaled, training from scratch at 0.001 to 0.01 does not overshoot in its first steps.
_HEAD_INPUT_SCALE = 0.3

_CLASS_HEAD = "_cls_pred"

# Extra layers after the backbone's last map: filters, kernel, stride, padding of the 3x3 convolution (the 1x1 before it
# has half the filters). A large input has one more, and ends in a 4x4 that turns a 2x2 map into one cell.
_SMALL_EXTRAS = [(512, 3, 2, 1), (256, 3, 2, 1), (256, 3, 1, 0), (256, 3, 1, 0)]
_LARGE_EXTRAS = [(512, 3, 2, 1), (256, 3, 2, 1), (256, 3, 2, 1), (256, 3, 2, 1), (256, 4, 1, 1)]
# A ResNet brings a map of stride 32 of its own and so leaves out one extra layer of stride 2.
_RESNET_LEAVES_OUT = 1


@dataclass(frozen=True)
class Network:
    """A detector's graph.

    Attributes
    ----------
    symbol : group of `class_logits` (B, A, C + 1), background first, and `box_offsets` (B, A, 4)
        Input `data`, float32 (B, 3, S, S), raw RGB 0-255.
    anchors : float32 (A, 4), corners as fractions
    mean : per channel, subtracted from `data`
    std : per channel, by which it is divided then; None in a network of the built-in's, which is not
    """

    symbol: mx.sym.Symbol
    anchors: Boxes
    mean: tuple[float, ...] = RGB_MEAN
    std: tuple[float, ...] | None = RGB_STD


def build_network(base_network: str, image_shape: int, num_classes: int) -> Network:
    """The network for a base network, an input side in pixels (at least 128) and a number of foreground classes."""
    with mx.name.NameManager():  # automatic operator names start from 0, whatever was built before
        return _build(base_network, image_shape, num_classes)


def _build(base_network: str, image_shape: int, num_classes: int) -> Network:
    data = mx.sym.var("data")
    mean = mx.sym.var("data_mean", shape=(1, 3, 1, 1))
    std = mx.sym.var("data_std", shape=(1, 3, 1, 1))
    normalised = mx.sym.broadcast_div(mx.sym.broadcast_sub(data, mean), std, name="normalised")
    maps = backbones.features(base_network, normalised)
    maps |= _extra_maps(list(maps.values())[-1], base_network, image_shape)
    map_sizes = [_size(each, image_shape) for each in maps.values()]
    per_cell = anchor_layout.anchors_per_cell(len(maps))
    logits, offsets = [], []
    for (name, each), cell in zip(maps.items(), per_cell, strict=True):
        logits.append(_head(each, f"{name}{_CLASS_HEAD}", cell, num_classes + 1))
        offsets.append(_head(each, f"{name}_loc_pred", cell, 4))
    return Network(
        symbol=mx.sym.Group(
            [
                mx.sym.concat(*logits, dim=1, name="class_logits"),
                mx.sym.concat(*offsets, dim=1, name="box_offsets"),
            ]
        ),
        anchors=anchor_layout.anchors(image_shape, map_sizes),
    )


def with_momentum_of_statistics(network: Network, momentum: float) -> Network:
    """The same network, whose BatchNorm layers keep this share of their moving statistics at each training step."""
    graph = json.loads(network.symbol.tojson())
    for node in graph["nodes"]:
        if node["op"] == "BatchNorm":
            node["attrs"]["momentum"] = str(momentum)
    return replace(network, symbol=mx.sym.load_json(json.dumps(graph)))


def to_input(images: mx.sym.Symbol) -> mx.sym.Symbol:
    """The network's `data` from uint8 (B, S, S, 3) images, as part of a graph."""
    return mx.sym.transpose(mx.sym.cast(images, dtype="float32"), axes=(0, 3, 1, 2))


def _extra_maps(x: mx.sym.Symbol, base_network: str, image_shape: int) -> dict[str, mx.sym.Symbol]:
    """Feature maps after the backbone's; a layer whose map would vanish ends the list."""
    is_resnet = base_network in backbones.RESNETS
    specification = list(_LARGE_EXTRAS if anchor_layout.is_large(image_shape) else _SMALL_EXTRAS)
    if is_resnet:
        del specification[1 : 1 + _RESNET_LEAVES_OUT]
    side = _size(x, image_shape)[0]
    maps = {}
    for index, (filters, kernel, stride, pad) in enumerate(specification):
        side = (side + 2 * pad - kernel) // stride + 1
        if side < 1:
            break
        name = f"multi_feat_{index + 2}"  # the built-in's numbers: 0 and 1 are the backbone's own maps
        x = _convolution(x, f"{name}_conv_1x1", is_resnet, filters // 2, (1, 1), (1, 1), (0, 0))
        x = _convolution(x, f"{name}_conv_3x3", is_resnet, filters, (kernel,) * 2, (stride,) * 2, (pad,) * 2)
        maps[f"{name}_conv_3x3_relu"] = x
    return maps


def _convolution(
    x: mx.sym.Symbol,
    name: str,
    batch_norm: bool,
    filters: int,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    pad: tuple[int, int],
) -> mx.sym.Symbol:
    """Convolution and ReLU; with BatchNorm between them, and then no bias, where the backbone has it too."""
    x = mx.sym.Convolution(
        x, name=f"{name}_conv", num_filter=filters, kernel=kernel, stride=stride, pad=pad, no_bias=batch_norm
    )
    if batch_norm:
        x = mx.sym.BatchNorm(x, name=f"{name}_bn", fix_gamma=False, eps=1e-5, momentum=0.9)
    return mx.sym.Activation(x, name=f"{name}_relu", act_type="relu")


def _head(x: mx.sym.Symbol, name: str, per_cell: int, values: int) -> mx.sym.Symbol:
    """Predictions of one feature map, (B, cells x per_cell, values)."""
    x = mx.sym.Convolution(
        x * _HEAD_INPUT_SCALE, name=f"{name}_conv", num_filter=per_cell * values, kernel=(3, 3), pad=(1, 1)
    )
    x = mx.sym.transpose(x, axes=(0, 2, 3, 1))
    return mx.sym.reshape(x, shape=(0, -1, values), name=f"{name}_rows")


def _size(feature_map: mx.sym.Symbol, image_shape: int) -> tuple[int, int]:
    _, (shape,), _ = feature_map.infer_shape(data=(1, 3, image_shape, image_shape))
    return shape[2], shape[3]


def constants(network: Network) -> dict[str, NDArray[np.float32]]:
    """The values of those of `CONSTANTS` that it has: per-channel mean and standard deviation, anchors (1, A, 4)."""
    channels = {"data_mean": network.mean} | ({} if network.std is None else {"data_std": network.std})
    return {name: np.asarray(each, dtype=np.float32).reshape(1, 3, 1, 1) for name, each in channels.items()} | {
        "anchors": network.anchors[None]
    }


def parameter_shapes(network: Network, image_shape: int) -> dict[str, tuple[int, ...]]:
    """Shapes of all trained parameters and of BatchNorm's moving statistics, by name."""
    symbol = network.symbol
    arguments, _, auxiliaries = symbol.infer_shape(data=(1, 3, image_shape, image_shape))
    shapes = dict(zip(symbol.list_arguments(), arguments, strict=True))
    shapes.update(zip(symbol.list_auxiliary_states(), auxiliaries, strict=True))
    return {name: shape for name, shape in shapes.items() if name != "data" and name not in CONSTANTS}


def initial_parameters(
    network: Network, image_shape: int, generator: np.random.Generator
) -> dict[str, NDArray[np.float32]]:
    """Values to start training from, drawn in the order of the names.

    Convolutions followed by ReLU: normal, variance `2 / fan_in` (He et al. 2015). Heads: normal, standard deviation
    0.01. Biases and moving means 0; gammas and moving variances 1; L2-normalisation's scale 20 (Liu et al. 2016).
    """
    values = {}
    for name, shape in sorted(parameter_shapes(network, image_shape).items()):
        if name.endswith("_pred_conv_weight"):
            value = generator.normal(0, 0.01, shape)
        elif name.endswith("_weight"):
            value = generator.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        elif name.endswith(("_gamma", "_moving_var")):
            value = np.ones(shape)
        elif name.endswith("_scale"):
            value = np.full(shape, 20.0)
        else:
            value = np.zeros(shape)
        values[name] = value.astype(np.float32)
    return values


def set_parameters(
    block: mx.gluon.SymbolBlock, values: dict[str, NDArray[np.float32]], contexts: list[mx.Context]
) -> None:
    """Give a block's parameters their values, by name, on every context."""
    for name, parameter in block.collect_params().items():
        parameter.shape = values[name].shape
        parameter.initialize(mx.init.Zero(), ctx=contexts)
        parameter.set_data(mx.nd.array(values[name]))
