"""How long the report of a training takes, and how large it is: 5,000 validation photos of 80 classes.

    python benchmarks/report.py [IMAGES]

Each photo has about seven objects and 400 detections, as many as `nms_topk` leaves by default, and 640 x 480 pixels.
Prints one JSON line a figure.
"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from figures import figure

from ssd_algo import demo
from ssd_algo.data.files import list_folder
from ssd_algo.data.samples import Sample
from ssd_algo.evaluation import report
from ssd_algo.evaluation.evaluate import Compared, describe, score
from ssd_algo.evaluation.matching import Scored, Truth
from ssd_algo.evaluation.remarks import remarks

CLASSES, DETECTIONS, PHOTOS = 80, 400, 50
NAMES = {identity: f"class {identity}" for identity in range(CLASSES)}


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        pairs, samples = make(images, Path(folder), generator)
        scored = describe(score(pairs, 0.5), NAMES)  # which validation has done already
        begun = time.perf_counter()
        of = report.evaluated(scored, pairs, samples, NAMES, 0.5)
        metrics = {"evaluation": of.described, "epochs": [epoch(each, scored) for each in range(100)]}
        page = report.render(metrics | {"remarks": remarks(metrics)}, of)
        seconds = time.perf_counter() - begun
    figure(f"report_{images}_images", seconds, 20, "lower", "s")
    figure(f"report_{images}_images_size", len(page.encode()) / 1e6, 8, "lower", "MB")


def make(images: int, folder: Path, generator: np.random.Generator) -> tuple[list[Compared], list[Sample]]:
    """Half of the objects are found, and all other detections lie anywhere, most with a low score."""
    for number in range(PHOTOS):
        picture = demo.draw_sample(generator, 640, 480)[0]
        cv2.imwrite(str(folder / f"{number}.jpg"), picture)
    files = list_folder("validation", folder).files
    pairs, samples = [], []
    for number in range(images):
        count = int(generator.poisson(7.3))
        low = generator.uniform(0, 400, (count, 2))
        boxes = np.concatenate([low, low + np.exp(generator.uniform(3, 5, (count, 2)))], axis=1).astype(np.float32)
        truth = Truth(boxes, generator.integers(0, CLASSES, count), np.zeros(count, dtype=bool))
        low = generator.uniform(0, 400, (DETECTIONS, 2))
        found = np.concatenate([low, low + generator.uniform(10, 200, (DETECTIONS, 2))], axis=1).astype(np.float32)
        identities, scores = generator.integers(0, CLASSES, DETECTIONS), 0.6 * generator.random(DETECTIONS) ** 4
        hit = np.flatnonzero(generator.random(count) < 0.5)
        found[hit], identities[hit], scores[hit] = boxes[hit] + 2, truth.classes[hit], generator.random(len(hit))
        pairs.append((truth, Scored(found, scores.astype(np.float32), identities)))
        samples.append(
            Sample(f"{number}.jpg", files[number % PHOTOS], -1, boxes, truth.classes, truth.difficult, (640, 480))
        )
    return pairs, samples


def epoch(number: int, scored: dict[str, object]) -> dict[str, object]:
    return {
        "epoch": number,
        "cross_entropy": 1 / (1 + number),
        "smooth_l1": 1 / (2 + number),
        "learning_rate": 0.001,
        "batches": 13,
        "examples": 100,
        "seconds": 1.0,
        "validation": scored,
    }


if __name__ == "__main__":
    main()
