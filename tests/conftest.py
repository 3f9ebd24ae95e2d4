"""A real folder tree, the real scripts and a real server, as the platform would use them."""

import contextlib
import fcntl
import json
import os
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from ssd_algo import demo
from ssd_algo.data.annotations import read_image_channel
from ssd_algo.data.files import list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Rules

# mxnet 1.9.1 on Python 3.11 leaves an unclosed file and deprecated NumPy names behind while it is imported.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mxnet  # noqa: F401
    from gluoncv import model_zoo  # noqa: F401

ROOT = Path(__file__).parents[1]
TRAIN = [sys.executable, str(ROOT / "scripts" / "train")]
SERVE = [sys.executable, str(ROOT / "scripts" / "serve")]

LIMIT = 600.0  # seconds of a training

# A network and a budget that a test can wait for.
SMALL = {
    "num_classes": "3",
    "num_training_samples": "40",
    "base_network": "resnet-18",
    "use_pretrained_model": "0",
    "image_shape": "128",
    "mini_batch_size": "8",
    "learning_rate": "0.005",
    "epochs": "1",
    "export_int8": "0",
}


@dataclass(frozen=True)
class Run:
    """A finished training: base folder, exit code, what it printed, its failure file."""

    base: Path
    code: int
    out: str
    err: str

    @property
    def failure(self) -> str:
        return (self.base / "output" / "failure").read_text()


def environment(base: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRAINING_JOB_NAME"}
    return kept | {"SAGEMAKER_BASE_DIR": str(base)} | more


def write_config(base: Path, name: str, value: object) -> None:
    """Write a file of input/config as the platform does."""
    folder = base / "input" / "config"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(value))


def train(base: Path, hyperparameters: dict[str, str], **more: str) -> Run:
    """Run scripts/train over `base` with these hyperparameters."""
    write_config(base, "hyperparameters", hyperparameters)
    return run_train(base, **more)


def run_train(base: Path, **more: str) -> Run:
    """Run scripts/train over `base` as it is."""
    done = subprocess.run(TRAIN, env=environment(base, **more), capture_output=True, text=True, timeout=LIMIT)
    return Run(base, done.returncode, done.stdout, done.stderr)


def read_until(stream: IO[str], words: str) -> str:
    """What a log says up to its first line with these words."""
    out = ""
    for line in stream:
        out += line
        if words in line:
            break
    return out


def assert_refused(run: Run, sentence: str) -> None:
    """The job ended as one that the user can mend, with exactly this sentence and nothing else."""
    assert run.failure == f"ClientError: {sentence}"
    assert run.err.splitlines()[-1] == f"ClientError: {sentence}"
    assert len(run.failure) <= 1024
    assert "Traceback" not in run.out + run.err
    assert run.code == 2


def read_images(data: Path, channel: str, num_classes: int = 3) -> Dataset:
    """The samples of a channel of images that breaks no rule."""
    findings = Findings()
    folders = [list_folder(name, data / name) for name in (channel, f"{channel}_annotation")]
    dataset = read_image_channel(folders[0], folders[1], Rules(num_classes), findings)
    assert not findings.faults, findings.faults
    return dataset


def gpu_machine(folder: Path, name: str, capability: tuple[int, int], gpus: int = 1, error: int = 0) -> dict[str, str]:
    """Environment of a machine with GPUs of this name: a driver, and MXNet's CUDA build, which must not be imported."""
    write_driver(folder / "driver" / "libcuda.so.1", name, capability, gpus, error)
    installed = folder / "packages" / "mxnet_cu112-1.9.1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mxnet-cu112\nVersion: 1.9.1\n")
    (folder / "packages" / "mxnet.py").write_text("raise RuntimeError('mxnet is imported')")
    return {"PYTHONPATH": str(folder / "packages"), "LD_LIBRARY_PATH": str(folder / "driver")}


def write_driver(path: Path, name: str, capability: tuple[int, int], gpus: int, error: int = 0) -> None:
    """A shared library for x86-64 that answers as the CUDA driver does, written without a compiler.

    `error` is what it says when it is started.
    """
    zero = b"\x31\xc0\xc3"  # xor eax, eax; ret
    number = struct.Struct("<I").pack
    text = name.encode() + b"\0"
    code = {
        b"cuInit": b"\xb8" + number(error) + b"\xc3",  # mov eax, error; ret
        b"cuDeviceGetCount": b"\xc7\x07" + number(gpus) + zero,  # mov dword [rdi], gpus
        b"cuDeviceGet": b"\x89\x37" + zero,  # mov [rdi], esi
        # lea rsi, [rip + 10], behind the code; mov ecx, length; rep movsb
        b"cuDeviceGetName": b"\x48\x8d\x35" + number(10) + b"\xb9" + number(len(text)) + b"\xf3\xa4" + zero + text,
        # mov dword [rdi], major; cmp esi, 75; je +6; mov dword [rdi], minor
        b"cuDeviceGetAttribute": b"\xc7\x07%b\x83\xfe\x4b\x74\x06\xc7\x07%b" % (*map(number, capability),) + zero,
    }
    text_at, strings_at, symbols_at, hash_at, dynamic_at, size = 0x100, 0x400, 0x500, 0x600, 0x700, 0x800
    image = bytearray(size)
    strings, symbols, place = b"\0", bytes(24), text_at
    for function, machine in code.items():
        image[place : place + len(machine)] = machine
        # Symbol: name, global function, defined, address, size.
        symbols += struct.pack("<IBBHQQ", len(strings), 0x12, 0, 1, place, len(machine))
        strings += function + b"\0"
        place += 128
    chain = [*range(2, len(code) + 1), 0]  # one bucket, whose symbols are chained from the first to the last
    hashed = struct.pack(f"<{4 + len(chain)}I", 1, len(code) + 1, 1, 0, *chain)
    tags = [(4, hash_at), (5, strings_at), (6, symbols_at), (10, len(strings)), (11, 24), (14, len(strings)), (0, 0)]
    strings += b"libcuda.so.1\0"
    dynamic = b"".join(struct.pack("<QQ", *tag) for tag in tags)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 7, 0, 0, 0, size, size, 0x1000)
    header += struct.pack("<IIQQQQQQ", 2, 6, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), 8)
    parts = {0: header, strings_at: strings, symbols_at: symbols, hash_at: hashed, dynamic_at: dynamic}
    for at, part in parts.items():
        image[at : at + len(part)] = part
    path.parent.mkdir(parents=True)
    path.write_bytes(image)


@contextlib.contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """A small disk of its own at a folder; skips the test of who may not mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four channels of drawn shapes: 40 training images (5 batches of 8) and 10 for validation."""
    data = tmp_path_factory.mktemp("shapes")
    demo.write_channels(data, 40, 10, np.random.default_rng(0))
    return data


@pytest.fixture
def base(tmp_path: Path, shapes: Path) -> Path:
    """A base folder over the shapes, nothing trained yet."""
    (tmp_path / "input").mkdir()
    (tmp_path / "input" / "data").symlink_to(shapes)
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training long enough to find shapes, outside the platform: 160 images, 20 batches an epoch, 6 epochs.

    Of several processes that run tests one trains, and the others wait for it.
    """
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    base, kept = shared / "trained", shared / "trained.json"
    with (shared / "trained.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_file():
            run = train_shapes(base)
            kept.write_text(json.dumps({"code": run.code, "out": run.out, "err": run.err}))
    return Run(base, **json.loads(kept.read_text()))


def train_shapes(base: Path) -> Run:
    demo.write_channels(base / "input" / "data", 160, 30, np.random.default_rng(1))
    longer = {"epochs": "6", "lr_scheduler_step": "4, 5", "learning_rate": "0.01", "num_training_samples": "160"}
    longer |= {"export_int8": "1"}
    run = train(base, SMALL | longer | {"_tuning_objective_metric": "validation:mAP"})
    assert run.code == 0, run.err
    return run


@pytest.fixture(scope="session")
def url(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server over the trained model."""
    log = tmp_path_factory.mktemp("served") / "serve.log"
    with demo.serving(SERVE, environment(trained.base), log) as address:
        yield address
