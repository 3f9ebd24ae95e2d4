"""Samples in columns: the same as they went in, in few bytes."""

import gc
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssd_algo.data.files import File
from ssd_algo.data.samples import Sample
from ssd_algo.data.table import SampleTable


def no_file(name: str = "a.rec") -> File:
    return File(name, 0, lambda: open("/dev/null", "rb"))


def sample(number: int, record: bool, name: str = "") -> Sample:
    generator = np.random.default_rng(number)
    count = number % 4
    return Sample(
        name=name or (f"train/a.rec, record {number} at byte {number * 1000}" if record else f"train/{number:07d}.jpg"),
        file=no_file() if record else no_file(f"{number:07d}.jpg"),
        offset=number * 1000 if record else -1,
        boxes=generator.uniform(0, 1, (count, 4)).astype(np.float32),
        classes=generator.integers(0, 80, count),
        difficult=generator.random(count) < 0.5,
        size=(640, 427),
        fingerprint=bytes(range(1, 17)),
    )


def same(one: Sample, two: Sample) -> None:
    assert (one.name, one.file.name, one.offset, one.size) == (two.name, two.file.name, two.offset, two.size)
    assert one.fingerprint == two.fingerprint
    assert one.boxes.tolist() == two.boxes.tolist()
    assert one.boxes.shape == two.boxes.shape
    assert one.classes.tolist() == two.classes.tolist()
    assert one.difficult.tolist() == two.difficult.tolist()
    assert (one.boxes.dtype, one.classes.dtype, one.difficult.dtype) == (np.float32, np.int64, np.bool_)


@pytest.mark.parametrize("record", [True, False])
def test_what_goes_in_comes_out(record: bool) -> None:
    table = SampleTable("train/", no_file)
    if record:
        table.begin(no_file())
    samples = [sample(number, record) for number in range(20)]
    for each in samples:
        table.append(each)
    assert len(table) == 20
    for one, two in zip(table, samples, strict=True):
        same(one, two)
    same(table[-1], samples[-1])
    assert [each.name for each in table[3:6]] == [each.name for each in samples[3:6]]
    assert table.object_counts().tolist() == [number % 4 for number in range(20)]
    with pytest.raises(IndexError):
        table[20]
    table.settle()
    assert table[0].fingerprint == b""


def test_records_that_are_left_out_keep_the_numbers_of_the_others() -> None:
    table = SampleTable("train/", no_file)
    table.begin(no_file())
    for number in range(10):
        if number in (0, 4, 5):
            table.leave_out()
        else:
            table.append(sample(number, record=True))
    assert [each.name for each in table] == [sample(number, True).name for number in (1, 2, 3, 6, 7, 8, 9)]


def test_records_of_several_files() -> None:
    """Of which numbers and left-out records begin anew."""
    table = SampleTable("train/", no_file)
    for name in ("a.rec", "empty.rec", "b.rec"):
        table.begin(no_file(name))
        for number in range(0 if name == "empty.rec" else 5):
            if (name, number) in (("a.rec", 4), ("b.rec", 0), ("b.rec", 2)):
                table.leave_out()
            else:
                table.append(replace(sample(number, record=True), file=no_file(name)))
    numbers = [("a.rec", number) for number in (0, 1, 2, 3)] + [("b.rec", number) for number in (1, 3, 4)]
    assert [each.name for each in table] == [f"train/{name}, record {n} at byte {1000 * n}" for name, n in numbers]
    assert [(each.file.name, each.offset) for each in table] == [(name, 1000 * number) for name, number in numbers]


def test_names_of_any_bytes_and_their_order() -> None:
    table = SampleTable("train/", no_file)
    for name in ("train/b.jpg", "train/caf\udce9.jpg", "train/a/ä.jpg"):
        table.append(sample(1, record=False, name=name))
    assert [each.name for each in table.sorted()] == ["train/a/ä.jpg", "train/b.jpg", "train/caf\udce9.jpg"]


def test_large_sides_are_not_known() -> None:
    table = SampleTable("train/", no_file)
    table.append(
        Sample(
            "train/a",
            no_file(),
            -1,
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.int64),
            np.zeros(0, bool),
            (70_000, 9),
        )
    )
    assert table[0].size is None


@pytest.mark.parametrize("record", [True, False])
def test_memory_of_a_sample(record: bool, tmp_path: Path) -> None:
    """At most 12 bytes beside labels and path; an epoch's order takes 4 more."""
    prefix, count = "train/", 20_000
    sample(1, record)  # what is loaded with the first one
    tracemalloc.start(10)  # frames
    table = SampleTable(prefix, no_file)
    if record:
        table.begin(no_file())
    labels = 0
    for number in range(count):
        each = sample(number, record)
        table.append(each)
        # A box of 4 float32, a class, one byte for difficult; the name beside its prefix.
        labels += len(each.classes) * (16 + 4 + 1) + (0 if record else len(each.name) - len(prefix))
    del each
    table.settle()
    gc.collect()
    snapshot = tracemalloc.take_snapshot()
    tracemalloc.stop()
    assert len(table) == count
    # What began here, with all that the table keeps: threads of other tests may be at work beside.
    held = snapshot.filter_traces([tracemalloc.Filter(True, __file__, all_frames=True)])
    assert sum(each.size for each in held.traces) < labels + 12 * count + 4096  # of the table itself
