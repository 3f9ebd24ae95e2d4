"""ImageNet weights for the backbones: fetched when the image is built, or given in a channel."""

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssd_algo.errors import UserError

Arrays = dict[str, NDArray[np.float32]]

_EXTENSIONS = (".params", ".safetensors")

# Base network -> its name in GluonCV's model zoo. VGG-16's has fc6 and fc7 reduced already.
_ZOO = {
    "vgg-16": "vgg16_atrous",
    "resnet-18": "resnet18_v1b",
    "resnet-34": "resnet34_v1b",
    "resnet-50": "resnet50_v1b",
    "resnet-101": "resnet101_v1b",
}

# Places of VGG-16's convolutions in torchvision's and Gluon's `features`.
_VGG_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)

# VGG's first dense layers are 4096 wide. SSD makes convolutions of 1024 filters of them by taking every fourth output
# and every third row and column of the 7 x 7 window, which the convolution's dilation of 6 (twice 3, as pool5 no longer
# halves) spreads out again (Liu et al. 2016, section 3; Chen et al. 2015, "DeepLab").
_EVERY_OUTPUT, _EVERY_CELL = 4, 3
_DENSE = {"fc6_weight": (4096, 25088), "fc6_bias": (4096,), "fc7_weight": (4096, 4096), "fc7_bias": (4096,)}


def in_channel(channel: Path) -> Path:
    """The file of weights in a channel's folder.

    Raises
    ------
    UserError
        When there is none, or several.
    """
    files = sorted(path for path in channel.rglob("*") if path.is_file() and not path.name.startswith("."))
    weights = [path for path in files if path.suffix in _EXTENSIONS]
    if len(weights) != 1:
        found = ", ".join(path.name for path in files[:5]) or "nothing"
        raise UserError(
            f"{channel} of channel pretrained must hold one .params or .safetensors file; it holds {found}."
        )
    return weights[0]


def in_image(directory: Path, base_network: str) -> Path:
    """The file of a backbone's weights among the image's.

    Raises
    ------
    UserError
        When it is not there.
    """
    path = directory / f"{base_network}.params"
    if not path.is_file():
        raise UserError(
            f"use_pretrained_model is 1, but there are no weights of {base_network} in this image ({path}); build the "
            "image with PRETRAINED=1, or give a .params or .safetensors file in a channel named pretrained, or set "
            "use_pretrained_model to 0."
        )
    return path


def load(path: Path, base_network: str) -> Arrays:
    """A backbone's parameters from a file of weights, under the network's names.

    Files are GluonCV's `.params` (of the classifier or, for VGG-16, the reduced network) and a `.safetensors` with the
    state dict of torchvision's classifier. What belongs to the classifier's last layer is left out.

    Raises
    ------
    UserError
        When the file is damaged, or an array is missing, too many, or of another shape.
    """
    arrays = _read(path)
    layouts = [each for each in _layouts(base_network) if each.extension == path.suffix]
    layout = max(layouts, key=lambda each: len(arrays.keys() & set(each.names.values())))
    _account(path, base_network, layout, arrays)
    return {
        name: np.ascontiguousarray(layout.convert.get(name, _unchanged)(arrays[theirs]), dtype=np.float32)
        for name, theirs in layout.names.items()
        if theirs in arrays
    }


@dataclass(frozen=True)
class _Layout:
    """How a kind of file calls and shapes a backbone's parameters.

    Attributes
    ----------
    names : dict
        The network's name of a parameter to the file's.
    shapes : dict
        The network's name to the shape in the file.
    convert : dict
        The network's name to what makes the network's array of the file's, where they differ.
    optional : set
        The network's names of parameters that the file may lack.
    unused : regular expression of the file's arrays that are not needed
    """

    extension: str
    names: dict[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    convert: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    unused: str = r"(?!)"


def _layouts(base_network: str) -> list[_Layout]:
    from ssd_algo.model import backbones

    shapes = backbones.parameter_shapes(base_network)
    if base_network == "vgg-16":
        return _vgg_layouts(shapes)
    structural, legacy = backbones.gluon_names(base_network)
    torch = {name: re.sub("gamma$", "weight", re.sub("beta$", "bias", theirs)) for name, theirs in structural.items()}
    return [
        _Layout(".params", structural, shapes, unused=r"fc\.(weight|bias)"),
        _Layout(".params", legacy, shapes, unused=r"dense0_(weight|bias)"),
        _Layout(".safetensors", torch, shapes, unused=r"fc\.(weight|bias)|.*\.num_batches_tracked"),
    ]


def _vgg_layouts(shapes: Mapping[str, tuple[int, ...]]) -> list[_Layout]:
    from ssd_algo.model import backbones
    from ssd_algo.model.network import RGB_STD

    structural, legacy = backbones.gluon_names("vgg-16")
    # GluonCV's reduced network multiplies its normalised input by the standard deviation again, ours does not.
    scale = np.asarray(RGB_STD, dtype=np.float32).reshape(1, 3, 1, 1)
    scaled = {"conv1_1_weight": lambda weight: weight * scale}
    no_scale = frozenset({"relu4_3_scale"})
    layouts = [
        _Layout(".params", structural, shapes, scaled, no_scale, unused=r"init_scale|extras\..*"),
        _Layout(".params", legacy, shapes, scaled, no_scale, unused=r"init_scale|extra\d+_.*"),
    ]
    convolutions = [name for name in shapes if name.startswith("conv") and name.endswith("_weight")]
    convert = {
        "fc6_weight": _reduce_fc6,
        "fc7_weight": _reduce_fc7,
        "fc6_bias": _reduce_bias,
        "fc7_bias": _reduce_bias,
    }
    for extension, dense, last in (
        (".params", ("features.31", "features.33"), "output"),
        (".safetensors", ("classifier.0", "classifier.3"), "classifier.6"),
    ):
        places = dict(zip(convolutions, (f"features.{index}" for index in _VGG_FEATURES), strict=True))
        places |= dict(zip(("fc6_weight", "fc7_weight"), dense, strict=True))
        names = {
            name.replace("weight", kind): f"{place}.{kind}"
            for name, place in places.items()
            for kind in ("weight", "bias")
        }
        unused = rf"{re.escape(last)}\.(weight|bias)"
        layouts.append(_Layout(extension, names, dict(shapes) | _DENSE, convert, unused=unused))
    return layouts


def _reduce_fc6(weight: NDArray[Any]) -> NDArray[Any]:
    """(4096, 25088) to (1024, 512, 3, 3)."""
    return weight.reshape(4096, 512, 7, 7)[::_EVERY_OUTPUT, :, ::_EVERY_CELL, ::_EVERY_CELL]


def _reduce_fc7(weight: NDArray[Any]) -> NDArray[Any]:
    """(4096, 4096) to (1024, 1024, 1, 1)."""
    return weight[::_EVERY_OUTPUT, ::_EVERY_OUTPUT, None, None]


def _reduce_bias(bias: NDArray[Any]) -> NDArray[Any]:
    return bias[::_EVERY_OUTPUT]


def _unchanged(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _account(path: Path, base_network: str, layout: _Layout, arrays: Arrays) -> None:
    """See that every array of the file is used or known to be of no use, and none is missing or misshapen."""
    wanted = {theirs: layout.shapes[name] for name, theirs in layout.names.items()}
    needed = {theirs for name, theirs in layout.names.items() if name not in layout.optional}
    missing = sorted(needed - arrays.keys())
    extra = sorted(name for name in arrays.keys() - wanted.keys() if not re.fullmatch(layout.unused, name))
    misshapen = [
        f"{name} has the shape {arrays[name].shape}, not {shape}"
        for name, shape in wanted.items()
        if name in arrays and arrays[name].shape != shape
    ]
    whole_numbers = [
        f"{name} is of {arrays[name].dtype}" for name in wanted if name in arrays and arrays[name].dtype.kind != "f"
    ]
    not_finite = [f"{name} is not finite" for name in wanted if name in arrays and not np.isfinite(arrays[name]).all()]
    faults = [
        *([f"{_named(missing)} missing"] if missing else []),
        *([f"{_named(extra)} not among its arrays"] if extra else []),
        *misshapen[:3],
        *whole_numbers[:3],
        *not_finite[:3],
    ]
    if faults:
        raise UserError(
            f"{path} does not hold the weights of {base_network}: {'; '.join(faults)}. Give GluonCV's .params file or "
            "a .safetensors with torchvision's state dict of this network."
        )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def _read(path: Path) -> Arrays:
    """All arrays of a file by the names that they have there."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.numpy import load_file

            try:
                return {name.removeprefix("module."): array for name, array in load_file(path).items()}
            except (SafetensorError, KeyError, TypeError, AttributeError, OSError) as error:
                raise ValueError(str(error)) from error
        import mxnet as mx

        try:
            loaded = mx.nd.load(str(path))
        except mx.base.MXNetError as error:
            raise ValueError(str(error).splitlines()[-1]) from error
        if not isinstance(loaded, dict):
            raise ValueError("its arrays have no names")
        return {re.sub("^(arg|aux):", "", name): array.asnumpy() for name, array in loaded.items()}
    except ValueError as error:
        raise UserError(
            f"{path} is damaged, no file of weights, or not in float32 or float16 ({error}); give another one."
        ) from error


def fetch(directory: Path) -> None:
    """Put the weights of all backbones into a directory, from GluonCV's model zoo, with its checksums.

    Raises
    ------
    UserError
        When one cannot be had.
    """
    from gluoncv.model_zoo.model_store import get_model_file

    directory.mkdir(parents=True, exist_ok=True)
    for base_network, name in _ZOO.items():
        with tempfile.TemporaryDirectory(dir=directory) as temporary:
            try:
                found = get_model_file(name, root=temporary)
            except Exception as error:  # whatever the network, the archive or the checksum had to say
                raise UserError(
                    f"The weights of {base_network} ({name} of GluonCV's model zoo) cannot be fetched "
                    f"({type(error).__name__}: {error}); build with PRETRAINED=0 to go without them."
                ) from error
            load(Path(found), base_network)
            os.replace(found, directory / f"{base_network}.params")
