"""Which GPUs can be used, asked of a driver of the test's own, through the front doors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import (
    SERVE,
    SMALL,
    TRAIN,
    Run,
    assert_refused,
    environment,
    gpu_machine,
    run_train,
    write_config,
    write_driver,
)

from ssd_algo import demo
from ssd_algo.contract.gpus import Gpu, without_code
from ssd_algo.contract.hyperparameters import Hyperparameters
from ssd_algo.training.job import classify, too_large

WORKS = [
    ("Tesla M60", (5, 2)),
    ("Tesla P100", (6, 0)),
    ("Tesla V100-SXM2-16GB", (7, 0)),
    ("Tesla T4", (7, 5)),
    ("NVIDIA A100-SXM4-40GB", (8, 0)),
    ("NVIDIA A10G", (8, 6)),
    ("NVIDIA L4", (8, 9)),
    ("NVIDIA L40S", (8, 9)),
]
HAS_NO_CODE = [("Tesla K80", (3, 7)), ("NVIDIA H100 80GB HBM3", (9, 0)), ("NVIDIA B200", (10, 0))]
MISSING = (
    "channel train: it is missing (channels: none); training needs train and validation, and for images with JSON "
    "annotations also train_annotation and validation_annotation. (1 more like it; the log and data_check.json list all.)"
)


def refusal(name: str, capability: tuple[int, int]) -> str:
    return (
        f"The GPU {name} has compute capability {capability[0]}.{capability[1]}, for which MXNet's CUDA build has no code; "
        "use an instance with a V100, T4, A100, A10G, L4 or L40S (P3, G4dn, P4d, G5, G6 or G6e), or one without a GPU."
    )


@pytest.mark.parametrize(("name", "capability"), WORKS)
def test_gpus_that_work(name: str, capability: tuple[int, int]) -> None:
    assert without_code([Gpu(name, capability)]) is None


@pytest.mark.parametrize(("name", "capability"), HAS_NO_CODE)
def test_gpus_that_do_not(name: str, capability: tuple[int, int]) -> None:
    assert without_code([Gpu("Tesla T4", (7, 5)), Gpu(name, capability)]) == refusal(name, capability)


@pytest.mark.parametrize(("name", "capability"), HAS_NO_CODE)
def test_a_job_on_a_gpu_without_code_is_refused(tmp_path: Path, name: str, capability: tuple[int, int]) -> None:
    """Before data is read, and without mxnet."""
    write_config(tmp_path, "hyperparameters", SMALL)
    assert_refused(
        run_train(tmp_path, **gpu_machine(tmp_path / "machine", name, capability)), refusal(name, capability)
    )


@pytest.mark.parametrize(("name", "capability"), WORKS)
def test_a_job_on_a_gpu_that_works_goes_on(tmp_path: Path, name: str, capability: tuple[int, int]) -> None:
    """To what is wrong next: there is no channel."""
    write_config(tmp_path, "hyperparameters", SMALL)
    run = run_train(tmp_path, **gpu_machine(tmp_path / "machine", name, capability, gpus=8))
    assert_refused(run, MISSING)
    assert f"Number of GPUs being used: 8 ({name})" in run.out


def test_without_a_gpu_the_log_says_so(tmp_path: Path) -> None:
    write_config(tmp_path, "hyperparameters", SMALL)
    run = run_train(tmp_path)
    assert_refused(run, MISSING)
    assert (
        "Number of GPUs being used: 0. Training runs on the CPU, which takes many times as long as on a GPU." in run.out
    )


def test_the_cpu_build_on_a_machine_with_a_gpu(tmp_path: Path) -> None:
    write_config(tmp_path, "hyperparameters", SMALL)
    machine = gpu_machine(tmp_path / "machine", "Tesla K80", (3, 7))
    run = run_train(tmp_path, LD_LIBRARY_PATH=machine["LD_LIBRARY_PATH"])
    assert_refused(run, MISSING)
    assert "The GPU Tesla K80 is not used: this image's MXNet is built for the CPU." in run.out


def test_the_cpu_build_does_not_mind_a_driver_that_fails(tmp_path: Path) -> None:
    write_config(tmp_path, "hyperparameters", SMALL)
    machine = gpu_machine(tmp_path / "machine", "Tesla T4", (7, 5), error=802)
    run = run_train(tmp_path, LD_LIBRARY_PATH=machine["LD_LIBRARY_PATH"])
    assert_refused(run, MISSING)
    assert "is not used" not in run.out


def test_a_server_on_a_gpu_without_code_uses_the_cpu(tmp_path: Path, trained: Run) -> None:
    machine = gpu_machine(tmp_path / "machine", "NVIDIA H100 80GB HBM3", (9, 0))
    Path(machine["PYTHONPATH"], "mxnet.py").unlink()  # this server imports the real one
    log = tmp_path / "serve.log"
    with demo.serving(SERVE, environment(trained.base, **machine), log) as url:
        photo = next((trained.base / "input" / "data" / "validation").iterdir())
        assert demo.post_image(url, photo.read_bytes())["prediction"]
    assert refusal("NVIDIA H100 80GB HBM3", (9, 0)) + " The CPU is used." in log.read_text()


def test_a_driver_that_fails(tmp_path: Path) -> None:
    """Not the same as no GPU: the machine was paid for. 802 is CUDA_ERROR_SYSTEM_NOT_READY."""
    write_config(tmp_path, "hyperparameters", SMALL)
    run = run_train(tmp_path, **gpu_machine(tmp_path / "machine", "NVIDIA A100-SXM4-40GB", (8, 0), gpus=8, error=802))
    assert_refused(run, "The NVIDIA driver of this machine fails (cuInit: error 802); use another instance.")


def test_a_driver_without_a_device(tmp_path: Path) -> None:
    write_config(tmp_path, "hyperparameters", SMALL)
    run = run_train(tmp_path, **gpu_machine(tmp_path / "machine", "none", (0, 0), error=100))
    assert_refused(run, MISSING)
    assert "Number of GPUs being used: 0." in run.out


def test_gpus_that_cuda_cannot_use(base: Path, tmp_path: Path) -> None:
    """The driver has them, MXNet does not see them: here it is the CPU build that is imported in truth."""
    machine = gpu_machine(tmp_path / "machine", "Tesla V100-SXM2-16GB", (7, 0), gpus=2)
    Path(machine["PYTHONPATH"], "mxnet.py").unlink()
    write_config(base, "hyperparameters", SMALL)
    assert_refused(
        run_train(base, **machine),
        "The machine's driver has 2 GPUs, but CUDA 11.2 cannot use it, perhaps as it is older; use an instance with a newer "
        "driver (450.80 or above).",
    )


def test_the_process_that_asks_is_another(tmp_path: Path) -> None:
    """A process that has started the driver cannot fork one that uses a GPU, as the server does."""
    write_driver(tmp_path / "driver" / "libcuda.so.1", "Tesla T4", (7, 5), 2)
    code = (
        "from ssd_algo.contract import gpus\n"
        "assert len(gpus.installed()) == 2\n"
        "assert 'libcuda' not in open('/proc/self/maps').read()\n"
    )
    variables = dict(os.environ) | {"LD_LIBRARY_PATH": str(tmp_path / "driver")}
    assert subprocess.run([sys.executable, "-c", code], env=variables).returncode == 0


@pytest.mark.parametrize(("one_shape", "autotune"), [(True, "1"), (False, "0")])
def test_what_mxnet_is_told(tmp_path: Path, one_shape: bool, autotune: str) -> None:
    """cuDNN tries its algorithms where all batches have one shape; the stub is loaded where there is no driver."""
    write_driver(tmp_path / "driver" / "stub.so", "stub", (0, 0), 1)
    code = (
        "import os, pathlib, sys\n"
        "from ssd_algo.contract import container, gpus\n"
        "gpus.provide_driver.__defaults__ = (pathlib.Path(sys.argv[2]),)\n"
        "container.set_up_mxnet(sys.argv[1] == 'True')\n"
        "print(os.environ['MXNET_CUDNN_AUTOTUNE_DEFAULT'], 'stub.so' in open('/proc/self/maps').read())\n"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MXNET")}
    command = [sys.executable, "-c", code, str(one_shape), str(tmp_path / "driver" / "stub.so")]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == f"{autotune} True\n"


@pytest.mark.parametrize(
    "text",
    [
        "cudaMalloc retry failed: out of memory",
        "Failed to find any forward convolution algorithm.  with workspace size of 1073741824 bytes, please consider "
        "reducing batch/model size or increasing the workspace size",
        "Create cublas handle failed",
        "cuDNN: Check failed: e == CUDNN_STATUS_SUCCESS (2 vs. 0) : CUDNN_STATUS_ALLOC_FAILED",
    ],
)
def test_ways_to_say_that_memory_is_short(text: str) -> None:
    assert str(classify(RuntimeError(text))).startswith("The device's memory is exhausted;")


def test_the_stub_hides_no_driver(tmp_path: Path) -> None:
    """With a driver on the loader's path it is not loaded; without one it is, under the driver's name."""
    write_driver(tmp_path / "driver" / "libcuda.so.1", "Tesla T4", (7, 5), 2)
    write_driver(tmp_path / "stub" / "libcuda-stub.so", "stub", (0, 0), 77)
    code = (
        "import ctypes, json, pathlib, sys\n"
        "from ssd_algo.contract import gpus\n"
        "gpus.provide_driver(pathlib.Path(sys.argv[1]))\n"
        "print(json.dumps([name for name, *_ in gpus._ask_driver()]))\n"
    )
    seen = {}
    for name, path in (("driver", str(tmp_path / "driver")), ("none", "")):
        command = [sys.executable, "-c", code, str(tmp_path / "stub" / "libcuda-stub.so")]
        variables = dict(os.environ) | {"LD_LIBRARY_PATH": path}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        seen[name] = json.loads(done.stdout)
    assert seen == {"driver": ["Tesla T4"] * 2, "none": ["stub"] * 77}


def test_the_stub_has_what_mxnet_is_linked_with() -> None:
    """The driver's functions that libmxnet.so of mxnet-cu112 1.9.1 leaves undefined."""
    source = (Path(__file__).parents[1] / "docker" / "libcuda_stub.c").read_text()
    assert sorted(re.findall(r"^NO_DEVICE\((\w+)\)$", source, re.MULTILINE)) == [
        "cuDeviceGet",
        "cuDevicePrimaryCtxRetain",
        "cuGetErrorString",
        "cuGraphKernelNodeGetParams",
        "cuGraphNodeGetType",
        "cuLaunchKernel",
        "cuModuleGetFunction",
        "cuModuleLoadData",
        "cuModuleLoadDataEx",
        "cuModuleUnload",
    ]


@pytest.mark.parametrize(
    ("batch_size", "devices", "sentence"),
    [
        (
            "32",
            4,
            "The memory does not hold mini_batch_size 32 at image_shape 128, 8 images on each of 4 GPUs; try "
            "mini_batch_size 16, a smaller image_shape, or an instance with more memory.",
        ),
        (
            "32",
            0,
            "The memory does not hold mini_batch_size 32 at image_shape 128; try mini_batch_size 16, a smaller image_shape, "
            "or an instance with more memory.",
        ),
        (
            "1",
            1,
            "The memory does not hold mini_batch_size 1 at image_shape 128; try a smaller base_network, a smaller "
            "image_shape, or an instance with more memory.",
        ),
    ],
)
def test_too_little_memory(batch_size: str, devices: int, sentence: str) -> None:
    assert str(too_large(Hyperparameters.parse(SMALL | {"mini_batch_size": batch_size}), devices)) == sentence


def test_too_little_memory_through_the_front_door(base: Path) -> None:
    """4096 images of 512 x 512 are 3.2 GB a batch, of which there are at least two, and the process may have 4 GB."""
    limited = ["bash", "-c", 'ulimit -v 4000000 && exec "$@"', "bash", *TRAIN]
    write_config(base, "hyperparameters", SMALL | {"mini_batch_size": "4096", "image_shape": "512"})
    done = subprocess.run(limited, env=environment(base), capture_output=True, text=True, timeout=600)
    assert_refused(
        Run(base, done.returncode, done.stdout, done.stderr),
        "The memory does not hold mini_batch_size 4096 at image_shape 512; try mini_batch_size 2048, a smaller image_shape, "
        "or an instance with more memory.",
    )
