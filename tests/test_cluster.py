"""Which devices a training uses, and that several train as one."""

from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from conftest import SMALL, assert_refused, gpu_machine, train

from ssd_algo.training.cluster import contexts, kvstore_type


@pytest.mark.parametrize(
    ("devices", "gpus", "expected"),
    [
        ("auto", 0, [mx.cpu(0)]),
        ("auto", 2, [mx.gpu(0), mx.gpu(1)]),
        ("gpu:1", 1, [mx.gpu(0)]),
        ("cpu", 0, [mx.cpu(0)]),
        ("cpu:3", 0, [mx.cpu(0), mx.cpu(1), mx.cpu(2)]),
    ],
)
def test_devices(devices: str, gpus: int, expected: list[mx.Context]) -> None:
    assert contexts(devices, gpus) == expected


def test_the_store_of_one_machine() -> None:
    assert kvstore_type([mx.cpu(0), mx.cpu(1)]) == "local"
    assert kvstore_type([mx.gpu(0)]) == "device"
    assert kvstore_type([mx.gpu(0), mx.gpu(1)]) == "device"  # this build has no NCCL


def test_two_devices_through_the_front_door(base: Path) -> None:
    run = train(base, SMALL | {"devices": "cpu:2"})
    assert run.code == 0, run.err
    assert "Using [cpu(0), cpu(1)] as training context." in run.out
    arrays = mx.nd.load(str(base / "model" / "model_algo_1-0000.params"))
    assert all(np.isfinite(array.asnumpy()).all() for array in arrays.values())


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"devices": "cpu:9"},
            "hyperparameters: devices is cpu:9, but mini_batch_size is 8, and each device needs at least one image.",
        ),
        (
            {"devices": "gpu"},
            'hyperparameters: devices is "gpu" and must be auto, cpu, cpu:N or gpu:N with N from 1 to 99.',
        ),
        (
            {"devices": "gpu:2"},
            "devices is gpu:2, but this machine has 0 GPUs that can be used; use auto, or another instance.",
        ),
    ],
)
def test_devices_that_are_not_there(base: Path, changed: dict[str, str], sentence: str) -> None:
    assert_refused(train(base, SMALL | changed), sentence)


def test_the_driver_is_not_asked_for_the_cpu(base: Path) -> None:
    """On a machine whose GPU has no code in MXNet, which would be refused else; what ends the job is its stand-in."""
    machine = gpu_machine(base / "machine", "NVIDIA H100", (9, 0))
    run = train(base, SMALL | {"devices": "cpu"}, **machine)
    assert "mxnet is imported" in run.failure
