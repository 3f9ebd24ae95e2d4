"""The machine's GPUs, asked of the NVIDIA driver: MXNet would know them too, but takes seconds to import.

A process that has asked the driver cannot fork processes that use GPUs, as a server does. So a process of its own asks:

    python -m ssd_algo.contract.gpus
"""

import ctypes
import importlib.metadata
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_algo.errors import UserError

logger = logging.getLogger(__name__)

# The image's stand-in for the driver, with which MXNet's CUDA build can be imported on a machine without one.
STUB = Path("/opt/ssd-algo/libcuda-stub.so")

# What a job can be run on, for messages.
THAT_WORK = "an instance with a V100, T4, A100, A10G, L4 or L40S (P3, G4dn, P4d, G5, G6 or G6e)"

_DRIVER = "libcuda.so.1"
_NAME_BYTES = 256
# Of cuda.h
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NO_DEVICE = 100

# mxnet-cu112 has machine code for compute capability 5.0, 6.0, 7.0, 8.0 and 8.6, which runs on all of the same major
# number, and none that a driver could translate for others.
_MAJORS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name and compute capability (major, minor)."""

    name: str
    capability: tuple[int, int]


def installed() -> list[Gpu]:
    """GPUs of the machine, as far as `CUDA_VISIBLE_DEVICES` lets them be seen; none without a driver.

    Raises
    ------
    UserError
        When the driver fails.
    """
    command = [sys.executable, "-m", "ssd_algo.contract.gpus"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise UserError(f"The NVIDIA driver of this machine fails ({last}); use another instance.")
    return [Gpu(name, (major, minor)) for name, major, minor in json.loads(done.stdout)]


def _ask_driver() -> list[tuple[str, int, int]]:
    """Name, major and minor capability of each GPU."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        if "No such file" in str(error):
            return []
        raise
    started = driver.cuInit(0)
    if started == _NO_DEVICE:
        return []
    if started:
        raise OSError(f"cuInit: error {started}")
    count = ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    return [_describe(driver, index) for index in range(count.value)]


def _describe(driver: ctypes.CDLL, index: int) -> tuple[str, int, int]:
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, device)
    capability = []
    for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR):
        value = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return name.value.decode("utf-8", "replace"), capability[0], capability[1]


def mxnet_is_built_for_gpus() -> bool:
    """Whether the installed MXNet is the CUDA build."""
    try:
        importlib.metadata.version("mxnet-cu112")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def without_code(gpus: Sequence[Gpu]) -> str | None:
    """What is wrong with the first GPU that MXNet's CUDA build has no machine code for; None where all can be used."""
    for gpu in gpus:
        if gpu.capability[0] not in _MAJORS:
            return (
                f"The GPU {gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}, for which MXNet's "
                f"CUDA build has no code; use {THAT_WORK}, or one without a GPU."
            )
    return None


def usable() -> int:
    """How many GPUs MXNet can use; none, with a warning, where it cannot use those of the machine."""
    if not mxnet_is_built_for_gpus():
        return 0
    try:
        found = installed()
        wrong = without_code(found)
    except UserError as error:
        found, wrong = [], str(error)
    if wrong:
        logger.warning("%s The CPU is used.", wrong)
        return 0
    return len(found)


def provide_driver(stub: Path = STUB) -> None:
    """Let MXNet's CUDA build be imported on a machine without a driver, on which it then has no GPU.

    The stub is taken only when the loader finds no driver, and stands on no path of the loader's: so it can hide none.
    Once it is loaded, its name is that of the driver for all libraries that need one.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        if stub.is_file() and "No such file" in str(error):
            ctypes.CDLL(str(stub), mode=ctypes.RTLD_GLOBAL)


if __name__ == "__main__":
    try:
        print(json.dumps(_ask_driver()))
    except (OSError, AttributeError) as error:
        sys.exit(str(error))
