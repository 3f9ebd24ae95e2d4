"""The devices a job trains on."""

import mxnet as mx


def devices() -> list[mx.Context]:
    """All GPUs of the machine, else the CPU."""
    return [mx.gpu(index) for index in range(mx.context.num_gpus())] or [mx.cpu()]
