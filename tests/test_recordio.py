"""RecordIO from the format: what MXNet writes is read, what is written MXNet reads."""

import struct
import tracemalloc
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_algo.data import recordio
from ssd_algo.data.files import list_folder
from ssd_algo.data.findings import Findings
from ssd_algo.data.labels import Dataset, Rules
from ssd_algo.data.records import read_record_channel

BOXES = np.asarray([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]], dtype=np.float32)
CLASSES = np.asarray([2, 0])
EASY = np.zeros(2, dtype=bool)
MAGIC = struct.pack("<I", recordio.MAGIC)


def write(path: Path, *payloads: bytes) -> Path:
    with path.open("wb") as file:
        for payload in payloads:
            recordio.write_record(file, payload)
    return path


def read_all(path: Path) -> list[tuple[int, bytes]]:
    with path.open("rb") as file:
        return list(recordio.read_records(file, path.stat().st_size))


def test_mxnet_writes_and_we_read(tmp_path: Path) -> None:
    writer = mx.recordio.MXRecordIO(str(tmp_path / "a.rec"), "w")
    label = [2, 6, 2, 0.1, 0.2, 0.5, 0.6, 0, 0, 0, 0, 1, 1, 1]  # header 2 wide, objects 6 wide with difficult
    for number in range(3):
        writer.write(mx.recordio.pack(mx.recordio.IRHeader(0, label, number, 0), b"image %d" % number))
    writer.close()
    records = read_all(tmp_path / "a.rec")
    assert len(records) == 3
    record = recordio.unpack(records[2][1])
    assert record.boxes.tolist() == BOXES.tolist()
    assert record.classes.tolist() == [2, 0]
    assert record.difficult.tolist() == [False, True]
    assert record.image == b"image 2"
    with (tmp_path / "a.rec").open("rb") as file:
        file.seek(records[1][0])
        assert recordio.read_record(file, (tmp_path / "a.rec").stat().st_size) == records[1][1]


# The magic number at a multiple of 4 splits a record, elsewhere it does not; at the start, twice, at the end.
@pytest.mark.parametrize("image", [MAGIC, b"abcd" + MAGIC + MAGIC, b"a" + MAGIC, b"abcd" + MAGIC + b"x", b""])
def test_we_write_and_mxnet_reads(tmp_path: Path, image: bytes) -> None:
    payload = recordio.pack(7, BOXES, CLASSES, EASY, image)
    path = write(tmp_path / "a.rec", payload, b"next")
    reader = mx.recordio.MXRecordIO(str(path), "r")
    header, found = mx.recordio.unpack(reader.read())
    assert found == image
    assert header.id == 7
    assert header.label.tolist() == pytest.approx([2, 5, 2, 0.1, 0.2, 0.5, 0.6, 0, 0, 0, 1, 1])
    assert reader.read() == b"next"
    reader.close()
    assert [each for _, each in read_all(path)] == [payload, b"next"]


def test_image_without_objects() -> None:
    none = np.zeros(0, dtype=np.int64)
    payload = recordio.pack(0, np.zeros((0, 4), dtype=np.float32), none, none.astype(bool), b"image")
    record = recordio.unpack(payload)
    assert record.boxes.shape == (0, 4)
    assert record.image == b"image"


def test_difficult_objects_have_six_values() -> None:
    record = recordio.unpack(recordio.pack(0, BOXES, CLASSES, np.asarray([True, False]), b"image"))
    assert record.label_width == 2 + 2 * 6
    assert record.difficult.tolist() == [True, False]


def test_extras_in_the_header_are_skipped() -> None:
    label = struct.pack("<9f", 4, 5, 77, 88, 1, 0.1, 0.2, 0.3, 0.4)
    record = recordio.unpack(struct.pack("<IfQQ", 9, 0, 0, 0) + label + b"image")
    assert record.classes.tolist() == [1]
    assert record.boxes == pytest.approx(np.asarray([[0.1, 0.2, 0.3, 0.4]]))


def test_padding_of_labels_is_passed_over(tmp_path: Path) -> None:
    """Some tools fill all labels to one width with rows of -1."""
    label = struct.pack("<12f", 2, 5, 1, 0.1, 0.2, 0.3, 0.4, *[-1] * 5)
    write(tmp_path / "a.rec", struct.pack("<IfQQ", 12, 0, 0, 0) + label + b"image")
    findings = Findings()
    (sample,) = read(tmp_path, findings, headers=False).samples
    assert sample.classes.tolist() == [1]
    assert findings == Findings()


def read(folder: Path, findings: Findings, **rules: bool) -> Dataset:
    return read_record_channel(list_folder("train", folder), Rules(3, **rules), findings)


def test_a_channel_with_several_files(tmp_path: Path) -> None:
    """One after the other by name; their class names must agree."""
    payload = recordio.pack(0, BOXES[:1], CLASSES[:1], EASY[:1], b"image")
    write(tmp_path / "b.rec", payload)
    write(tmp_path / "a.rec", payload, payload)
    for name in ("a", "b"):
        (tmp_path / f"{name}.classes.txt").write_text("cat\ndog\n")
    findings = Findings()
    dataset = read(tmp_path, findings, headers=False)
    assert [sample.name for sample in dataset.samples] == [
        "train/a.rec, record 0 at byte 0",
        "train/a.rec, record 1 at byte 68",
        "train/b.rec, record 0 at byte 0",
    ]
    assert dataset.class_names == {0: "cat", 1: "dog"}
    assert findings == Findings()
    (tmp_path / "b.classes.txt").write_text("cat\nhen\n")
    read(tmp_path, findings, headers=False)
    assert [str(each) for each in findings.faults] == [
        'train/b.classes.txt: it calls class 1 "hen", but others call it "dog"; use one name.'
    ]


def test_record_channel(tmp_path: Path) -> None:
    payload = recordio.pack(0, BOXES[:1], CLASSES[:1], EASY[:1], b"image")
    write(tmp_path / "a.rec", payload, payload)
    findings = Findings()
    samples = read(tmp_path, findings, headers=False).samples
    # Header 24, label 7 * 4, image 5: 57 bytes, padded to 60, with 8 of the record's header: the second is at 68.
    assert [sample.name for sample in samples] == [
        "train/a.rec, record 0 at byte 0",
        "train/a.rec, record 1 at byte 68",
    ]
    assert samples[1].boxes == pytest.approx(BOXES[:1])
    assert samples[1].encoded() == b"image"
    assert findings == Findings()


def some_labels(draw: st.DrawFn) -> bytes:
    """A record's header and label that are nearly right."""
    values = draw(st.lists(st.sampled_from([0, 0.2, 0.9, 1, 2, 5, 6, -1, 300, 1e38, float("nan")]), max_size=14))
    label = draw(st.sampled_from([[2, 5], [2, 6], [3, 5], [], [2], [1e38, 5], [-2, 5]])) + values
    count = draw(st.sampled_from([len(label), 0, 1, 2**32 - 1]))
    return struct.pack("<IfQQ", count, 0, 0, 0) + struct.pack(f"<{len(label)}f", *label)


@given(
    st.lists(st.composite(some_labels)() | st.binary(max_size=60), max_size=3), st.binary(max_size=20), st.booleans()
)
def test_any_bytes_give_samples_or_findings(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], more: bytes, headers: bool
) -> None:
    folder = tmp_path_factory.mktemp("any")
    path = write(folder / "a.rec", *payloads)
    path.write_bytes(path.read_bytes() + more)
    findings = Findings()
    samples = read(folder, findings, headers=headers).samples
    assert bool(findings.faults) or len(samples) == len(payloads) > 0
    for sample in samples:
        assert ((sample.boxes >= 0) & (sample.boxes <= 1)).all()
        assert set(sample.classes) <= {0, 1, 2}


def test_an_announced_length_takes_no_memory(tmp_path: Path) -> None:
    """The longest record that can be announced, in a file of 12 bytes."""
    (tmp_path / "a.rec").write_bytes(MAGIC + struct.pack("<I", (1 << 29) - 1) + b"abcd")
    tracemalloc.start()
    with pytest.raises(recordio.BrokenRecord):
        read_all(tmp_path / "a.rec")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@given(st.lists(st.binary(max_size=50).map(lambda part: part.replace(b"x", MAGIC)), max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.rec", *payloads)
    assert [payload for _, payload in read_all(path)] == payloads
