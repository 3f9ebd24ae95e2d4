"""The devices of a training, and how their gradients meet."""

import mxnet as mx


def contexts(devices: str, gpus: int) -> list[mx.Context]:
    """What to train on.

    Parameters
    ----------
    devices : str
        The hyperparameter.
    gpus : int
        GPUs to use; 0 means the CPU.
    """
    if gpus:
        return [mx.gpu(index) for index in range(gpus)]
    kind, _, number = devices.partition(":")
    return [mx.cpu(index) for index in range(int(number) if kind == "cpu" and number else 1)]


def kvstore_type(devices: list[mx.Context]) -> str:
    """The KVStore over which the devices of one machine reduce their gradients.

    In `local` the CPU reduces, in `device` and `nccl` the GPUs do; NCCL where it is built in and there are several.
    """
    if devices[0].device_type == "cpu":
        return "local"
    return "nccl" if len(devices) > 1 and mx.runtime.Features().is_enabled("NCCL") else "device"
