"""How long the checks take: of 10,000 images with annotations, and until a wrong hyperparameter is refused.

    python benchmarks/check.py [--images N]

Prints one JSON line a figure.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from figures import figure

from ssd_algo import demo

SCRIPTS = Path(__file__).parents[1] / "scripts"
DIFFERENT = 50  # images that are drawn; the others are copies with other bytes at their end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        size = write_data(data, options.images)
        command = [sys.executable, "-m", "ssd_algo.cli", "check", *(str(each) for each in sorted(data.iterdir()))]
        begun = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        figure(f"check_{options.images}_images_of_{size // 1000}_kB", time.perf_counter() - begun, 60, "lower", "s")

        wrong = Path(folder) / "input" / "config" / "hyperparameters.json"
        wrong.parent.mkdir(parents=True)
        wrong.write_text('{"num_classes": "0"}')
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(SCRIPTS / "train")],
            env=os.environ | {"SAGEMAKER_BASE_DIR": folder},
            capture_output=True,
        )
        assert done.returncode == 2, done
        figure("refuse_a_hyperparameter", time.perf_counter() - begun, 2, "lower", "s")


def write_data(data: Path, count: int) -> int:
    """Four channels with this number of 640 x 480 images, a tenth for validation; returns an image's mean bytes."""
    generator = np.random.default_rng(0)
    drawn = []
    for _ in range(DIFFERENT):
        image, boxes, classes = demo.draw_sample(generator, 640, 480)
        _, encoded = cv2.imencode(".jpg", image)
        drawn.append((encoded.tobytes(), boxes, classes))
    for number in range(count):
        channel = "validation" if number % 10 == 0 else "train"
        encoded, boxes, classes = drawn[number % DIFFERENT]
        for name in (channel, f"{channel}_annotation"):
            (data / name).mkdir(parents=True, exist_ok=True)
        (data / channel / f"{number:06d}.jpg").write_bytes(encoded + str(number).encode())
        annotation = demo.make_annotation(f"{number:06d}.jpg", 640, 480, boxes, classes)
        (data / f"{channel}_annotation" / f"{number:06d}.json").write_text(json.dumps(annotation))
    return sum(len(encoded) for encoded, _, _ in drawn) // DIFFERENT


if __name__ == "__main__":
    main()
