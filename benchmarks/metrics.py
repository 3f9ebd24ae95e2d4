"""The metrics beside GluonCV's VOCMApMetric and pycocotools, on the same random detections and in one run.

    python benchmarks/metrics.py [IMAGES]

5,000 images of 80 classes unless told otherwise: as many objects as COCO's validation images have, 20 detections of an
image near its objects or anywhere. Prints one JSON line a figure. It takes about five minutes.
"""

import contextlib
import io
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from figures import figure

from ssd_algo.evaluation.average_precision import coco, mean_average_precision, voc
from ssd_algo.evaluation.matching import Scored, Truth

CLASSES = 80


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    truths, detections = make(images, np.random.default_rng(0))
    ours_voc, area = timed(lambda: mean_average_precision(voc(truths, detections, 0.5)))
    ours_coco, summary = timed(lambda: coco(truths, detections))
    theirs_voc, _ = timed(lambda: by_gluoncv(truths, detections))
    theirs_coco, stats = timed(lambda: by_pycocotools(truths, detections))
    assert summary.mean is not None and area > 0.1
    print(f"VOC {ours_voc:.2f} s, GluonCV {theirs_voc:.2f} s; COCO {ours_coco:.2f} s, pycocotools {theirs_coco:.2f} s")
    figure("voc_times_gluoncv", theirs_voc / ours_voc, 10)
    figure("coco_times_pycocotools", theirs_coco / ours_coco, 1)
    figure("coco_difference_to_pycocotools", abs(summary.mean - float(stats[0])), 1e-6, "lower")


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    value = run()
    return time.perf_counter() - begun, value


def make(images: int, generator: np.random.Generator) -> tuple[list[Truth], list[Scored]]:
    truths, detections = [], []
    for _ in range(images):
        count = int(generator.poisson(7.3))
        low, sides = generator.uniform(0, 500, (count, 2)), np.exp(generator.uniform(2, 5.5, (count, 2)))
        boxes, classes = np.concatenate([low, low + sides], axis=1), generator.integers(0, CLASSES, count)
        truths.append(Truth(boxes, classes, np.zeros(count, dtype=bool)))
        low = generator.uniform(0, 500, (20, 2))
        found = np.concatenate([low, low + generator.uniform(10, 200, (20, 2))], axis=1)
        near = min(count, 15)
        found[:near] = boxes[:near] + generator.normal(0, 0.06, (near, 4)) * np.tile(sides[:near], 2)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        guessed = generator.integers(0, CLASSES, 20)
        guessed[:near] = classes[:near]
        detections.append(Scored(found, generator.random(20), guessed))
    return truths, detections


def by_gluoncv(truths: list[Truth], detections: list[Scored]) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gluoncv.utils.metrics.voc_detection import VOCMApMetric

        metric = VOCMApMetric(iou_thresh=0.5, class_names=[str(each) for each in range(CLASSES)])
        for truth, each in zip(truths, detections, strict=True):
            metric.update(
                each.boxes[None],
                each.classes[None, :, None],
                each.scores[None, :, None],
                truth.boxes[None],
                truth.classes[None, :, None],
            )
        return float(metric.get()[1][-1])


def by_pycocotools(truths: list[Truth], detections: list[Scored]) -> Any:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for image, (truth, each) in enumerate(zip(truths, detections, strict=True)):
        for box, identity in zip(truth.boxes, truth.classes, strict=True):
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(identity), "bbox": sides}
            annotations.append(row | {"area": sides[2] * sides[3], "iscrowd": 0})
        for box, score, identity in zip(each.boxes, each.scores, each.classes, strict=True):
            sides = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            results.append({"image_id": image, "category_id": int(identity), "bbox": sides, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCO()
        judge.dataset = {
            "images": [{"id": image} for image in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": each} for each in range(CLASSES)],
        }
        judge.createIndex()
        evaluation = COCOeval(judge, judge.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


if __name__ == "__main__":
    main()
