"""The input pipeline beside others, on the same images and in one run.

    python benchmarks/input_pipeline.py [FOLDER]

FOLDER holds JPEGs; without it 100 of 640 x 427 and 150 to 200 kB are made, as COCO's are. Prints one JSON line a
figure. Each side runs in a process of its own, pinned to one core but for the two workers, and the sides take turns.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from figures import figure

from ssd_algo.data import recordio
from ssd_algo.data.files import list_file
from ssd_algo.data.loader import Loader
from ssd_algo.data.samples import Sample
from ssd_algo.data.table import SampleTable

SIDE = 300
CLASSES = 20  # as PASCAL VOC
BATCH = 16
ROUNDS = 3
SECONDS = 4.0  # that a side is measured for, at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        cv2.setNumThreads(0)
        print(SIDES[options.side](read(options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        coco = options.folder or make_photos(Path(temporary) / "coco", 100, 640, 427, 175_000)
        phone = make_photos(Path(temporary) / "phone", 8, 4000, 3000, 5_000_000)
        seen: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for name, side, folder, cores in (
                ("ours", "ours", coco, 1),
                ("raw", "raw", coco, 1),
                ("gluoncv", "gluoncv", coco, 1),
                ("iterator", "iterator", coco, 1),
                ("ours of 12 megapixels", "ours", phone, 1),
                ("raw of 12 megapixels", "raw", phone, 1),
                ("two workers", "two", coco, 2),
                ("handing over", "handing", coco, 1),
                ("memory of few", "few", coco, 1),
                ("memory of many", "many", coco, 1),
            ):
                seen.setdefault(name, []).append(in_process(side, folder, cores))
    print(json.dumps({name: [round(each, 3) for each in rates] for name, rates in seen.items()}), file=sys.stderr)
    middle = {name: float(np.median(rates)) for name, rates in seen.items()}
    figure("images_a_second_one_core", middle["ours"], None)
    figure("times_gluoncv_transform_and_targets", middle["ours"] / middle["gluoncv"], 8)
    figure("times_image_det_record_iter", middle["ours"] / middle["iterator"], 2)
    figure("share_of_raw_decode", middle["ours"] / middle["raw"], 0.7)
    figure("times_raw_decode_of_12_megapixels", middle["ours of 12 megapixels"] / middle["raw of 12 megapixels"], 1.6)
    figure("two_workers_on_two_cores_to_one_on_one", middle["two workers"] / middle["ours"], 1.8)
    figure("handing_over_share_of_making", middle["handing over"], 0.03, "lower")
    figure("worker_memory_for_100_times_the_samples", middle["memory of many"] / middle["memory of few"], None, "lower")


def in_process(side: str, folder: Path, cores: int) -> float:
    """What a side prints, run on this many cores."""
    allowed = sorted(os.sched_getaffinity(0))[:cores]
    command = [sys.executable, __file__, str(folder), "--side", side]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    return float(done.stdout.split()[-1])


def make_photos(folder: Path, count: int, width: int, height: int, size: int) -> Path:
    """JPEGs of smooth shapes and noise, of about this many bytes."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 255, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
        photo = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        photo += cv2.GaussianBlur(generator.normal(0, 60, photo.shape).astype(np.float32), (0, 0), 1.0)
        photo = np.clip(photo, 0, 255).astype(np.uint8)
        low, high = 10, 100
        while high - low > 1:  # the quality that makes this size
            middle = (low + high) // 2
            _, encoded = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, middle])
            low, high = (middle, high) if len(encoded) < size else (low, middle)
        cv2.imwrite(str(folder / f"{number:04d}.jpg"), photo, [cv2.IMWRITE_JPEG_QUALITY, low])
    return folder


def read(folder: Path) -> list[Sample]:
    """The photos with some boxes each."""
    generator = np.random.default_rng(0)
    samples = []
    for path in sorted(folder.iterdir()):
        low = generator.uniform(0, 0.7, (7, 2))
        boxes = np.concatenate([low, low + generator.uniform(0.05, 0.3, (7, 2))], axis=1).astype(np.float32)
        height, width = cv2.imread(str(path)).shape[:2]
        classes, easy = generator.integers(0, CLASSES, 7), np.zeros(7, dtype=bool)
        samples.append(Sample(path.name, list_file(path), -1, boxes, classes, easy, (width, height)))
    return samples


def ours(samples: list[Sample], workers: int = 1) -> float:
    """Images a second of the loader, its consumer included."""
    copies = samples * (-(-400 // len(samples)))
    with Loader(copies, SIDE, BATCH, workers, seed=0) as loader:
        for _ in loader.epoch(0):  # files into the page cache, workers awake
            pass
        begun, count, epoch = time.perf_counter(), 0, 1
        while time.perf_counter() - begun < SECONDS:
            for batch in loader.epoch(epoch):
                count += int(batch.weights.sum())
            epoch += 1
        return count / (time.perf_counter() - begun)


def two_workers(samples: list[Sample]) -> float:
    return ours(samples, workers=2)


def handing_over(samples: list[Sample]) -> float:
    """The time to hand a batch over that is made of nothing, as a share of the time to make one."""
    seconds = BATCH / ours(samples)
    Loader._fill = lambda *_: {}  # type: ignore[method-assign]
    return (BATCH / ours(samples)) / seconds


def memory(samples: list[Sample], times: int = 1) -> float:
    """Memory that a worker has for itself after an epoch's batches, in MB."""
    by_name = {sample.name: sample.file for sample in samples}
    table = SampleTable("", by_name.__getitem__)
    for sample in samples * times:
        table.append(sample)
    with Loader(table, SIDE, BATCH, 1, seed=0) as loader:
        for _, _batch in zip(range(30), loader.epoch(0), strict=False):
            pass
        (worker,) = multiprocessing.active_children()
        lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1000


def memory_of_many(samples: list[Sample]) -> float:
    return memory(samples, times=100)


def raw_decode(samples: list[Sample]) -> float:
    """OpenCV's decoding of whole images, the files included."""

    def run() -> int:
        for sample in samples:
            cv2.imdecode(np.frombuffer(sample.encoded(), dtype=np.uint8), cv2.IMREAD_COLOR)
        return len(samples)

    return rate(run)


def rate(run: Callable[[], int]) -> float:
    """Images a second of something that returns how many it did, once to warm up."""
    run()
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < SECONDS:
        count += run()
    return count / (time.perf_counter() - begun)


def gluoncv_transform(samples: list[Sample]) -> float:
    """GluonCV's SSDDefaultTrainTransform with target generation."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mxnet as mx
        from gluoncv.data.transforms.presets.ssd import SSDDefaultTrainTransform
        from gluoncv.model_zoo import get_model
        from mxnet import autograd

        net = get_model("ssd_300_vgg16_atrous_voc", pretrained=False, pretrained_base=False)
        net.initialize()
        with autograd.train_mode():
            anchors = net(mx.nd.zeros((1, 3, SIDE, SIDE)))[2]
        transform = SSDDefaultTrainTransform(SIDE, SIDE, anchors)

    def run() -> int:
        for sample in samples:
            image = mx.image.imdecode(sample.encoded())
            scale = np.asarray([image.shape[1], image.shape[0]] * 2)
            label = np.concatenate([sample.boxes * scale, sample.classes[:, None]], axis=1).astype(np.float32)
            outcome = transform(image, label)
            outcome[0].wait_to_read()
        return len(samples)

    return rate(run)


def record_iterator(samples: list[Sample]) -> float:
    """MXNet's C++ iterator with the augmentation settings of its SSD example."""
    import mxnet as mx

    path = Path(tempfile.mkdtemp()) / "photos.rec"
    with path.open("wb") as file:
        for number, sample in enumerate(samples):
            payload = recordio.pack(number, sample.boxes, sample.classes, sample.difficult, sample.encoded())
            recordio.write_record(file, payload)
    iterator = mx.io.ImageDetRecordIter(
        path_imgrec=str(path),
        batch_size=BATCH,
        data_shape=(3, SIDE, SIDE),
        label_pad_width=350,
        preprocess_threads=1,
        shuffle=True,
        rand_crop_prob=0.833,
        min_crop_scales=(0.3,) * 5,
        max_crop_scales=(1.0,) * 5,
        min_crop_aspect_ratios=(0.5,) * 5,
        max_crop_aspect_ratios=(2.0,) * 5,
        min_crop_overlaps=(0.1, 0.3, 0.5, 0.7, 0.9),
        max_crop_trials=(25,) * 5,
        num_crop_sampler=5,
        crop_emit_mode="center",
        rand_pad_prob=0.5,
        max_pad_scale=4,
        fill_value=127,
        max_random_hue=18,
        random_hue_prob=0.5,
        max_random_saturation=32,
        random_saturation_prob=0.5,
        max_random_illumination=32,
        random_illumination_prob=0.5,
        max_random_contrast=0.5,
        random_contrast_prob=0.5,
        rand_mirror_prob=0.5,
        inter_method=10,
        mean_r=123,
        mean_g=117,
        mean_b=104,
    )

    def run() -> int:
        iterator.reset()
        count = 0
        for batch in iterator:
            batch.data[0].wait_to_read()
            count += BATCH - batch.pad
        return count

    return rate(run)


SIDES = {
    "ours": ours,
    "two": two_workers,
    "handing": handing_over,
    "few": memory,
    "many": memory_of_many,
    "raw": raw_decode,
    "gluoncv": gluoncv_transform,
    "iterator": record_iterator,
}


if __name__ == "__main__":
    main()
