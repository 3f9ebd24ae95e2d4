"""The inference thread: batches of what is queued, nothing for nobody, failures that stay where they belong."""

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from numpy.typing import NDArray

from ssd_algo.errors import Busy, NotReady
from ssd_algo.inference.engines import Predictions
from ssd_algo.inference.predictor import Predictor
from ssd_algo.serving.batcher import Batcher, Request
from ssd_algo.serving.metrics import Metrics


class Gate:
    """An engine that answers each image with its first value, once it is let through."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, images: NDArray[np.uint8]) -> Predictions:
        firsts = images[:, 0, 0, 0].astype(np.float32)
        if firsts.any():  # not the warm-up
            self.batches.append([int(each) for each in firsts])
            self.entered.release()
            self.open.acquire()
        if 99 in firsts:
            raise RuntimeError("the engine fails")
        return np.tile(firsts[:, None, None], (1, 2, 3)), np.zeros((len(images), 2, 4), dtype=np.float32)


def square(value: int) -> NDArray[np.uint8]:
    return np.full((8, 8, 3), value, dtype=np.uint8)


def started(gate: Gate, places: int = 4) -> Batcher:
    anchors = np.zeros((2, 4), dtype=np.float32)
    batcher = Batcher(lambda: Predictor(gate, anchors, 8, 0.45, 400, (1, 2, 4)), places, Metrics())
    batcher.loading.result()
    return batcher


def soon() -> Request:
    return Request(time.monotonic() + 60)


def value(answer: "Future[tuple[NDArray[np.float32], NDArray[np.float32]]]") -> float:
    return float(answer.result(timeout=60)[0][0, 0])


def test_a_batch_is_what_was_queued_meanwhile_and_filled_up() -> None:
    gate = Gate()
    batcher = started(gate)
    first = batcher.submit(square(1), soon())
    gate.entered.acquire()
    others = [batcher.submit(square(each), soon()) for each in range(2, 9)]
    gate.open.release(4)
    assert [value(each) for each in (first, *others)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert gate.batches == [[1], [2, 3, 4, 5], [6, 7, 8, 0]]


def test_nothing_is_computed_for_who_is_gone_or_whose_time_is_over() -> None:
    gate = Gate()
    batcher = started(gate)
    first = batcher.submit(square(1), soon())
    gate.entered.acquire()
    late = batcher.submit(square(2), Request(time.monotonic()))
    gone = batcher.submit(square(3), Request(time.monotonic() + 60, lambda: True))
    last = batcher.submit(square(4), soon())
    gate.open.release(2)
    assert [value(first), value(last)] == [1, 4]
    with pytest.raises(Busy, match=r"^The request's time was over before it was its turn; send it again\.$"):
        late.result()
    with pytest.raises(Busy, match=r"^The sender has closed the connection\.$"):
        gone.result()
    assert gate.batches == [[1], [4]]


def test_a_server_that_ends_begins_nothing_new() -> None:
    gate = Gate()
    batcher = started(gate)
    first = batcher.submit(square(1), soon())
    gate.entered.acquire()
    second = batcher.submit(square(2), soon())
    batcher.finish(0)
    gate.open.release()
    assert value(first) == 1
    with pytest.raises(Busy, match=r"^The server ends; send the request again, to another\.$"):
        second.result(timeout=60)


def test_a_failing_batch_harms_no_other() -> None:
    gate = Gate()
    batcher = started(gate)
    gate.open.release(2)
    failing = batcher.submit(square(99), soon())
    with pytest.raises(RuntimeError, match=r"^the engine fails$"):
        failing.result(timeout=60)
    assert value(batcher.submit(square(5), soon())) == 5
    assert batcher.is_alive()


def test_places() -> None:
    batcher = started(Gate(), places=2)
    with batcher.place(), batcher.place():
        with pytest.raises(Busy) as caught, batcher.place():
            pass
        assert str(caught.value) == "All 2 places for requests are taken; send it again in a second."
    with batcher.place():
        pass


def test_a_size_that_does_not_run_is_not_used() -> None:
    sizes = []

    def engine(images: NDArray[np.uint8]) -> Predictions:
        sizes.append(len(images))
        if len(images) == 4:
            raise MemoryError("no room")
        return np.zeros((len(images), 2, 3), dtype=np.float32), np.zeros((len(images), 2, 4), dtype=np.float32)

    anchors = np.zeros((2, 4), dtype=np.float32)
    batcher = Batcher(lambda: Predictor(engine, anchors, 8, 0.45, 400, (1, 2, 4, 8)), 4, Metrics())
    batcher.loading.result()
    answers = [batcher.submit(square(each), soon()) for each in range(8)]
    assert all(value(each) == 0 for each in answers)
    assert 8 not in sizes
    assert batcher.is_alive()


def test_loading_does_not_count_as_a_batch() -> None:
    """A load that takes longer than the engine may hang, and a second warm-up that has just begun."""
    entered, go_on = threading.Event(), threading.Event()

    def engine(images: NDArray[np.uint8]) -> Predictions:
        if len(images) == 2:
            entered.set()
            go_on.wait()
        return np.zeros((len(images), 2, 3), dtype=np.float32), np.zeros((len(images), 2, 4), dtype=np.float32)

    begun, loaded = time.monotonic(), threading.Event()

    def load() -> Predictor:
        loaded.wait()
        return Predictor(engine, np.zeros((2, 4), dtype=np.float32), 8, 0.45, 400, (1, 2))

    batcher = Batcher(load, 4, Metrics())
    while batcher.busy_for() < 0.2:
        pass
    loaded.set()
    entered.wait()
    assert batcher.ready()
    assert batcher.busy_for() < time.monotonic() - begun - 0.2
    go_on.set()


def test_busy_for_grows_while_a_batch_runs() -> None:
    gate = Gate()
    batcher = started(gate)
    answer = batcher.submit(square(1), soon())
    gate.entered.acquire()
    first = batcher.busy_for()
    assert batcher.busy_for() > first
    gate.open.release()
    answer.result(timeout=60)


def test_requests_wait_for_a_model_that_is_being_loaded() -> None:
    gate = threading.Event()

    def load() -> Predictor:
        gate.wait()
        raise ValueError("no model")

    batcher = Batcher(load, 2, Metrics())
    assert not batcher.ready()
    with pytest.raises(NotReady):
        batcher.predictor(time.monotonic())
    gate.set()
    with pytest.raises(ValueError, match=r"^no model$"):
        batcher.predictor(soon().deadline)
    assert not batcher.ready()
