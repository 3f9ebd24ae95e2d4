"""The devices a job trains on."""

import mxnet as mx

from ssd_algo.errors import UserError


def devices(batch_size: int) -> list[mx.Context]:
    """All GPUs of the machine, else the CPU.

    Raises
    ------
    UserError
        When the batch has fewer images than there are devices.
    """
    gpus = mx.context.num_gpus()
    if batch_size < gpus:
        raise UserError(
            f"mini_batch_size is {batch_size}, but this machine has {gpus} GPUs and each needs at least one image; "
            f"set it to {gpus} or more."
        )
    return [mx.gpu(index) for index in range(gpus)] or [mx.cpu()]
