"""RecordIO from the format: what MXNet writes is read, what is written MXNet reads."""

import struct
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_algo.data import recordio
from ssd_algo.errors import UserError

BOXES = np.asarray([[0.1, 0.2, 0.5, 0.6], [0, 0, 1, 1]], dtype=np.float32)
CLASSES = np.asarray([2, 0])
MAGIC = struct.pack("<I", recordio.MAGIC)


def write(path: Path, *payloads: bytes) -> Path:
    recordio.write_records(path, iter(payloads))
    return path


def test_mxnet_writes_and_we_read(tmp_path: Path) -> None:
    writer = mx.recordio.MXRecordIO(str(tmp_path / "a.rec"), "w")
    label = [2, 6, 2, 0.1, 0.2, 0.5, 0.6, 0, 0, 0, 0, 1, 1, 1]  # header 2 wide, objects 6 wide with difficult
    for number in range(3):
        writer.write(mx.recordio.pack(mx.recordio.IRHeader(0, label, number, 0), b"image %d" % number))
    writer.close()
    records = list(recordio.read_records(tmp_path / "a.rec"))
    assert len(records) == 3
    record = recordio.unpack(records[2][1], "a.rec")
    assert record.boxes.tolist() == BOXES.tolist()
    assert record.classes.tolist() == [2, 0]
    assert record.difficult.tolist() == [False, True]
    assert record.image == b"image 2"
    with (tmp_path / "a.rec").open("rb") as file:
        file.seek(records[1][0])
        assert recordio.read_record(file) == records[1][1]


# The magic number at a multiple of 4 splits a record, elsewhere it does not; at the start, twice, at the end.
@pytest.mark.parametrize("image", [MAGIC, b"abcd" + MAGIC + MAGIC, b"a" + MAGIC, b"abcd" + MAGIC + b"x", b""])
def test_we_write_and_mxnet_reads(tmp_path: Path, image: bytes) -> None:
    payload = recordio.pack(7, BOXES, CLASSES, image)
    path = write(tmp_path / "a.rec", payload, b"next")
    reader = mx.recordio.MXRecordIO(str(path), "r")
    header, found = mx.recordio.unpack(reader.read())
    assert found == image
    assert header.id == 7
    assert header.label.tolist() == pytest.approx([2, 5, 2, 0.1, 0.2, 0.5, 0.6, 0, 0, 0, 1, 1])
    assert reader.read() == b"next"
    reader.close()
    assert [each for _, each in recordio.read_records(path)] == [payload, b"next"]


def test_image_without_objects(tmp_path: Path) -> None:
    payload = recordio.pack(0, np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64), b"image")
    record = recordio.unpack(payload, "a.rec")
    assert record.boxes.shape == (0, 4)
    assert record.image == b"image"


def test_extras_in_the_header_are_skipped() -> None:
    label = struct.pack("<9f", 4, 5, 77, 88, 1, 0.1, 0.2, 0.3, 0.4)
    record = recordio.unpack(struct.pack("<IfQQ", 9, 0, 0, 0) + label + b"image", "a.rec")
    assert record.classes.tolist() == [1]
    assert record.boxes == pytest.approx(np.asarray([[0.1, 0.2, 0.3, 0.4]]))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"not a record file",
            "a.rec: record 0 at byte 0 does not start with the RecordIO magic number 0xced7230a; write the file again "
            "with im2rec.",
        ),
        (
            MAGIC,
            "a.rec: record 0 at byte 0 is cut off: the file ends within its header; write the file again with im2rec.",
        ),
        (
            MAGIC + struct.pack("<I", 4) + b"abcd" + MAGIC + struct.pack("<I", 100) + b"abc",
            "a.rec: record 1 at byte 12 is cut off: 100 bytes announced, 3 there; write the file again with im2rec.",
        ),
        (
            MAGIC + struct.pack("<I", 3 << 29 | 4) + b"abcd",
            "a.rec: record 0 at byte 0 has the continuation flag 3 where none of that kind may be; write the file "
            "again with im2rec.",
        ),
    ],
)
def test_broken_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a.rec").write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(recordio.read_records(tmp_path / "a.rec"))
    assert str(caught.value) == message


def header(*label: float) -> bytes:
    return struct.pack("<IfQQ", len(label), 0, 0, 0) + struct.pack(f"<{len(label)}f", *label)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"abc", "r has 3 bytes, fewer than a header's 24; write it with im2rec."),
        (
            struct.pack("<IfQQ", 0, 3.0, 0, 0) + b"image",
            "r holds no packed detection label (0 label values in 29 bytes); write the file with im2rec --pack-label.",
        ),
        (
            header(2, 5, 1, 0.1, 0.2, 0.3),
            "r: 6 label values do not make a header of 2 (at least 2) and objects of 5 (at least 5: class, xmin, ymin, "
            "xmax, ymax); pack the label as im2rec documents.",
        ),
        (
            header(2, 5, 1, 0.1, 0.2, float("nan"), 0.4),
            "r: a label value is not a finite number; correct the label and pack the file again.",
        ),
    ],
)
def test_broken_labels(payload: bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        recordio.unpack(payload, "r")
    assert str(caught.value) == message


@given(st.binary(max_size=200))
def test_any_bytes_give_records_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "a.rec"
    path.write_bytes(data)
    try:
        for _, payload in recordio.read_records(path):
            recordio.unpack(payload, "a.rec")
    except UserError:
        pass


@given(st.lists(st.binary(max_size=50).map(lambda part: part.replace(b"x", MAGIC)), max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.rec", *payloads)
    assert [payload for _, payload in recordio.read_records(path)] == payloads
