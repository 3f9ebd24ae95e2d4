"""Worker processes that turn samples into batches.

Workers are forked before mxnet is imported, live through all epochs and write whole batches into shared anonymous
memory (never `/dev/shm`, of which a container may have 64 MB); only slot numbers cross a pipe. Memory: `2 * workers`
slots of one batch each, `B * (3 S^2 + 20 G)` bytes with G the most boxes of an image, whatever the number of samples; a
worker holds one decoded image at a time. A cache takes what all images take decoded, if that is within its budget.
"""

import ctypes
import functools
import logging
import mmap
import multiprocessing
import multiprocessing.util
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import augment, images
from ssd_algo.data.boxes import Boxes
from ssd_algo.data.images import NotAnImage, Pixels
from ssd_algo.data.samples import Sample, Skipped
from ssd_algo.errors import AlgorithmError, UserError

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Batch:
    """A batch; its arrays are valid until the next one is taken.

    Attributes
    ----------
    images : uint8 (B, S, S, 3), RGB
    boxes : float32 (B, G, 4), fractions of the square, 0 where there is none
    classes : float32 (B, G), -1 where there is no box
    weights : float32 (B,)
        0 for an image that only fills the batch.
    """

    images: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    classes: NDArray[np.float32]
    weights: NDArray[np.float32]


@dataclass(frozen=True)
class Share:
    """What one of several hosts takes of its samples.

    Attributes
    ----------
    first, every : int
        Of an epoch's order it takes every so-manieth sample from the `first` on.
    steps : int or None
        Batches of an epoch, as others may have more samples; those beyond its own are repeats that weigh nothing.
    draws : tuple of int
        Sets its augmentations apart from those of hosts that have other samples under the same numbers.
    """

    first: int = 0
    every: int = 1
    steps: int | None = None
    draws: tuple[int, ...] = ()


def epoch_order(count: int, seed: int, epoch: int, shuffled: bool = True) -> NDArray[np.uint32]:
    """The order of an epoch's samples, (count,): every sample once, shuffled over the whole set or as they are."""
    order = np.arange(count, dtype=np.uint32)
    if shuffled:
        np.random.default_rng([seed, epoch]).shuffle(order)
    return order


def batch_at(order: NDArray[np.uint32], number: int, batch_size: int) -> tuple[NDArray[np.uint32], int]:
    """Sample indices (B,) of one batch of an order, and how many of them count.

    Only the last ones may hold fewer real samples than `batch_size`; repeats fill them.
    """
    real = order[number * batch_size : (number + 1) * batch_size]
    if len(real) == batch_size:
        return real, batch_size
    return np.resize(np.concatenate([real, order]), batch_size), len(real)


class Workers:
    """Processes that fill slots with batches; use as a context manager.

    Parameters
    ----------
    samples : sequence of Sample
        Those that can be asked for by their numbers.
    side : int
        Side of the square images, pixels.
    batch_size, count : int
    most_boxes : int
        Of an image.
    seed : int
        With the epoch and the sample's number it fixes each augmentation, whatever the number of workers.
    augmented : bool
        Otherwise an image is resized to the square, as for serving.
    cache : Cache or None
    draws : tuple of int
        As `Share` has it.

    Attributes
    ----------
    slots : list of Batch
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        side: int,
        batch_size: int,
        count: int,
        most_boxes: int,
        seed: int,
        augmented: bool = True,
        cache: "Cache | None" = None,
        draws: tuple[int, ...] = (),
    ) -> None:
        self._samples, self._side, self._seed, self._augmented = samples, side, seed, augmented
        self._cache, self._draws = cache, draws
        self.slots = [_slot(batch_size, side, most_boxes) for _ in range(2 * count)]
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._processes: list[ForkProcess] = []
        # Workers ignore SIGTERM, with which multiprocessing would end those that are left when the interpreter ends.
        multiprocessing.util.Finalize(self, _kill, [self._processes], exitpriority=0)
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=self._work, args=(theirs, os.getpid()), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
        except BaseException:  # a job that is stopped right now
            self.close()
            raise

    def close(self) -> None:
        """End the processes."""
        _kill(self._processes)

    def slot(self, number: int) -> Batch:
        """The slot of a batch."""
        return self.slots[number % len(self.slots)]

    def ask(
        self, number: int, epoch: int, indices: NDArray[np.uint32], samples: Sequence[Sample] | None = None
    ) -> None:
        """Have a worker make a batch, of samples by their numbers, or of these.

        Raises
        ------
        AlgorithmError
            When the worker has died.
        """
        pipe = self._pipes[number % len(self._pipes)]
        try:
            pipe.send((number, number % len(self.slots), epoch, indices, samples))
        except (BrokenPipeError, ConnectionResetError) as lost:
            raise self._ended(pipe) from lost

    def finished(self) -> dict[int, dict[int, NotAnImage]]:
        """Wait for workers; the numbers of the batches that they made, and in each the places without an image.

        Raises
        ------
        UserError
        AlgorithmError
            When a worker died.
        """
        finished = {}
        for pipe in cast("list[Connection]", wait(self._pipes)):
            try:
                number, result = pipe.recv()
            except (EOFError, ConnectionResetError) as lost:
                raise self._ended(pipe) from lost
            if isinstance(result, Exception):
                raise result
            finished[number] = result
        return finished

    def _ended(self, pipe: Connection) -> AlgorithmError:
        """What to say of the dead worker behind a pipe."""
        process = self._processes[self._pipes.index(pipe)]
        process.join()
        return AlgorithmError(
            f"A process that loads images ended with exit code {process.exitcode}, perhaps for want of memory."
        )

    def _work(self, pipe: Connection, parent: int) -> None:
        """A worker's life: make the batches asked for until killed."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whatever kills the parent kills us
        if os.getppid() != parent:
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to all of the job's processes, it is for the parent
        cv2.setNumThreads(0)
        while True:
            number, slot, epoch, indices, samples = pipe.recv()
            try:
                result: Any = self._fill(self.slots[slot], epoch, indices, samples)
            except UserError as error:
                result = error
            except OSError as error:
                result = UserError(f"An image cannot be read ({error}).")
            except Exception as error:
                result = AlgorithmError(f"Loading images failed: {type(error).__name__}: {error}")
            pipe.send((number, result))

    def _fill(
        self, batch: Batch, epoch: int, indices: NDArray[np.uint32], samples: Sequence[Sample] | None
    ) -> dict[int, NotAnImage]:
        """Make a batch; returns the places whose image cannot be decoded."""
        batch.boxes[:] = 0
        batch.classes[:] = -1
        bad = {}
        for place, index in enumerate(indices):
            sample = self._samples[index] if samples is None else samples[place]
            try:
                self._put(batch, place, int(index), sample, epoch)
            except NotAnImage as error:
                bad[place] = error
                batch.images[place] = 0  # whatever was there before depends on the number of slots
        return bad

    def _put(self, batch: Batch, place: int, index: int, sample: Sample, epoch: int) -> None:
        """Put a sample into its place of a batch."""
        if not self._augmented:
            batch.images[place] = images.to_square(self._decoded(index, sample, sample.encoded), self._side)
            batch.boxes[place, : len(sample.boxes)] = sample.boxes
            batch.classes[place, : len(sample.classes)] = sample.classes
            return
        generator = np.random.default_rng([self._seed, epoch, index, *self._draws])
        decode = functools.partial(self._decoded, index)
        batch.images[place], moved, classes = augmented(sample, self._side, generator, decode)
        batch.boxes[place, : len(moved)] = moved / self._side
        batch.classes[place, : len(classes)] = classes

    def _decoded(self, index: int, sample: Sample, encoded: Callable[[], bytes], reduction: int = 1) -> Pixels:
        """The decoded image, from the cache if there is one."""
        if self._cache is None:
            return decoded(sample, encoded, reduction)
        cached = self._cache.get(index)
        if cached is not None:
            return cached
        image = decoded(sample, encoded)
        self._cache.put(index, image)
        return image


class Loader:
    """Batches of augmented samples, epoch by epoch; use as a context manager.

    Parameters
    ----------
    samples : sequence of Sample
    side, batch_size, workers, seed, augmented
        As `Workers` has them.
    may_skip : int
        Images that may turn out not to be decodable; they weigh nothing in their batches.
    shuffled : bool
        Otherwise samples come in their order.
    cache_bytes : int
        Memory for decoded images. It is used when all fit, and sizes are known; 0 for none.
    share : Share

    Attributes
    ----------
    waited : float
        Seconds that the epoch's consumer has waited for batches.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        side: int,
        batch_size: int,
        workers: int,
        seed: int,
        may_skip: int = 0,
        augmented: bool = True,
        shuffled: bool = True,
        cache_bytes: int = 0,
        share: Share = Share(),
    ) -> None:
        self._samples, self._batch_size, self._seed = samples, batch_size, seed
        self._shuffled, self._share = shuffled, share
        self._skipped = Skipped(may_skip, len(samples))
        self.waited = 0.0
        most_boxes = max(1, *(len(sample.classes) for sample in samples))
        cache = Cache.of(samples, cache_bytes) if cache_bytes else None
        self._workers = Workers(samples, side, batch_size, workers, most_boxes, seed, augmented, cache, share.draws)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        self._workers.close()

    def steps(self) -> int:
        """Batches in an epoch."""
        own = len(range(self._share.first, len(self._samples), self._share.every))
        return -(-own // self._batch_size) if self._share.steps is None else self._share.steps

    def order(self, epoch: int) -> NDArray[np.uint32]:
        """Which samples an epoch has, in which order, by their number."""
        order = epoch_order(len(self._samples), self._seed, epoch, self._shuffled)
        return order[self._share.first :: self._share.every]

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, in order, from the `first` on, counted from 0.

        Raises
        ------
        UserError
            When more images than allowed cannot be decoded.
        AlgorithmError
            When a worker died.
        """
        order = self.order(epoch)
        self.waited = 0.0
        done: dict[int, dict[int, NotAnImage]] = {}
        asked = first
        for number in range(first, self.steps()):
            # Every slot but those of batches not taken yet is free: work ahead as far as the slots go.
            while asked < min(self.steps(), number + len(self._workers.slots)):
                self._workers.ask(asked, epoch, batch_at(order, asked, self._batch_size)[0])
                asked += 1
            indices, real = batch_at(order, number, self._batch_size)
            begun = time.perf_counter()
            while number not in done:
                done |= self._workers.finished()
            self.waited += time.perf_counter() - begun
            weights = (np.arange(self._batch_size) < real).astype(np.float32)
            for place, reason in done.pop(number).items():
                self._skipped.add(self._samples[indices[place]].name, reason)
                weights[place] = 0
            slot = self._workers.slot(number)
            yield Batch(slot.images, slot.boxes, slot.classes, weights)


def augmented(
    sample: Sample,
    side: int,
    generator: np.random.Generator,
    decode: Callable[[Sample, Callable[[], bytes], int], Pixels],
) -> tuple[Pixels, Boxes, NDArray[np.int64]]:
    """A sample as training sees it: uint8 (side, side, 3), boxes float32 (K, 4) in its pixels, classes int64 (K,).

    Parameters
    ----------
    decode : callable
        `decoded`, or what stands before it.

    Raises
    ------
    NotAnImage
    """
    encoded = functools.cache(sample.encoded)
    width, height = sample.size or images.upright_size(encoded())
    boxes = sample.boxes * np.asarray([width, height] * 2, dtype=np.float32)
    plan = augment.draw(width, height, boxes, generator)
    image = decode(sample, encoded, augment.reduction(plan, width, height, side))
    return augment.apply(image, width, height, plan, side), *augment.move(boxes, sample.classes, plan, side)


def decoded(sample: Sample, encoded: Callable[[], bytes], reduction: int = 1) -> Pixels:
    """The decoded image of a sample, whose size must be what was said of it.

    Raises
    ------
    NotAnImage
    UserError
    """
    image = images.decode(encoded(), reduction)
    sample.check_size(image.shape[1], image.shape[0], reduction)
    return image


def _kill(processes: list[ForkProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


class Cache:
    """Decoded images in memory that forked processes share.

    Parameters
    ----------
    sizes : int (N, 2)
        Width and height of each.
    """

    def __init__(self, sizes: NDArray[np.int64]) -> None:
        self._sizes = sizes
        self._starts = np.concatenate([[0], np.cumsum(3 * sizes.prod(axis=1))])
        self._pixels = np.frombuffer(mmap.mmap(-1, int(self._starts[-1])), dtype=np.uint8)
        self._there = np.frombuffer(mmap.mmap(-1, len(sizes)), dtype=np.bool_)

    @classmethod
    def of(cls, samples: Sequence[Sample], budget: int) -> "Cache | None":
        """A cache for all images; None, with a warning, where they take more bytes or a size is not known."""
        sizes = np.asarray([sample.size or (0, 0) for sample in samples], dtype=np.int64).reshape(-1, 2)
        total = int(3 * sizes.prod(axis=1).sum())
        if total > budget or not sizes.all():
            needs = f"they take {total / 1e6:.0f} MB" if sizes.all() else "their sizes are not known beforehand"
            logger.warning("Decoded images are not cached: cache_mb is %d, but %s.", budget // 10**6, needs)
            return None
        return cls(sizes)

    def get(self, index: int) -> Pixels | None:
        """An image, if it has been put."""
        if not self._there[index]:
            return None
        width, height = self._sizes[index]
        return self._pixels[self._starts[index] : self._starts[index + 1]].reshape(height, width, 3)

    def put(self, index: int, image: Pixels) -> None:
        """Keep an image; processes that put the same one at the same time do no harm."""
        self._pixels[self._starts[index] : self._starts[index + 1]] = image.reshape(-1)
        self._there[index] = True


def _slot(batch_size: int, side: int, most_boxes: int) -> Batch:
    """A batch in memory that forked processes share."""

    def shared(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(mmap.mmap(-1, size), dtype=dtype).reshape(shape)

    return Batch(
        images=shared((batch_size, side, side, 3), np.uint8),
        boxes=shared((batch_size, most_boxes, 4), np.float32),
        classes=shared((batch_size, most_boxes), np.float32),
        weights=np.ones(batch_size, dtype=np.float32),
    )
