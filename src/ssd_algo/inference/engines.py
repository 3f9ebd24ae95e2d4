"""The network's forward pass."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import mxnet as mx

Predictions = tuple[NDArray[np.float32], NDArray[np.float32]]


def devices() -> "list[mx.Context]":
    """What to compute on: all GPUs of the machine, else the CPU. The one place where devices are chosen."""
    import mxnet as mx

    return [mx.gpu(index) for index in range(mx.context.num_gpus())] or [mx.cpu()]


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

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        """Logits float32 (B, A, C + 1) and offsets float32 (B, A, 4) of uint8 (B, S, S, 3) RGB images."""
        mx = self._mx
        logits, offsets = self._block(mx.nd.array(images, dtype="uint8", ctx=self._context))
        return logits.asnumpy(), offsets.asnumpy()
