"""The network's forward pass: OpenVINO on CPUs, MXNet on GPUs and as what OpenVINO is compared with."""

import sys
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.boxes import Boxes

if TYPE_CHECKING:
    import mxnet as mx

# OpenVINO is imported below, and by who imports this. With that package, which comes with it where the lock is not
# heeded, it would send usage data to its maker, and leave an identity in HOME.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

Predictions = tuple[NDArray[np.float32], NDArray[np.float32]]


class Engine(Protocol):
    """Logits float32 (B, A, C + 1) and offsets float32 (B, A, 4) of uint8 (B, S, S, 3) RGB images.

    Each size of a batch costs time and memory when it comes first: give few sizes.
    """

    def __call__(self, images: NDArray[np.uint8]) -> Predictions: ...


def compile_network(network: bytes, image_shape: int, threads: int) -> tuple[Any, Boxes]:
    """An OpenVINO request, whose input is uint8 (B, S, S, 3) for any B, and the network's constant anchors (A, 4).

    Raises
    ------
    ValueError
        When the bytes are no network as `model.onnx_graph` makes it.
    """
    import openvino as ov

    core = ov.Core()
    # One network for all sizes of a batch, as each on its own would hold the weights once more. Containers share CPUs,
    # so that threads must not insist on some.
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,
    }
    try:
        model = core.read_model(network)
        (constant,) = (each for each in model.get_results() if "anchors" in each.get_input_tensor(0).get_names())
        anchors = np.array(constant.input_value(0).get_node().data[0])
        model.remove_result(constant)
        model = takes_images(model)
        model.reshape([-1, image_shape, image_shape, 3])
        return core.compile_model(model, "CPU", settings).create_infer_request(), anchors
    except (RuntimeError, ValueError, AttributeError) as error:
        raise ValueError(f"it is no network that OpenVINO can run ({error})") from error


def takes_images(model: Any) -> Any:
    """An OpenVINO model of float32 (B, 3, S, S) as one of uint8 (B, S, S, 3)."""
    import openvino as ov
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().model().set_layout(ov.Layout("NCHW"))
    return steps.build()


class OpenVINOEngine:
    """Forward pass in OpenVINO, on the CPU, in float32 and whatever is quantised in int8.

    Parameters
    ----------
    network : bytes
        ONNX, as `model.onnx_graph` makes it.
    image_shape : int
        Side S of the images, pixels.
    threads : int

    Attributes
    ----------
    anchors : float32 (A, 4)

    Raises
    ------
    ValueError
        When the bytes are no such network.
    """

    def __init__(self, network: bytes, image_shape: int, threads: int) -> None:
        self._request, self.anchors = compile_network(network, image_shape, threads)

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        outputs = self._request.infer({0: np.ascontiguousarray(images)})
        logits, offsets = (np.array(each) for each in outputs.to_tuple())  # copies: the next call writes over them
        return logits, offsets


class MXNetEngine:
    """Forward pass in MXNet, on one device.

    Parameters
    ----------
    symbol : group of `class_logits` and `box_offsets`, input `data`
    context : mxnet context
    parameters : dict of arrays by name, or a Gluon ParameterDict to share with a network in training
    """

    def __init__(
        self,
        symbol: "mx.sym.Symbol",
        context: "mx.Context",
        parameters: "dict[str, NDArray[np.float32]] | mx.gluon.ParameterDict",
    ) -> None:
        import mxnet as mx

        from ssd_algo.model.network import set_parameters, to_input

        self._mx, self._context = mx, context
        images = mx.sym.var("images", dtype="uint8")
        shared = None if isinstance(parameters, dict) else parameters
        self._block = mx.gluon.SymbolBlock(symbol(data=to_input(images)), [images], params=shared)
        if isinstance(parameters, dict):
            self._block.collect_params().setattr("grad_req", "null")
            set_parameters(self._block, parameters, [context])
        self._block.hybridize(static_alloc=True, static_shape=True)

    def arrays(self) -> "dict[str, mx.nd.NDArray]":
        """The parameters and constants in use, by name."""
        return {name: each.data(self._context) for name, each in self._block.collect_params().items()}

    def values(self) -> dict[str, NDArray[np.float32]]:
        """Copies of them."""
        return {name: each.asnumpy() for name, each in self.arrays().items()}

    def start(self, images: NDArray[np.uint8]) -> "list[mx.nd.NDArray]":
        """Begin, and return what will hold logits and offsets."""
        mx = self._mx
        return list(self._block(mx.nd.array(images, dtype="uint8", ctx=self._context)))

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        logits, offsets = (each.asnumpy() for each in self.start(images))
        return logits, offsets


class MultiDeviceEngine:
    """Several engines, each on a device of its own, which share a batch."""

    def __init__(self, engines: list[MXNetEngine]) -> None:
        self._engines = engines

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        parts = np.array_split(images, len(self._engines))
        begun = [engine.start(part) for engine, part in zip(self._engines, parts, strict=True) if len(part)]
        logits, offsets = (np.concatenate([each.asnumpy() for each in arrays]) for arrays in zip(*begun, strict=True))
        return logits, offsets
