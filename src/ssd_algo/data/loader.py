"""Worker processes that turn samples into batches.

Workers are forked before mxnet is imported, live through all epochs and write whole batches into shared anonymous
memory (never `/dev/shm`, of which a container may have 64 MB); only slot numbers cross a pipe. Memory: `2 * workers`
slots of one batch each, `B * (3 S^2 + 20 G + 4)` bytes.
"""

import ctypes
import mmap
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from ssd_algo.data import augment, images
from ssd_algo.data.images import NotAnImage
from ssd_algo.data.samples import Sample, Skipped
from ssd_algo.errors import AlgorithmError, UserError

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


def epoch_order(count: int, batch_size: int, seed: int, epoch: int) -> list[tuple[NDArray[np.int64], int]]:
    """Which samples make each batch of an epoch: every sample once, shuffled over the whole set.

    Returns
    -------
    list of (int64 (B,) sample indices, number of them that count)
        Only the last batch may hold fewer real samples than `batch_size`; repeats fill it.
    """
    order = np.random.default_rng([seed, epoch]).permutation(count)
    batches = []
    for start in range(0, count, batch_size):
        real = order[start : start + batch_size]
        batches.append((np.resize(np.concatenate([real, order]), batch_size), len(real)))
    return batches


class Loader:
    """Batches of augmented samples, epoch by epoch; use as a context manager.

    Parameters
    ----------
    samples : sequence of Sample
    side : int
        Side of the square images, pixels.
    batch_size, workers : int
    seed : int
        With the epoch and the sample's index it fixes each augmentation, whatever the number of workers.
    may_skip : int
        Images that may turn out not to be decodable; they weigh nothing in their batches.
    """

    def __init__(
        self, samples: Sequence[Sample], side: int, batch_size: int, workers: int, seed: int, may_skip: int = 0
    ) -> None:
        self._samples, self._side, self._batch_size, self._seed = samples, side, batch_size, seed
        self._skipped = Skipped(may_skip, len(samples))
        most_boxes = max(1, *(len(sample.classes) for sample in samples))
        self._slots = [_slot(batch_size, side, most_boxes) for _ in range(2 * workers)]
        context = multiprocessing.get_context("fork")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(workers):
            ours, theirs = context.Pipe()
            process = context.Process(target=self._work, args=(theirs, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: Any) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def steps(self) -> int:
        """Batches in an epoch."""
        return -(-len(self._samples) // self._batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The batches of an epoch, in order.

        Raises
        ------
        UserError
            When more images than allowed cannot be decoded.
        AlgorithmError
            When a worker died.
        """
        batches = epoch_order(len(self._samples), self._batch_size, self._seed, epoch)
        done: dict[int, dict[int, NotAnImage]] = {}
        asked = 0
        for number, (indices, real) in enumerate(batches):
            # Every slot but those of batches not taken yet is free: work ahead as far as the slots go.
            while asked < min(len(batches), number + len(self._slots)):
                self._pipes[asked % len(self._pipes)].send((asked, asked % len(self._slots), epoch, batches[asked][0]))
                asked += 1
            while number not in done:
                done |= self._finished()
            weights = (np.arange(self._batch_size) < real).astype(np.float32)
            for place, reason in done.pop(number).items():
                self._skipped.add(self._samples[indices[place]].name, reason)
                weights[place] = 0
            slot = self._slots[number % len(self._slots)]
            yield Batch(slot.images, slot.boxes, slot.classes, weights)

    def _finished(self) -> dict[int, dict[int, NotAnImage]]:
        """Wait for workers; the numbers of the batches that they made, and in each the places without an image."""
        finished = {}
        for pipe in cast("list[Connection]", wait(self._pipes)):
            try:
                number, result = pipe.recv()
            except (EOFError, ConnectionResetError) as lost:
                process = self._processes[self._pipes.index(pipe)]
                process.join()
                raise AlgorithmError(
                    f"A process that loads images ended with exit code {process.exitcode}, perhaps for want of memory."
                ) from lost
            if isinstance(result, Exception):
                raise result
            finished[number] = result
        return finished

    def _work(self, pipe: Connection, parent: int) -> None:
        """A worker's life: make the batches asked for until killed."""
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whatever kills the parent kills us
        if os.getppid() != parent:
            return
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        cv2.setNumThreads(0)
        while True:
            number, slot, epoch, indices = pipe.recv()
            try:
                result: Any = self._fill(self._slots[slot], epoch, indices)
            except UserError as error:
                result = error
            except OSError as error:
                result = UserError(f"An image cannot be read ({error}).")
            except Exception as error:
                result = AlgorithmError(f"Loading images failed: {type(error).__name__}: {error}")
            pipe.send((number, result))

    def _fill(self, batch: Batch, epoch: int, indices: NDArray[np.int64]) -> dict[int, NotAnImage]:
        """Make a batch; returns the places whose image cannot be decoded."""
        batch.boxes[:] = 0
        batch.classes[:] = -1
        bad = {}
        for place, index in enumerate(indices):
            sample = self._samples[index]
            try:
                self._augment(batch, place, sample, np.random.default_rng([self._seed, epoch, int(index)]))
            except NotAnImage as error:
                bad[place] = error
                batch.images[place] = 0  # whatever was there before depends on the number of slots
        return bad

    def _augment(self, batch: Batch, place: int, sample: Sample, generator: np.random.Generator) -> None:
        """Put an augmented sample into its place of a batch."""
        encoded = sample.encoded()
        width, height = sample.size or images.upright_size(encoded)
        boxes = sample.boxes * np.asarray([width, height] * 2, dtype=np.float32)
        plan = augment.draw(width, height, boxes, generator)
        reduction = augment.reduction(plan, width, height, self._side)
        image = images.decode(encoded, reduction)
        sample.check_size(image.shape[1], image.shape[0], reduction)
        batch.images[place] = augment.apply(image, width, height, plan, self._side)
        moved, classes = augment.move(boxes, sample.classes, plan, self._side)
        batch.boxes[place, : len(moved)] = moved / self._side
        batch.classes[place, : len(classes)] = classes


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
