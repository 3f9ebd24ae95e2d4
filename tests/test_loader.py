"""Worker processes and the batches they make."""

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import read_images
from PIL import Image

from ssd_algo.data import images
from ssd_algo.data.files import list_file
from ssd_algo.data.loader import Loader, Share, batch_at, epoch_order
from ssd_algo.data.samples import Sample
from ssd_algo.errors import AlgorithmError, UserError


@pytest.fixture(scope="module")
def samples(shapes: Path) -> list[Sample]:
    return read_images(shapes, "train").samples


def copies(loader: Loader, epoch: int) -> list[tuple[np.ndarray, ...]]:
    return [
        (batch.images.copy(), batch.boxes.copy(), batch.classes.copy(), batch.weights.copy())
        for batch in loader.epoch(epoch)
    ]


def batches_of(count: int, batch_size: int, seed: int = 0, epoch: int = 0) -> list[tuple[np.ndarray, int]]:
    order = epoch_order(count, seed, epoch)
    return [batch_at(order, number, batch_size) for number in range(-(-count // batch_size))]


def test_every_sample_counts_once_an_epoch() -> None:
    batches = batches_of(10, 4)
    assert [real for _, real in batches] == [4, 4, 2]
    assert all(len(indices) == 4 for indices, _ in batches)
    assert sorted(index for indices, real in batches for index in indices[:real]) == list(range(10))


def test_a_batch_larger_than_the_set() -> None:
    ((indices, real),) = batches_of(3, 8)
    assert real == 3
    assert len(indices) == 8
    assert set(indices) == {0, 1, 2}


def test_epochs_differ_and_repeat_with_the_seed() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return epoch_order(50, seed, epoch).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)
    assert epoch_order(50, 0, 0).nbytes == 4 * 50


def seen(tmp_path: Path, count: int, share: Share, epoch: int) -> list[list[int]]:
    """The numbers of the images of each batch that count, read from their pixels: an image is of one grey."""
    samples = []
    for number in range(count):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), (number,) * 3).save(path)
        none = np.zeros(0, dtype=np.int64)
        samples.append(Sample(path.name, list_file(path), -1, np.zeros((0, 4), np.float32), none, none > 0))
    with Loader(samples, 8, 3, 1, seed=5, augmented=False, share=share) as loader:
        return [
            [int(image[0, 0, 0]) for image, weight in zip(batch.images, batch.weights, strict=True) if weight]
            for batch in loader.epoch(epoch)
        ]


def test_hosts_share_an_epochs_images(tmp_path: Path) -> None:
    """22 images are 6, 6, 5 and 5 on four hosts; 13 of two hosts' own shards, of 10 and 3, are as many steps on both."""
    epochs = []
    for epoch in (0, 1):
        hosts = [seen(tmp_path, 22, Share(rank, 4, steps=2), epoch) for rank in range(4)]
        assert [[len(batch) for batch in host] for host in hosts] == [[3, 3], [3, 3], [3, 2], [3, 2]]
        assert sorted(number for host in hosts for batch in host for number in batch) == list(range(22))
        # Together they are one host with as large a batch.
        first = [number for host in hosts for number in host[0]]
        assert sorted(first) == sorted(epoch_order(22, 5, epoch)[:12].tolist())
        epochs.append(hosts)
    assert epochs[0] != epochs[1]
    large, small = (seen(tmp_path, count, Share(steps=4), 0) for count in (10, 3))
    assert [len(batch) for batch in large] == [3, 3, 3, 1]
    assert [sorted(batch) for batch in small] == [[0, 1, 2], [], [], []]


def test_hosts_with_images_of_their_own_draw_their_own_augmentations(samples: list[Sample]) -> None:
    made = []
    for share in (Share(), Share(draws=(0,)), Share(draws=(1,))):
        with Loader(samples[:4], 64, 4, 1, seed=0, share=share) as loader:
            made.append(copies(loader, 0)[0][0])
    assert (made[0] == made[1]).all()
    assert not (made[0] == made[2]).all()


def test_a_loader_that_nobody_closes_ends_with_its_process(tmp_path: Path) -> None:
    """Also one whose making was interrupted."""
    code = (
        "import numpy as np\n"
        "from ssd_algo import demo\n"
        "from ssd_algo.data.files import list_file\n"
        "from ssd_algo.data.loader import Loader\n"
        "from ssd_algo.data.samples import Sample\n"
        "import pathlib, sys\n"
        "none = np.zeros(0, dtype=np.int64)\n"
        "sample = Sample('a', list_file(pathlib.Path(sys.argv[1])), -1, np.zeros((0, 4), np.float32), none, none > 0)\n"
        "loader = Loader([sample], 32, 1, 2, 0)\n"
    )
    (tmp_path / "a.jpg").write_bytes(b"")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jpg")], timeout=60)
    assert done.returncode == 0


def test_a_worker_that_died_while_nothing_was_asked(samples: list[Sample]) -> None:
    with Loader(samples, 32, 4, workers=1, seed=0) as loader:
        (worker,) = multiprocessing.active_children()
        worker.kill()
        worker.join()
        with pytest.raises(AlgorithmError) as caught:
            list(loader.epoch(0))
    assert str(caught.value) == "A process that loads images ended with exit code -9, perhaps for want of memory."


def test_batches(samples: list[Sample]) -> None:
    with Loader(samples[:18], 64, 8, workers=2, seed=0) as loader:
        assert loader.steps() == 3
        batches = copies(loader, 0)
    assert [each[3].tolist() for each in batches] == [[1] * 8, [1] * 8, [1, 1] + [0] * 6]
    for squares, boxes, classes, _ in batches:
        assert squares.shape == (8, 64, 64, 3)
        assert squares.dtype == np.uint8
        real = classes >= 0
        assert real.any(axis=1).all()
        assert ((boxes >= 0) & (boxes <= 1)).all()
        assert (boxes[..., 2:] > boxes[..., :2]).all(axis=2)[real].all()
        assert (boxes[~real] == 0).all()


def test_batches_do_not_depend_on_the_number_of_workers(samples: list[Sample]) -> None:
    outcomes = []
    for workers in (1, 3):
        with Loader(samples, 32, 8, workers, seed=3) as loader:
            outcomes.append([copies(loader, 0), copies(loader, 1)])
    for first, second in zip(outcomes[0], outcomes[1], strict=True):
        for one, two in zip(first, second, strict=True):
            assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert not (outcomes[0][0][0][0] == outcomes[0][1][0][0]).all()


def test_a_sample_is_augmented_anew_in_each_epoch_and_with_each_seed(samples: list[Sample]) -> None:
    seen = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        with Loader(samples[:1], 32, 1, workers=1, seed=seed) as loader:
            ((image, *_),) = copies(loader, epoch)
        seen.append(image.tobytes())
    assert len(set(seen)) == 3
    assert seen[0] == seen[3]


def test_an_image_that_cannot_be_decoded_is_named(samples: list[Sample], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    bad = dataclasses.replace(samples[0], name="broken.jpg", file=list_file(broken))
    with Loader([*samples[:3], bad], 32, 4, workers=1, seed=0) as loader, pytest.raises(UserError) as caught:
        list(loader.epoch(0))
    assert str(caught.value) == (
        "broken.jpg: the 8 bytes are no image that can be decoded; replace or remove the image, or allow for it with "
        "max_bad_records."
    )


def test_an_image_that_cannot_be_decoded_weighs_nothing_where_it_may(
    samples: list[Sample], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    bad = dataclasses.replace(samples[0], name="broken.jpg", file=list_file(broken))
    with Loader([*samples[:3], bad], 32, 2, workers=1, seed=0, may_skip=1) as loader:
        for epoch in (0, 1):
            batches = copies(loader, epoch)
            assert sum(weights.sum() for *_, weights in batches) == 3
            for _, boxes, classes, weights in batches:
                assert (classes[weights == 0] == -1).all()
                assert (boxes[weights == 0] == 0).all()
    assert caplog.messages == ["broken.jpg: the 8 bytes are no image that can be decoded; the image is skipped."]


def test_without_any_image_left_there_is_no_training(samples: list[Sample], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    bad = dataclasses.replace(samples[0], name="broken.jpg", file=list_file(broken))
    with Loader([bad], 32, 2, workers=1, seed=0, may_skip=1) as loader, pytest.raises(UserError) as caught:
        list(loader.epoch(0))
    assert str(caught.value) == (
        "broken.jpg: the 8 bytes are no image that can be decoded; no image of its channel is left."
    )


def test_skipped_images_leave_the_same_batches_for_any_number_of_workers(samples: list[Sample], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    bad = dataclasses.replace(samples[0], name="broken.jpg", file=list_file(broken))
    outcomes = []
    for workers in (1, 2):
        with Loader([bad, *samples[:11]], 32, 2, workers, seed=0, may_skip=1) as loader:
            outcomes.append([images.tobytes() for epoch in (0, 1) for images, *_ in copies(loader, epoch)])
    assert outcomes[0] == outcomes[1]


def test_without_augmentation_images_are_as_served(samples: list[Sample]) -> None:
    with Loader(samples[:5], 48, 2, workers=2, seed=0, augmented=False, shuffled=False) as loader:
        batches = copies(loader, 0)
    assert [weights.tolist() for *_, weights in batches] == [[1, 1], [1, 1], [1, 0]]
    for number, sample in enumerate(samples[:5]):
        squares, boxes, classes, _ = batches[number // 2]
        place = number % 2
        assert (squares[place] == images.to_square(images.decode(sample.encoded()), 48)).all()
        assert boxes[place, : len(sample.boxes)].tolist() == sample.boxes.tolist()
        assert classes[place, : len(sample.boxes)].tolist() == sample.classes.tolist()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_large_images_of_odd_sizes(kind: str, tmp_path: Path) -> None:
    """Many times the square: JPEGs are decoded smaller, PNGs are not."""
    pixels = np.random.default_rng(0).integers(0, 255, (403, 601, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a", kind)
    boxes = np.asarray([[0.2, 0.2, 0.8, 0.8]], dtype=np.float32)
    large = Sample("a", list_file(tmp_path / "a"), -1, boxes, np.asarray([0]), np.asarray([False]), (601, 403))
    with Loader([large] * 40, 32, 8, workers=1, seed=0) as loader:
        assert sum(weights.sum() for *_, weights in copies(loader, 0)) == 40


def test_a_cache_changes_nothing_but_decoding(samples: list[Sample], tmp_path: Path) -> None:
    """At this size nothing is decoded smaller. After the first epoch the files are not needed."""
    held = []
    for sample in samples[:10]:
        path = tmp_path / sample.name.replace("/", "-")
        path.write_bytes(sample.encoded())
        held.append(dataclasses.replace(sample, file=list_file(path)))
    with Loader(held, 300, 4, workers=2, seed=0) as loader:
        plain = [copies(loader, epoch) for epoch in (0, 1)]
    with Loader(held, 300, 4, workers=2, seed=0, cache_bytes=10 * 200 * 160 * 3) as loader:
        cached = [copies(loader, 0)]
        for sample in held:
            os.unlink(tmp_path / sample.name.replace("/", "-"))
        cached.append(copies(loader, 1))
    for one, two in zip(plain, cached, strict=True):
        for first, second in zip(one, two, strict=True):
            # Zoomed out images are decoded smaller without a cache: nearly the same pixels.
            assert np.abs(first[0].astype(int) - second[0]).mean() < 3
            assert all((a == b).all() for a, b in zip(first[1:], second[1:], strict=True))


def test_images_that_do_not_fit_are_not_cached(samples: list[Sample], caplog: pytest.LogCaptureFixture) -> None:
    with Loader(samples[:20], 32, 4, workers=1, seed=0, cache_bytes=1_000_000) as loader:
        assert len(copies(loader, 0)) == 5
    # 20 images of 200 x 160 x 3 bytes
    assert caplog.messages == ["Decoded images are not cached: cache_mb is 1, but they take 2 MB."]


def test_an_image_of_another_size_than_said_is_named(samples: list[Sample]) -> None:
    bad = dataclasses.replace(samples[0], name="a.jpg", size=(7, 8))
    with Loader([bad], 32, 1, workers=1, seed=0) as loader, pytest.raises(UserError) as caught:
        list(loader.epoch(0))
    assert str(caught.value) == (
        "a.jpg: its annotation gives an image_size of 7 x 8, but the image is not of that size; it is 200 x 160 pixels "
        "upright (EXIF orientation applied). Correct one of them."
    )


def test_a_dead_worker_is_an_error_at_once(samples: list[Sample]) -> None:
    with Loader(samples, 32, 4, workers=1, seed=0) as loader:
        batches = loader.epoch(0)
        next(batches)
        (worker,) = multiprocessing.active_children()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(AlgorithmError) as caught:
            list(batches)
    assert str(caught.value) == ("A process that loads images ended with exit code -9, perhaps for want of memory.")


def test_nothing_is_left_behind(samples: list[Sample]) -> None:
    before = set(os.listdir("/dev/shm"))
    with Loader(samples, 32, 4, workers=2, seed=0) as loader:
        next(loader.epoch(0))
        assert set(os.listdir("/dev/shm")) == before
    assert multiprocessing.active_children() == []
