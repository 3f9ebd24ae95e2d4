"""Failures through the front door: exit code, failure file, standard error, what is left."""

import errno
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, Run, assert_refused, train

from ssd_algo import demo
from ssd_algo.errors import AlgorithmError, UserError
from ssd_algo.training.job import classify


def test_an_earlier_failure_is_forgotten(base: Path) -> None:
    (base / "output").mkdir()
    (base / "output" / "failure").write_text("ClientError: of an earlier run")
    assert train(base, SMALL).code == 0
    assert not (base / "output" / "failure").exists()


def test_loss_that_is_not_finite(tmp_path: Path, trained: Run) -> None:
    """The last good model of the folder stays."""
    demo.write_channels(tmp_path / "input" / "data", 8, 2, np.random.default_rng(0))
    (tmp_path / "model").mkdir()
    good = {path.name: path.read_bytes() for path in (trained.base / "model").iterdir()}
    for name, content in good.items():
        (tmp_path / "model" / name).write_bytes(content)
    run = train(tmp_path, SMALL | {"base_network": "vgg-16", "learning_rate": "1", "mini_batch_size": "1"})
    epoch, step = run.failure.split("epoch ")[1].split(";")[0].split(", step ")
    assert_refused(
        run,
        f"The loss is not finite at epoch {epoch}, step {step}; lower learning_rate (it is 1) by ten, check the boxes of "
        "the training data, and begin with an empty folder for checkpoints, if there is one. The last good model is kept.",
    )
    assert epoch == "0"
    assert int(step) in range(2, 9)  # the first step still has the initial weights
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == good


def test_everything_frozen(base: Path) -> None:
    assert_refused(
        train(base, SMALL | {"freeze_layer_pattern": ".*"}),
        'freeze_layer_pattern ".*" matches every parameter, so that none is left to train; narrow it.',
    )


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/opt/ml/x"),
            "ClientError: The disk is full: [Errno 28] No space left on device: '/opt/ml/x'. Use an instance with a larger "
            "volume.",
        ),
        (
            RuntimeError("Traceback:\n cudaMalloc retry failed: out of memory"),
            "ClientError: The device's memory is exhausted; lower mini_batch_size or image_shape, or use an instance with "
            "more memory.",
        ),
        (
            OSError(errno.ENOMEM, "Cannot allocate memory"),
            "ClientError: The device's memory is exhausted; lower mini_batch_size or image_shape, or use an instance with "
            "more memory.",
        ),
        (
            RuntimeError(
                "CUDA: Check failed: e == cudaSuccess: no kernel image is available for execution on the device"
            ),
            "ClientError: The GPU is of a kind that MXNet's CUDA build has no code for; use an instance with a V100, T4, "
            "A100, A10G, L4 or L40S (P3, G4dn, P4d, G5, G6 or G6e).",
        ),
        (
            RuntimeError("Traceback (most recent call last):\n  File x\nMXNetError: Check failed: a == b\n"),
            "AlgorithmError: RuntimeError: MXNetError: Check failed: a == b",
        ),
        (KeyError(), "AlgorithmError: KeyError: no message"),
    ],
)
def test_whose_error_it_is(error: Exception, sentence: str) -> None:
    cause = classify(error)
    assert isinstance(cause, UserError | AlgorithmError)
    assert f"{cause.prefix}: {cause}" == sentence
    assert cause.exit_code == (2 if isinstance(cause, UserError) else 1)


def test_a_broken_mxnet_still_leaves_a_failure_file(base: Path) -> None:
    """Our own faults: the sentence first, then the traceback, exit code 1."""
    broken = base / "broken"
    broken.mkdir()
    (broken / "mxnet.py").write_text("raise OSError('libcuda.so.1: cannot open shared object file')")
    run = train(base, SMALL, PYTHONPATH=str(broken))
    assert run.code == 1
    assert run.failure.splitlines()[0] == "AlgorithmError: OSError: libcuda.so.1: cannot open shared object file"
    assert "Traceback (most recent call last):" in run.failure
    assert "AlgorithmError: OSError: libcuda.so.1: cannot open shared object file" in run.err
