"""What the image's tests share: the images, `docker` and a base folder as the platform mounts it."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
from conftest import SMALL

from ssd_algo import demo

CPU, GPU = os.environ["SSD_ALGO_IMAGES"].split()


def docker(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Run docker; `data` goes to its standard input."""
    done = subprocess.run(["docker", *arguments], input=data, capture_output=True, timeout=600)
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def write_base(base: Path, **hyperparameters: str) -> None:
    """Channels of 40 and 10 drawn images, and the hyperparameters of a small training."""
    demo.write_channels(base / "input" / "data", 40, 10, np.random.default_rng(0))
    (base / "input" / "config").mkdir()
    (base / "input" / "config" / "hyperparameters.json").write_text(json.dumps(SMALL | hyperparameters))
