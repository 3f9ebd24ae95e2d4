"""The network's forward pass."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import mxnet as mx

Predictions = tuple[NDArray[np.float32], NDArray[np.float32]]


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

        self._mx, self._context = mx, context
        graph = symbol(data=mx.sym.transpose(mx.sym.cast(mx.sym.var("images"), dtype="float32"), axes=(0, 3, 1, 2)))
        inputs = [mx.sym.var("images")]
        if isinstance(parameters, dict):
            self._block = mx.gluon.SymbolBlock(graph, inputs)
            for name, parameter in self._block.collect_params().items():
                parameter.shape = parameters[name].shape
                parameter.initialize(mx.init.Zero(), ctx=context)
                parameter.set_data(mx.nd.array(parameters[name]))
        else:
            self._block = mx.gluon.SymbolBlock(graph, inputs, params=parameters)
        self._block.hybridize(static_alloc=True, static_shape=True)

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        """Logits float32 (B, A, C + 1) and offsets float32 (B, A, 4) of uint8 (B, S, S, 3) RGB images."""
        mx = self._mx
        logits, offsets = self._block(mx.nd.array(images, dtype="uint8", ctx=self._context))
        return logits.asnumpy(), offsets.asnumpy()
