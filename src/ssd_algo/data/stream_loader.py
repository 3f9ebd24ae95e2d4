"""Batches of what comes through a channel's pipe.

A pass is read ahead into the spool. What it holds is shuffled in blocks of samples that follow each other, which is all
that can be had of a stream; the platform's ShuffleConfig shuffles the whole. A block's place in the spool is freed when
all its batches have been made.
"""

import collections
import logging
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ssd_algo.data.images import NotAnImage
from ssd_algo.data.loader import Batch, Workers
from ssd_algo.data.pipe import Block, Passes
from ssd_algo.data.samples import Sample, Skipped
from ssd_algo.errors import UserError

logger = logging.getLogger(__name__)

_SAY_AGAIN = 60.0  # seconds
_UNKNOWN = 1 << 40  # samples of a stream


class StreamLoader:
    """Batches of augmented samples, epoch by epoch, each from the next pass; use as a context manager.

    Parameters
    ----------
    passes : Passes
        Not started yet.
    workers : Workers
        Made after the spool of `passes`, whose descriptor they share.
    batch_size : int
    most_boxes : int
        Of an image.
    epochs, steps : int
        As many passes are read at most, and as many batches made of each: where it ends early, repeats that weigh
        nothing fill them.
    seed : int
    may_skip : int
        Images that may turn out not to be decodable; they weigh nothing in their batches.
    shuffled : bool
        Otherwise samples come in their order.
    check : callable
        Called every second while nothing comes; what it raises ends the epoch.

    Attributes
    ----------
    waited : float
        Seconds that the epoch's consumer has waited for batches.
    """

    def __init__(
        self,
        passes: Passes,
        workers: Workers,
        batch_size: int,
        most_boxes: int,
        epochs: int,
        steps: int,
        seed: int,
        may_skip: int = 0,
        shuffled: bool = True,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._passes, self._workers, self._batch_size, self._most_boxes = passes, workers, batch_size, most_boxes
        self._epochs, self._steps, self._seed, self._shuffled = epochs, steps, seed, shuffled
        self._may_skip, self._check = may_skip, check
        self._started = False
        self.waited = 0.0

    def __enter__(self) -> "StreamLoader":
        return self

    def __exit__(self, *_: Any) -> None:
        self._workers.close()

    def steps(self) -> int:
        """Batches in an epoch."""
        return self._steps

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, in order, from the `first` on, counted from 0.

        Raises
        ------
        UserError
            When the stream breaks a rule, or more images than allowed cannot be decoded.
        AlgorithmError
            When a worker died.
        """
        if first >= self._steps:
            return
        if not self._started:
            self._started = True
            self._passes.start(self._epochs - epoch)
        self.waited = 0.0
        skipped = Skipped(self._may_skip, _UNKNOWN)
        real = 0
        taken = _Pass(self._passes, np.random.default_rng([self._seed, epoch]) if self._shuffled else None)
        for _ in range(first):
            taken.done(self._next(taken, wait=True) or [])
        batches: dict[int, list[Sample]] = {}
        done: dict[int, dict[int, NotAnImage]] = {}
        asked = first
        for number in range(first, self._steps):
            begun = time.perf_counter()
            while asked < min(self._steps, number + len(self._workers.slots)):
                samples = self._next(taken, wait=asked == number)
                if samples is None:
                    break
                batches[asked] = samples
                self._ask(asked, epoch, taken.filled(samples, self._batch_size))
                asked += 1
            while number not in done:
                finished = self._workers.finished()
                for each in finished:
                    taken.done(batches[each])
                done |= finished
            self.waited += time.perf_counter() - begun
            samples = batches.pop(number)
            weights = (np.arange(self._batch_size) < len(samples)).astype(np.float32)
            for place, reason in done.pop(number).items():
                if place < len(samples):
                    skipped.add(samples[place].name, reason)
                weights[place] = 0
            real += len(samples)
            slot = self._workers.slot(number)
            yield Batch(slot.images, slot.boxes, slot.classes, weights)
        more = taken.finish()
        own = "num_training_samples, or, of a shard, its part,"
        if more:
            text = "%s had more images than the %d that an epoch takes: %s is too small."
            logger.warning(text, taken.fifo, real, own)
        elif real <= (self._steps - first - 1) * self._batch_size:
            text = "%s had %d images for the %d steps of an epoch, the last of which teach nothing: %s is too large."
            logger.warning(text, taken.fifo, real, self._steps - first, own)

    def _next(self, taken: "_Pass", wait: bool) -> list[Sample] | None:
        """The samples of the next batch, fewer where the pass ends; None where they are not there yet."""
        said = time.monotonic()
        while not taken.has(self._batch_size):
            try:
                taken.take(1.0 if wait else 0.0)
            except queue.Empty:
                if not wait:
                    return None
                if self._passes.waits_for_room:
                    raise UserError(
                        f"spool_mb is too small: a batch of {self._batch_size} images does not fit beside what is in "
                        "work; raise it."
                    ) from None
                self._check()
                if time.monotonic() - said >= _SAY_AGAIN:
                    said = time.monotonic()
                    logger.info(self._passes.waiting())
        return taken.samples(self._batch_size)

    def _ask(self, number: int, epoch: int, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if len(sample.classes) > self._most_boxes:
                raise UserError(
                    f"{sample.name}: it has {len(sample.classes)} objects, more than the {self._most_boxes} for which "
                    "label_width has room; raise label_width to 2 + 5 for each object."
                )
        first = number * self._batch_size
        numbers = np.arange(first, first + self._batch_size, dtype=np.uint32)
        self._workers.ask(number, epoch, numbers, samples)


class _Pass:
    """What of a pass has been taken, in which order, and which of its blocks are still in work."""

    def __init__(self, passes: Passes, generator: np.random.Generator | None) -> None:
        self._passes, self._generator = passes, generator
        self._ready: collections.deque[Sample] = collections.deque()
        self._blocks: collections.deque[tuple[Block, set[str]]] = collections.deque()
        self._ended = False
        self.fifo = ""

    def has(self, count: int) -> bool:
        """Whether there are so many samples, or no more."""
        return self._ended or len(self._ready) >= count

    def take(self, seconds: float) -> None:
        """Take the next block.

        Raises
        ------
        queue.Empty
        """
        block = self._passes.take(seconds)
        if block is None:
            self._ended = True
            return
        self.fifo = block.fifo
        order = np.arange(len(block.samples))
        if self._generator is not None:
            self._generator.shuffle(order)
        self._ready.extend(block.samples[index] for index in order)
        if block.samples:
            self._blocks.append((block, {sample.name for sample in block.samples}))
        elif self._blocks:  # freed with the one before, of which repeats may be made
            last, left = self._blocks[-1]
            self._blocks[-1] = (replace(last, mark=block.mark), left)
        else:
            self._passes.done(block)

    def samples(self, count: int) -> list[Sample]:
        return [self._ready.popleft() for _ in range(min(count, len(self._ready)))]

    def filled(self, samples: list[Sample], count: int) -> list[Sample]:
        """With repeats, of the last block, which stays in the spool until the pass has ended."""
        if len(samples) == count:
            return samples
        others = [*samples, *self._blocks[-1][0].samples]
        return [*samples, *(others[index % len(others)] for index in range(count - len(samples)))]

    def done(self, samples: list[Sample]) -> None:
        """These have been made; blocks of which all have, but for the last, are not needed any more."""
        names = {sample.name for sample in samples}
        for _, left in self._blocks:
            left -= names
        while len(self._blocks) > 1 and not self._blocks[0][1]:
            self._passes.done(self._blocks.popleft()[0])

    def finish(self) -> bool:
        """Leave the pass, and free all of it; returns whether there is more of it."""
        for block, _ in self._blocks:  # first: who reads may wait for their room
            self._passes.done(block)
        more = bool(self._ready)
        return (not self._ended and self._passes.leave()) or more
