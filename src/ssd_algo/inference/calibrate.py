"""The int8 network: what its tensors are like on images, observed in OpenVINO."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from ssd_algo.data.images import Pixels
from ssd_algo.inference.engines import compile_network
from ssd_algo.model import quantize


def calibrated(network: onnx.ModelProto, image_shape: int, squares: Iterable[Pixels], threads: int) -> onnx.ModelProto:
    """The network with int8 convolutions.

    Parameters
    ----------
    network : onnx.ModelProto
        As `model.onnx_graph` makes it.
    image_shape : int
        Side S of the images, pixels.
    squares : uint8 (S, S, 3) RGB each
        Like those that it will see; two hundred are plenty.
    threads : int

    Raises
    ------
    ValueError
        When there is no image.
    """
    return quantize.quantised(network, quantize.seen(_observations(network, image_shape, squares, threads)))


def _observations(
    network: onnx.ModelProto, image_shape: int, squares: Iterable[Pixels], threads: int
) -> Iterator[Mapping[str, NDArray[np.float32]]]:
    request, _ = compile_network(quantize.observed(network).SerializeToString(), image_shape, threads)
    for square in squares:
        found = request.infer({0: square[None]})
        yield {name: value for output, value in found.items() for name in output.get_names() if "/" in name}
