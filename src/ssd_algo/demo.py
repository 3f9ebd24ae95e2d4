"""A small dataset of drawn shapes, and the whole way over it: channels, training, server, a picture with boxes."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ssd_algo.data.boxes import Boxes, iou
from ssd_algo.data.draw import Mark, colour, draw
from ssd_algo.data.images import Pixels

CLASSES = ("circle", "square", "triangle")

_TRAIN, _VALIDATION = 240, 50

HYPERPARAMETERS = {
    "num_classes": str(len(CLASSES)),
    "num_training_samples": str(_TRAIN),
    "base_network": "resnet-18",
    "use_pretrained_model": "0",
    "image_shape": "128",
    "mini_batch_size": "8",
    "learning_rate": "0.01",
    "augmentation": "False",  # in two minutes whole pictures teach more than parts of them
    "epochs": "12",
    "lr_scheduler_step": "8, 11",
}

_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy is not asked for this machine

_COLOURS = [(220, 40, 40), (30, 140, 60), (40, 80, 220)]  # RGB, one a class


def draw_sample(generator: np.random.Generator, width: int, height: int) -> tuple[Pixels, Boxes, NDArray[np.int64]]:
    """Shapes of several classes, sizes and shades, some overlapping, on a noisy background.

    Returns
    -------
    uint8 (H, W, 3) RGB, float32 (R, 4) pixels, int64 (R,)
    """
    background = generator.uniform(90, 190) + generator.uniform(-20, 20, 3)
    image = np.clip(background + generator.normal(0, 18, (height, width, 3)), 0, 255).astype(np.uint8)
    boxes: list[list[int]] = []
    classes: list[int] = []
    for _ in range(int(generator.integers(2, 8))):
        side = int(generator.uniform(0.18, 0.5) * min(width, height))
        left, top = int(generator.integers(0, width - side)), int(generator.integers(0, height - side))
        box = [left, top, left + side, top + side]
        if boxes and iou(np.asarray([box], dtype=np.float32), np.asarray(boxes, dtype=np.float32)).max() > 0.25:
            continue  # nothing may hide most of another shape
        identity = int(generator.integers(len(CLASSES)))
        colour = (np.asarray(_COLOURS[identity]) + generator.uniform(-40, 40, 3)).clip(0, 255)
        _draw_shape(image, identity, box, tuple(int(c) for c in colour))
        boxes.append(box)
        classes.append(identity)
    return image, np.asarray(boxes, dtype=np.float32), np.asarray(classes, dtype=np.int64)


def _draw_shape(image: Pixels, identity: int, box: Sequence[int], colour: tuple[int, ...]) -> None:
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    if CLASSES[identity] == "circle":
        cv2.circle(image, ((left + right) // 2, (top + bottom) // 2), (right - left) // 2, colour, -1, cv2.LINE_AA)
    elif CLASSES[identity] == "square":
        cv2.rectangle(image, (left, top), (right, bottom), colour, -1)
    else:
        corners = np.asarray([[left, bottom], [right, bottom], [(left + right) // 2, top]], dtype=np.int32)
        cv2.fillPoly(image, [corners], colour, cv2.LINE_AA)


def write_channels(data: Path, train: int, validation: int, generator: np.random.Generator) -> None:
    """Draw a dataset and lay it out as the four channels of the image format below `data`."""
    for channel, count in (("train", train), ("validation", validation)):
        images, annotations = data / channel, data / f"{channel}_annotation"
        images.mkdir(parents=True)
        annotations.mkdir()
        for index in range(count):
            image, boxes, classes = draw_sample(generator, width=200, height=160)
            name = f"{channel}-{index:04d}"
            cv2.imwrite(str(images / f"{name}.jpg"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            annotation = make_annotation(f"{name}.jpg", image.shape[1], image.shape[0], boxes, classes)
            (annotations / f"{name}.json").write_text(json.dumps(annotation))


def make_annotation(file: str, width: int, height: int, boxes: Boxes, classes: Iterable[int]) -> dict[str, Any]:
    """An annotation of the image format; boxes (R, 4) in pixels."""
    return {
        "file": file,
        "image_size": [{"width": width, "height": height, "depth": 3}],
        "annotations": [
            {
                "class_id": int(identity),
                "left": int(box[0]),
                "top": int(box[1]),
                "width": int(box[2] - box[0]),
                "height": int(box[3] - box[1]),
            }
            for identity, box in zip(classes, boxes, strict=True)
        ],
        "categories": [{"class_id": identity, "name": name} for identity, name in enumerate(CLASSES)],
    }


def run(train: Sequence[str], serve: Sequence[str], say: Callable[[str], None]) -> Path:
    """Draw, train, serve, detect; returns the picture's path.

    Parameters
    ----------
    train, serve : commands of the two scripts
    say : called with each line of progress
    """
    started = time.time()
    base = Path(tempfile.mkdtemp(prefix="ssd-algo-demo-"))
    say(f"Drawing {_TRAIN} training and {_VALIDATION} validation images of {', '.join(CLASSES)} below {base}.")
    write_channels(base / "input" / "data", _TRAIN, _VALIDATION, np.random.default_rng(0))
    config = base / "input" / "config"
    config.mkdir()
    (config / "hyperparameters.json").write_text(json.dumps(HYPERPARAMETERS))
    environment = os.environ | {"SAGEMAKER_BASE_DIR": str(base)}
    say("Training; the log is " + str(base / "train.log"))
    last = ""
    with (base / "train.log").open("w") as log:
        for last in _lines(train, environment):
            log.write(last)
            if "#quality_metric" in last and "validation mAP" in last:
                say("  " + last[last.index("epoch=") :].strip())
    say(last.split("] ", 1)[-1].strip())
    picture = base / "detections.png"
    paths = sorted((base / "input" / "data" / "validation").iterdir())[:6]
    metrics = json.loads((base / "output" / "data" / "metrics.json").read_text(encoding="utf-8"))
    threshold = metrics["evaluation"]["threshold"]  # with the highest F1
    with serving(serve, environment, base / "serve.log") as url:
        drawn = [draw_detections(path, post_image(url, path.read_bytes())["prediction"], threshold) for path in paths]
    rows = [np.concatenate(drawn[start : start + 3], axis=1) for start in (0, 3)]
    cv2.imwrite(str(picture), cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR))
    say(f"The report of the training is in {base / 'output' / 'data' / 'report.html'}")
    say(
        f"Done in {time.time() - started:.0f} s. The detections of 6 validation images with a score of at least "
        f"{threshold:.2f}: {picture}"
    )
    return picture


def _lines(command: Sequence[str], environment: dict[str, str]) -> Iterator[str]:
    """The lines that a command prints, as it prints them; it must succeed."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield from process.stdout
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {process.returncode}.")


@contextmanager
def serving(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[str]:
    """A running server, ready for requests; yields its URL."""
    port = free_port()
    environment = environment | {"SAGEMAKER_BIND_TO_PORT": str(port)}
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as process:
        try:
            while not is_ready(url):
                if process.poll() is not None:
                    sys.exit(f"The server ended with exit code {process.returncode}; see {log}.")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def is_ready(url: str) -> bool:
    """Whether `/ping` answers 200."""
    try:
        with _LOCAL.open(f"{url}/ping", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def post_image(url: str, encoded: bytes, accept: str = "application/json") -> dict[str, Any]:
    """The answer of `/invocations` for an encoded image."""
    headers = {"Content-Type": "application/x-image", "Accept": accept}
    request = urllib.request.Request(f"{url}/invocations", data=encoded, headers=headers)
    with _LOCAL.open(request, timeout=60) as answer:
        document = json.load(answer)
    assert isinstance(document, dict)
    return document


def draw_detections(path: Path, rows: Iterable[Sequence[float]], threshold: float, zoom: int = 2) -> Pixels:
    """An image with its detections above a score drawn: box, label and score."""
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    image = cv2.resize(image, None, fx=zoom, fy=zoom)
    sides = np.asarray(image.shape[1::-1] * 2)
    marks = [
        Mark(np.asarray(box) * sides, colour(int(identity)), f"{CLASSES[int(identity)]} {score:.2f}")
        for identity, score, *box in rows
        if score >= threshold
    ]
    return draw(image, marks)
