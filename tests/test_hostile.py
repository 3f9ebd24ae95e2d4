"""What a stranger may send: images that lie, requests that are none, and a server that goes on all the same."""

import base64
import contextlib
import http.client
import io
import json
import pickle
import random
import re
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssd_algo import demo
from ssd_algo.data import images, recordio

SIDE = 64
LINES, RECORDS = "application/jsonlines", "application/x-recordio"
JPEG_MAGIC, PNG_MAGIC = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
IEND = b"\0\0\0\0IEND\xaeB`\x82"

NOISE = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
PICTURE = Image.fromarray(NOISE)  # 41 x 30


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


JPEG, PNG = encode(PICTURE, "JPEG"), encode(PICTURE, "PNG")
PROGRESSIVE = encode(PICTURE, "JPEG", progressive=True)


def brief(value: object) -> str:
    """How a test of it is called."""
    return repr(value)[:40]


# --- PNGs, chunk by chunk


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header(width: int, height: int, depth: int = 8, color: int = 2, interlaced: bool = False) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))


def pixels(data: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(data))


def film(frames: int = 2) -> bytes:
    return chunk(b"acTL", struct.pack(">II", frames, 0))


def frame(number: int, width: int, height: int, left: int = 0, top: int = 0) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, left, top, 1, 10, 0, 0))


def next_frame(number: int, data: bytes) -> bytes:
    return chunk(b"fdAT", struct.pack(">I", number) + zlib.compress(data))


def png(*chunks: bytes) -> bytes:
    return PNG_MAGIC + b"".join(chunks) + IEND


def inflating(megabytes: int) -> bytes:
    """Deflated zeros."""
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


def rows(width: int, height: int, bytes_of_pixel: int = 3, filter_type: int = 0) -> bytes:
    """A black image, each row behind the number of its filter."""
    return (bytes([filter_type]) + bytes(width * bytes_of_pixel)) * height


def with_right_sums(encoded: bytes) -> bytes:
    """A PNG whose chunks were damaged, with checksums as if they were meant so."""
    chunks, place = [], len(PNG_MAGIC)
    while place + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, place)
        chunks.append(chunk(kind, encoded[place + 8 : place + 8 + length]))
        place += 12 + length
    return PNG_MAGIC + b"".join(chunks)


# --- JPEGs, segment by segment


def segment(kind: int, data: bytes = b"") -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(data) + 2) + data


def parts(jpeg: bytes) -> tuple[list[bytes], bytes]:
    """The segments before the first scan, and the rest."""
    segments, place = [], 2
    while jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        segments.append(jpeg[place:end])
        place = end
    return segments, jpeg[place:]


def said_to_be(width: int, height: int, jpeg: bytes = JPEG) -> list[bytes]:
    """The segments of a JPEG before its scan, with another size in the frame header."""
    return [
        each[:5] + struct.pack(">HH", height, width) + each[9:] if each[1] in (0xC0, 0xC2) else each
        for each in parts(jpeg)[0]
    ]


def jpeg_of(segments: Iterable[bytes], jpeg: bytes = JPEG) -> bytes:
    return JPEG_MAGIC + b"".join(segments) + parts(jpeg)[1]


def with_scans(count: int, width: int, height: int) -> bytes:
    """A progressive JPEG whose scans, of the last bit of the first coefficients, hold nothing."""
    jpeg = encode(PICTURE, "JPEG", progressive=True, subsampling=0)
    rest = parts(jpeg)[1]
    first = rest[: rest.index(b"\xff\xc4")]
    empty = segment(0xDA, bytes([3, 1, 0, 2, 0, 3, 0, 0, 0, 0x10]))
    return JPEG_MAGIC + b"".join(said_to_be(width, height, jpeg)) + first + empty * (count - 1) + b"\xff\xd9"


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


SMALL_EXIF = segment(0xE1, exif(1).tobytes())


# --- the decoder


def refusal(encoded: bytes) -> str:
    with pytest.raises(images.NotAnImage) as caught:
        images.decode_square(encoded, SIDE)
    return str(caught.value)


def size(encoded: bytes) -> tuple[int, int]:
    square, width, height = images.decode_square(encoded, SIDE)
    assert (square.shape, square.dtype) == ((SIDE, SIDE, 3), np.uint8)
    return width, height


def size_or_refusal(encoded: bytes) -> tuple[int, int] | str:
    """Nothing else may come of any bytes."""
    try:
        return size(encoded)
    except images.NotAnImage as error:
        return str(error)


def not_decoded(encoded: bytes) -> str:
    return f"the {len(encoded)} bytes are no image that can be decoded"


def too_large(width: int, height: int) -> str:
    return f"it has {width} x {height} pixels, and at most 50 million are taken; make it smaller"


class Outcome(NamedTuple):
    """Of an image that another process has decoded: how much more memory it took meanwhile."""

    megabytes: float
    said: str


DECODE = """
import pickle, re, sys
from pathlib import Path
from ssd_algo.data import images

def kilobytes(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

for encoded in [images.cv2.imencode(".png", images.np.zeros((9, 9, 3), "uint8"))[1].tobytes(), *pickle.load(sys.stdin.buffer)]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    try:
        said = "{} x {}".format(*images.decode_square(encoded, 64)[1:])
    except images.NotAnImage as error:
        said = str(error)
    print((kilobytes("VmHWM") - before) / 1000, said, flush=True)
"""


def decode_elsewhere(encoded: Iterable[bytes]) -> list[Outcome]:
    """Decode in a process of its own, which must not end over it."""
    command = [sys.executable, "-c", DECODE]
    done = subprocess.run(command, input=pickle.dumps(list(encoded)), capture_output=True, timeout=300)
    lines = done.stdout.decode().splitlines()[1:]
    assert done.returncode == 0, f"ended with {done.returncode} over image {len(lines)}"
    return [Outcome(float(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]


def test_a_png_that_is_too_large_is_refused_from_its_header() -> None:
    encoded = png(header(50_000, 50_000), pixels(bytes(2_000_000)))
    assert len(encoded) < 4000
    assert refusal(encoded) == too_large(50_000, 50_000)


@pytest.mark.parametrize("before", [b"", SMALL_EXIF], ids=["plain", "exif"])
def test_a_jpeg_that_is_too_large_is_refused_from_its_header(before: bytes) -> None:
    assert refusal(jpeg_of([before, *said_to_be(60_000, 60_000)])) == too_large(60_000, 60_000)


@pytest.mark.parametrize("sides", [(9000, 64), (64, 9000), (40_000, 64), (64, 40_000)])
def test_a_png_with_two_sizes_has_the_larger(sides: tuple[int, int]) -> None:
    encoded = png(*(header(side, side) for side in sides), pixels(rows(64, 64)))
    assert refusal(encoded) == too_large(max(sides), max(sides))


FAKE_FRAME = segment(0xC0, b"\x08" + struct.pack(">HH", 8, 8) + b"\3\1\x22\0\2\x11\1\3\x11\1")
HIDING = {
    "another frame within an application's segment": [segment(0xE3, FAKE_FRAME)],
    "within a comment": [segment(0xFE, FAKE_FRAME)],
    "within tables of an unknown coding": [segment(0xCC, FAKE_FRAME + b"\xff\xda\0\x0c")],
    "within XMP": [segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + FAKE_FRAME)],
    "fill bytes": [b"\xff" * 5],
    "restart markers": [b"\xff\xd0", b"\xff\xd7"],
    "stuffed bytes": [b"\xff\0"],
    "bytes of nothing": [segment(0xE3), b"\0\1\2"],
    "fill bytes behind EXIF": [SMALL_EXIF, b"\xff" * 3],
    "restart markers behind EXIF": [SMALL_EXIF, b"\xff\xd3"],
    "an application's segment behind EXIF": [SMALL_EXIF, segment(0xE3, FAKE_FRAME)],
    "tables of an unknown coding behind EXIF": [SMALL_EXIF, segment(0xCC, FAKE_FRAME + b"\xff\xda\0\x0c")],
}


@pytest.mark.parametrize("hiding", HIDING.values(), ids=HIDING.keys())
def test_the_frame_header_that_counts_cannot_be_hidden(hiding: list[bytes]) -> None:
    assert refusal(jpeg_of([*hiding, *said_to_be(9000, 9000)])) == too_large(9000, 9000)
    found = size_or_refusal(jpeg_of([*hiding, *parts(JPEG)[0]]))
    assert found == (41, 30) or isinstance(found, str)


@pytest.mark.parametrize("hiding", [[segment(0xE3, FAKE_FRAME)], [SMALL_EXIF, b"\xff" * 3], [b"\xff" * 5]])
def test_a_jpeg_that_is_only_unusual_is_taken(hiding: list[bytes]) -> None:
    assert size(jpeg_of([*hiding, *parts(JPEG)[0]])) == (41, 30)


def directory(*entries: tuple[int, int, int, int], following: int = 0) -> bytes:
    """TIFF's header and an image file directory: tag, type, count, value or offset of each."""
    head = b"II*\0" + struct.pack("<I", 8)
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return head + struct.pack("<H", len(entries)) + body + struct.pack("<I", following)


EXIFS = {
    "a directory that is its own successor": directory((0x0112, 3, 1, 1), following=8),
    "a directory that is its own child": directory((0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0x0112, 3, 1, 1)),
    "far too many values": directory((0x0112, 3, 0xFFFFFFFF, 1), (0x010E, 2, 0xFFFFFFFF, 8)),
    "values outside": directory((0x010E, 2, 1000, 0xFFFFFFF0), (0x011A, 5, 1, 0x7FFFFFFF)),
    "a successor outside": directory((0x0112, 3, 1, 1), following=0xFFFFFFFF),
    "more entries than there are": b"II*\0\x08\0\0\0\xff\xff" + bytes(20),
    "unknown types": directory((0x0112, 99, 1, 6), (0x0112, 0, 1, 6)),
    "an unknown orientation": directory((0x0112, 3, 1, 77)),
    "an orientation that is no number": directory((0x0112, 2, 4, 0x41414141)),
    "no directory": b"MM\0*\0\0\0\x08",
    "no TIFF": b"no TIFF at all",
    "nothing": b"",
}


@pytest.mark.parametrize("content", EXIFS.values(), ids=EXIFS.keys())
def test_hostile_exif(content: bytes) -> None:
    """An image is decoded, or refused for its header, as training refuses it."""
    jpeg = jpeg_of([segment(0xE1, b"Exif\0\0" + content), *parts(JPEG)[0]])
    split = PNG.index(b"IDAT") - 4
    for encoded in (jpeg, PNG[:split] + chunk(b"eXIf", content) + PNG[split:]):
        found = size_or_refusal(encoded)
        assert found in [(41, 30), (30, 41)] or "header cannot be read" in str(found)


@pytest.mark.parametrize(
    "encoded",
    [JPEG, PROGRESSIVE, PNG, encode(PICTURE, "JPEG", exif=exif(1)), encode(PICTURE, "PNG", exif=exif(1))],
    ids=["jpeg", "progressive", "png", "jpeg with exif", "png with exif"],
)
def test_cut_off_anywhere(encoded: bytes) -> None:
    for end in [*range(200), *range(200, len(encoded), 7)]:
        found = size_or_refusal(encoded[:end])
        assert found == (41, 30) or isinstance(found, str)
    assert isinstance(size_or_refusal(encoded[: len(encoded) // 10]), str)


def same_as_for_training(encoded: bytes) -> tuple[int, int]:
    """The size of an image whose pixels are those that training takes."""
    square, width, height = images.decode_square(encoded, SIDE)
    assert (square == images.to_square(images.decode(encoded), SIDE)).all()
    return width, height


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("sides", [(1, 1), (1, 20_000), (20_000, 1), (64, 64), (65, 63), (300, 200)])
def test_sizes(kind: str, sides: tuple[int, int]) -> None:
    content = np.random.default_rng(1).integers(0, 256, (sides[1], sides[0], 3), dtype=np.uint8)
    assert same_as_for_training(encode(Image.fromarray(content), kind)) == sides


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(kind: str, orientation: int) -> None:
    upright = (41, 30) if orientation < 5 else (30, 41)
    assert same_as_for_training(encode(PICTURE, kind, exif=exif(orientation))) == upright


SIXTEEN_BITS = Image.fromarray(np.arange(41 * 30, dtype=np.uint16).reshape(30, 41) * 50)
# One value everywhere, so that the passes of an interlaced image differ in nothing but their sizes.
PASSES = [(8, 8), (8, 8), (16, 8), (16, 16), (32, 16), (32, 32), (64, 32)]
INTERLACED = png(header(64, 64, interlaced=True), pixels(b"".join((b"\0" + b"\x70" * w * 3) * h for w, h in PASSES)))


KINDS = {
    "progressive": PROGRESSIVE,
    "mpo": encode(PICTURE, "MPO", save_all=True, append_images=[Image.new("RGB", (99, 99))]),
    "cmyk": encode(PICTURE.convert("CMYK"), "JPEG"),
    "gray": encode(PICTURE.convert("L"), "JPEG"),
    "gray and progressive": encode(PICTURE.convert("L"), "JPEG", progressive=True),
    "16 bits": encode(SIXTEEN_BITS, "PNG"),
    "palette": encode(PICTURE.convert("P"), "PNG", transparency=bytes(range(256))),
    "rgba": encode(PICTURE.convert("RGBA"), "PNG"),
    "gray and alpha": encode(PICTURE.convert("LA"), "PNG"),
    "1 bit": encode(PICTURE.convert("1"), "PNG"),
    "garbage behind a jpeg": JPEG + b"garbage" * 1000,
    "garbage behind a png": PNG + b"garbage" * 1000,
    "a png behind a jpeg": JPEG + PNG,
}


@pytest.mark.parametrize("encoded", KINDS.values(), ids=KINDS.keys())
def test_kinds(encoded: bytes) -> None:
    assert same_as_for_training(encoded) == (41, 30)


def test_an_interlaced_png() -> None:
    assert same_as_for_training(INTERLACED) == (64, 64)
    assert (images.decode_square(INTERLACED, SIDE)[0] == 0x70).all()


def test_a_film_is_its_first_picture() -> None:
    """An animated PNG."""
    others = [Image.new("RGB", PICTURE.size, color) for color in ("red", "blue")]
    square, width, height = images.decode_square(encode(PICTURE, "PNG", save_all=True, append_images=others), SIDE)
    assert (width, height) == (41, 30)
    assert (square == images.decode_square(PNG, SIDE)[0]).all()


@pytest.mark.parametrize("encoded", [b"", b"no image", b"\xff", JPEG[1:], b"\n" + PNG], ids=brief)
def test_what_is_no_image(encoded: bytes) -> None:
    assert refusal(encoded) == not_decoded(encoded)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "WEBP", "PPM", "ICO", "JPEG2000"])
def test_other_kinds_of_images(kind: str) -> None:
    encoded = encode(PICTURE, kind)
    assert refusal(encoded) == not_decoded(encoded)


def bombs() -> Iterator[tuple[str, bytes, int]]:
    """Name, image and how many MB it may take."""
    zeros, black, long = inflating(300), pixels(rows(64, 64)), struct.pack(">I", 1_000_000_000)
    start = PNG_MAGIC + header(64, 64)
    yield "a huge png", png(header(50_000, 50_000), pixels(bytes(2_000_000))), 20
    yield "a huge jpeg", jpeg_of(said_to_be(60_000, 60_000)), 20
    yield "text", png(header(64, 64), chunk(b"zTXt", b"a\0\0" + zeros), black), 20
    yield "international text", png(header(64, 64), chunk(b"iTXt", b"a\0\1\0\0\0" + zeros), black), 20
    yield "profile", png(header(64, 64), chunk(b"iCCP", b"a\0\0" + zeros), black), 20
    yield "more pixels than said", png(header(64, 64), chunk(b"IDAT", zeros)), 20
    yield "pixels that are not there", start + long + b"IDAT", 20
    yield "pixels that end early", start + long + b"IDAT" + bytes(99), 20
    yield "a palette that is not there", PNG_MAGIC + header(64, 64, color=3) + long + b"PLTE" + bytes(99), 20
    yield "an end that is not there", start + long + b"IEND", 20
    yield "a film whose end is not there", start + film() + frame(0, 64, 64) + black + long + b"IEND", 20
    large = pixels(rows(3000, 3000, 8))
    enough = 9 * 12 + 20
    yield "a large png", png(header(3000, 3000, 16, 6), large), enough
    yield "a large film", png(header(3000, 3000, 16, 6), film(), frame(0, 3000, 3000), large), enough
    yield "a large jpeg", jpeg_of(said_to_be(3000, 3000, PROGRESSIVE), PROGRESSIVE), enough


def test_no_image_takes_more_memory_than_its_pixels_need() -> None:
    names, encoded, most = zip(*bombs(), strict=True)
    taken = dict(zip(names, decode_elsewhere(encoded), strict=True))
    assert {name: taken[name] for name, limit in zip(names, most, strict=True) if taken[name].megabytes > limit} == {}
    assert taken["a huge png"].said == too_large(50_000, 50_000)
    assert {taken[name].said for name in names if "large" in name} == {"3000 x 3000"}


BROKEN_FILMS = {
    "a wrong filter": png(header(64, 64), film(), pixels(rows(64, 64, filter_type=9))),
    "a wrong filter in a frame": png(header(64, 64), film(), frame(0, 64, 64), pixels(rows(64, 64, filter_type=9))),
    "a frame too large": png(header(64, 64), film(), frame(0, 32, 33, 32), pixels(rows(64, 64)), frame(1, 64, 64)),
    "a frame outside": png(header(64, 64), film(), frame(0, 64, 64, 2**32 - 1), pixels(rows(64, 64)), frame(1, 64, 64)),
    "very many frames": png(header(64, 64), film(2**32 - 1), pixels(rows(64, 64)), frame(0, 1, 1), next_frame(1, b"a")),
    "two headers": png(header(64, 64), film(), pixels(rows(64, 64)), header(200, 1), frame(0, 64, 64)),
    "a long palette": png(header(64, 64, color=3), film(), chunk(b"PLTE", bytes(999)), pixels(rows(64, 64, 1))),
    "interlaced": png(header(64, 64, interlaced=True), film(), pixels(b"\7" * 14_000)),
}


@pytest.mark.parametrize("encoded", BROKEN_FILMS.values(), ids=BROKEN_FILMS.keys())
def test_no_film_ends_the_process(encoded: bytes) -> None:
    assert len(decode_elsewhere([encoded])) == 1


def test_damaged_films() -> None:
    generator = random.Random(0)
    frames = [PICTURE.convert(mode) for mode in ("RGB", "RGBA", "P", "L", "LA", "1")]
    films = [encode(each, "PNG", save_all=True, append_images=[each.rotate(180)]) for each in frames]
    damaged = [with_right_sums(mutated(generator, generator.choice(films))) for _ in range(600)]
    assert len(decode_elsewhere(damaged)) == 600


def mutated(generator: random.Random, encoded: bytes) -> bytes:
    """With some bytes changed, left out, doubled or put in."""
    changed = bytearray(encoded)
    for _ in range(generator.choice([1, 1, 2, 3, 8])):
        at, length = generator.randrange(len(changed)), generator.choice([1, 1, 2, 4, 20])
        match generator.randrange(6):
            case 0:
                changed[at : at + length] = generator.randbytes(length)
            case 1:
                changed[at : at + length] = generator.choice([b"\0", b"\xff", b"\x7f"]) * length
            case 2:
                changed[at] ^= 1 << generator.randrange(8)
            case 3:
                changed[at : at + length] = changed[at : at + length] * 2
            case 4 if len(changed) > 100:
                del changed[at : at + length]
            case _:
                changed[at:at] = generator.randbytes(length)
    return bytes(changed)


def test_a_jpeg_of_very_many_scans() -> None:
    """Each takes as long as decoding the whole image: 10,000 of 50 million pixels are 140 kB and some minutes."""
    assert size(with_scans(50, 640, 480)) == (640, 480)
    assert refusal(with_scans(2000, 640, 480)) == "it has more than 100 scans; save it again"


def test_scans_of_what_stands_behind_a_jpeg_do_not_count() -> None:
    assert size(JPEG + b"\xff\xda" * 2000) == (41, 30)


def test_a_jpeg_of_very_many_exif_segments() -> None:
    """For each, libjpeg walks through all that it has: of 80,000, 320 kB, for 20 seconds."""
    segments, _ = parts(JPEG)
    assert size(jpeg_of([*segments, segment(0xE1) * 500])) == (41, 30)
    encoded = jpeg_of([*segments, segment(0xE1) * 11_000])
    assert refusal(encoded) == "it has more than 10000 EXIF segments; save it again"


@pytest.mark.parametrize(
    "encoded",
    [
        jpeg_of([SMALL_EXIF, segment(0xE3) * 5000, *parts(JPEG)[0]]),
        jpeg_of([segment(0xFE) * 5000, *parts(JPEG)[0]]),
        png(header(64, 64), chunk(b"prVt") * 5000, pixels(rows(64, 64))),
        png(header(64, 64), chunk(b"tEXt", b"a\0b") * 5000, pixels(rows(64, 64))),
    ],
    ids=["applications' segments", "comments", "private chunks", "texts"],
)
def test_an_image_of_very_many_parts(encoded: bytes) -> None:
    """25 MB of them are gone through for 5 to 20 seconds, and 800 MB of memory taken."""
    assert refusal(encoded) == not_decoded(encoded)


BOUNDED = settings(derandomize=True, max_examples=300, deadline=None)


@BOUNDED
@given(st.sampled_from([b"", JPEG_MAGIC, PNG_MAGIC, JPEG[:200], PNG_MAGIC + header(9, 9)]), st.binary(max_size=400))
def test_any_bytes(start: bytes, rest: bytes) -> None:
    size_or_refusal(start + rest)


@BOUNDED
@given(st.randoms(use_true_random=False), st.sampled_from([JPEG, PROGRESSIVE, encode(PICTURE, "JPEG", exif=exif(6))]))
def test_any_damage_of_a_jpeg(generator: random.Random, encoded: bytes) -> None:
    size_or_refusal(mutated(generator, encoded))


@BOUNDED
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([PNG, INTERLACED, encode(PICTURE.convert("P"), "PNG"), encode(PICTURE, "PNG", exif=exif(6))]),
    st.booleans(),
)
def test_any_damage_of_a_png(generator: random.Random, encoded: bytes, meant: bool) -> None:
    damaged = mutated(generator, encoded)
    size_or_refusal(with_right_sums(damaged) if meant else damaged)


# --- the server


class Answer(NamedTuple):
    """An HTTP answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def error(self) -> str:
        """The sentence of a refusal, which is JSON whoever refuses."""
        assert self.headers["Content-Type"] == "application/json"
        (sentence,) = json.loads(self.body).values()
        assert isinstance(sentence, str)
        return sentence


def converse(url: str, sent: bytes, ends: bool = False, seconds: float = 60) -> Answer:
    """What comes back for some bytes; `ends` says then that there are no more, though the answer is awaited."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(sent)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        with contextlib.closing(http.client.HTTPResponse(connection)) as response:
            response.begin()
            return Answer(response.status, response.headers, response.read())


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join([line, "Host: x", "Connection: close", *fields, "", ""]).encode("latin-1")


def invocation(body: bytes, *fields: str, length: object = None) -> bytes:
    said = len(body) if length is None else length
    return head("POST /invocations HTTP/1.1", f"Content-Length: {said}", *fields) + body


def in_chunks(*chunks: bytes) -> bytes:
    """Each as it is."""
    return head("POST /invocations HTTP/1.1", "Transfer-Encoding: chunked") + b"".join(chunks)


def processes(url: str) -> set[int]:
    """The server's processes, which are those with its port in their environment."""
    found, setting = set(), b"SAGEMAKER_BIND_TO_PORT=%s\0" % url.split(":")[-1].encode()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if setting in (folder / "environ").read_bytes():
                found.add(int(folder.name))
    return found


def counted(url: str) -> float:
    """How many requests the server has answered, as it says."""
    text = converse(url, head("GET /metrics HTTP/1.1")).body.decode()
    return sum(float(value) for value in re.findall(r"^ssd_algo_requests_total\{.*\} (.*)$", text, re.MULTILINE))


@pytest.fixture
def photo(shapes: Path) -> bytes:
    return (shapes / "validation" / "validation-0000.jpg").read_bytes()


@pytest.fixture
def unharmed(url: str, photo: bytes) -> Iterator[str]:
    """The address of a server that must answer the same afterwards, in the same processes."""
    before, count, expected = processes(url), counted(url), demo.post_image(url, photo)
    assert len(before) == 2
    yield url
    assert processes(url) == before
    assert counted(url) > count
    assert demo.post_image(url, photo) == expected


EMPTY = "The request's body is empty; send a JPEG or PNG file's bytes."
TOO_MUCH = "The request's body has more than 25 MB; send a smaller image, or set SAGEMAKER_MAX_PAYLOAD_IN_MB."


CUT_OFF = "The request's body ended before its last chunk; send all of it."
ROUTES = "there are POST /invocations, GET /ping, GET /execution-parameters, GET /metrics and GET /."


def unread(why: str) -> str:
    return f"The request's body cannot be read ({why}); send it as HTTP/1.1 says."


def no_request(why: str) -> str:
    return f"The request is not HTTP/1.1 as this server takes it: {why}."


@pytest.mark.parametrize(
    "sent",
    [invocation(b""), head("POST /invocations HTTP/1.1"), in_chunks(b"0\r\n\r\n")],
    ids=["of no bytes", "without a length", "of no chunk"],
)
def test_no_body(unharmed: str, sent: bytes) -> None:
    answer = converse(unharmed, sent)
    assert (answer.status, answer.error()) == (400, EMPTY)


def test_a_body_that_is_too_large(unharmed: str) -> None:
    """All of it is sent before anybody listens for an answer, as most clients do."""
    answer = converse(unharmed, invocation(bytes(40 * 2**20)))
    assert (answer.status, answer.error()) == (413, TOO_MUCH)
    answer = converse(unharmed, in_chunks(*[b"100000\r\n" + bytes(2**20) + b"\r\n"] * 40, b"0\r\n\r\n"))
    assert (answer.status, answer.error()) == (413, TOO_MUCH)


def test_a_body_as_large_as_may_be(unharmed: str) -> None:
    answer = converse(unharmed, invocation(bytes(25 * 2**20)))
    assert answer.status == 400
    assert answer.error() == (
        "The request's body is not an image: the 26214400 bytes are no image that can be decoded; send a JPEG or PNG file's bytes."
    )


def test_a_body_that_is_announced_as_endless(unharmed: str) -> None:
    answer = converse(unharmed, invocation(b"some", length=10**18), ends=True)
    assert (answer.status, answer.error()) == (413, TOO_MUCH)


def test_a_body_that_ends_early(unharmed: str, photo: bytes) -> None:
    answer = converse(unharmed, invocation(photo[:1000], length=len(photo)), ends=True)
    sentence = f"The request's body ended after 1000 of {len(photo)} bytes; send all of it."
    assert (answer.status, answer.error()) == (400, sentence)


@pytest.mark.parametrize("length", [-1, "many", "1e3", "0x10", "+5", "\xb2", "5, 5", "9" * 5000], ids=brief)
def test_a_length_that_is_none(unharmed: str, length: object) -> None:
    answer = converse(unharmed, invocation(b"12345", length=length))
    assert (answer.status, answer.error()) == (400, no_request("Invalid HTTP Header: 'CONTENT-LENGTH'"))


@pytest.mark.parametrize(
    ("chunks", "why"),
    [
        (b"zz\r\nabc\r\n0\r\n\r\n", "Invalid chunk size: b'zz'"),
        (b"-3\r\nabc\r\n0\r\n\r\n", "Invalid chunk size: b'-3'"),
        (b"\r\nabc\r\n0\r\n\r\n", "Invalid chunk size: b''"),
        (b"3\r\nabcdef\r\n0\r\n\r\n", "Invalid chunk terminator is not '\\r\\n': b'de'"),
        (b"ffffffffffffffffffff\r\nabc", CUT_OFF),
        (b"3\r\nab", CUT_OFF),
        (b"3\r\nabc\r\n", CUT_OFF),
        (b"3\r\nabc\r\n0\r\n", "Invalid chunk terminator is not '\\r\\n': b''"),
        (b"3\r\nabc\r\n0\r\nno trailer\r\n\r\n", "Invalid HTTP Header: 'no trailer'"),
        (b"1" * 20_000, "Invalid chunk size: b'line over 8190 bytes with no terminator'"),
    ],
    ids=brief,
)
def test_broken_chunks(unharmed: str, chunks: bytes, why: str) -> None:
    answer = converse(unharmed, in_chunks(chunks), ends=True)
    assert (answer.status, answer.error()) == (400, why if why == CUT_OFF else unread(why))


@pytest.mark.parametrize(
    ("sent", "status", "why"),
    [
        (head(f"GET /{'a' * 10_000} HTTP/1.1"), 414, "Request Line is too large (8192 > 4094)"),
        (head("GET /ping HTTP/1.1", f"X: {'a' * 10_000}"), 431, "limit request headers fields size"),
        (head("GET /ping HTTP/1.1", *["X: a"] * 200), 431, "limit request headers fields"),
        (b"hello\r\n\r\n", 400, "Invalid HTTP request line: 'hello'"),
        (bytes(range(32)) * 9, 400, "Invalid HTTP request line: 'bare LF as line terminator'"),
        (head("GET /ping HTTP/9.9"), 400, "Invalid HTTP Version: (9, 9)"),
        (head("get /ping HTTP/1.1"), 400, "Invalid HTTP method: 'get'"),
        (head("GET /ping HTTP/1.1", "Host: y"), 400, "Invalid HTTP Header: 'HOST'"),
        (head("GET /ping HTTP/1.1", "no field"), 400, "Invalid HTTP Header: 'no field'"),
        (head("GET /ping HTTP/1.1", "Expect: wonders"), 417, "Unable to comply with expectation: 'wonders'"),
        (head("GET /\0 HTTP/1.1"), 400, "Invalid HTTP request line: 'GET /\\x00 HTTP/1.1'"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "Invalid HTTP request line: 'PRI * HTTP/2.0'"),
    ],
    ids=brief,
)
def test_what_is_no_request(unharmed: str, sent: bytes, status: int, why: str) -> None:
    answer = converse(unharmed, sent)
    assert (answer.status, answer.error()) == (status, no_request(why))


@pytest.mark.parametrize("coding", ["gzip", "identity", "chunked, gzip", "chunked, chunked", "sevenzip"])
def test_codings_that_are_not_taken(unharmed: str, coding: str) -> None:
    answer = converse(unharmed, head("POST /invocations HTTP/1.1", f"Transfer-Encoding: {coding}") + b"0\r\n\r\n")
    unknown = f"Unsupported transfer coding: {coding!r}"
    why = unknown if coding == "sevenzip" else "Invalid HTTP Header: 'TRANSFER-ENCODING'"
    assert (answer.status, answer.error()) == (400, no_request(why))


def test_a_length_beside_chunks(unharmed: str) -> None:
    """What is smuggled so behind a proxy is not read as a request."""
    fields = ("Content-Length: 5", "Transfer-Encoding: chunked")
    answer = converse(unharmed, head("POST /invocations HTTP/1.1", *fields) + b"0\r\n\r\n" + head("GET /ping HTTP/1.1"))
    assert (answer.status, answer.error()) == (400, no_request("Invalid HTTP Header: 'CONTENT-LENGTH'"))


ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


@pytest.mark.parametrize("value", ["a\nX-Evil: 1", "a\rX-Evil: 1", "a\0", "a\x7f", "a\r\n X-Evil: 1"], ids=brief)
def test_custom_attributes_that_would_be_more_headers(unharmed: str, photo: bytes, value: str) -> None:
    answer = converse(unharmed, invocation(photo, f"{ATTRIBUTES}: {value}"))
    assert answer.status == 400
    assert answer.error().startswith("The request is not HTTP/1.1 as this server takes it: ")
    assert {"x-evil", ATTRIBUTES.lower()}.isdisjoint(name.lower() for name in answer.headers)


@pytest.mark.parametrize("value", ["a=%0d%0aX-Evil:%201", "\xe4\xff", "a" * 8000, "=;=,=", '"a', "a\tb"], ids=brief)
def test_custom_attributes_come_back_as_they_are(unharmed: str, photo: bytes, value: str) -> None:
    answer = converse(unharmed, invocation(photo, f"{ATTRIBUTES}: {value}"))
    assert answer.status == 200
    assert answer.headers[ATTRIBUTES] == value
    assert "X-Evil" not in answer.headers


NOWHERE = ["/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static/../app.py", "/static/%2e%2e/app.py", "/static/%00"]
NOWHERE += ["/%00", "/ping%00", "/%", "/%zz", "/%ff%fe", "/ping/../metrics", "/ping/", "/\\..\\ping", "/a" * 2000]


@pytest.mark.parametrize("path", NOWHERE, ids=brief)
def test_paths_that_lead_nowhere(unharmed: str, path: str) -> None:
    answer = converse(unharmed, head(f"GET {path} HTTP/1.1"))
    assert answer.status == 404
    assert answer.error().startswith("There is no GET /")
    assert answer.error().endswith(f"; {ROUTES}")
    assert len(answer.error()) < 300


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/invocations", {"POST", "OPTIONS"}),
        ("PUT", "/invocations", {"POST", "OPTIONS"}),
        ("TRACE", "/invocations", {"POST", "OPTIONS"}),
        ("CONNECT", "/invocations", {"POST", "OPTIONS"}),
        ("BREW", "/invocations", {"POST", "OPTIONS"}),
        ("POST", "/ping", {"GET", "HEAD", "OPTIONS"}),
        ("DELETE", "/metrics", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_methods(unharmed: str, method: str, path: str, allowed: set[str]) -> None:
    answer = converse(unharmed, head(f"{method} {path} HTTP/1.1"))
    assert (answer.status, answer.error()) == (405, f"There is no {method} {path}; {ROUTES}")
    assert set(answer.headers["Allow"].split(", ")) == allowed


def test_lines_of_which_some_are_no_image(unharmed: str, photo: bytes) -> None:
    expected, good = demo.post_image(unharmed, photo), json.dumps(base64.b64encode(photo).decode())
    wrong = [
        "{",
        "[1, 2]",
        "null",
        "NaN",
        "1" * 5000,
        "[" * 5000,
        '"%"',
        '"YWJj\u00e4"',
        '{"image": 7}',
        '{"body": ""}',
    ]
    lines = [each for bad in wrong for each in (good, bad)]
    answer = converse(unharmed, invocation("\n".join(lines).encode(), f"Content-Type: {LINES}"))
    assert answer.status == 200
    answers = json.loads(answer.body)["predictions"]
    assert answers[::2] == [expected] * len(wrong)
    assert [each["error"] for each in answers[1::2]] == [
        f'Line {number} of the request\'s body is no image in base64; send "..." or {{"image": "..."}}.'
        for number in range(2, len(lines) + 1, 2)
    ]


def test_lines_of_which_some_cannot_be_decoded(unharmed: str, photo: bytes) -> None:
    expected = demo.post_image(unharmed, photo)
    bodies = [b"", b"no image", photo, JPEG[1:], jpeg_of(said_to_be(60_000, 60_000))]
    lines = [json.dumps({"image": base64.b64encode(body).decode()}) for body in bodies]
    answer = converse(unharmed, invocation("\r\n".join(lines).encode(), f"Content-Type: {LINES}"))
    assert answer.status == 200
    answers = json.loads(answer.body)["predictions"]
    assert answers.pop(2) == expected
    reasons = [not_decoded(b""), not_decoded(b"no image"), not_decoded(JPEG[1:]), too_large(60_000, 60_000)]
    assert answers == [
        {"error": f"Image {number} of the request's body is not an image: {why}; send a JPEG or PNG file's bytes."}
        for number, why in zip((1, 2, 4, 5), reasons, strict=True)
    ]


def packed(*payloads: bytes) -> bytes:
    file = io.BytesIO()
    for payload in payloads:
        recordio.write_record(file, payload)
    return file.getvalue()


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda records: records[:-100], "is cut off: {0} bytes announced, {1} there"),
        (lambda records: records[: len(records) // 2 + 5], "is cut off: the file ends within its header"),
        (lambda records: b"\0" + records, "does not start with the RecordIO magic number 0xced7230a"),
    ],
    ids=["cut off", "cut off in a header", "no record"],
)
def test_broken_records(unharmed: str, photo: bytes, broken: Callable[[bytes], bytes], why: str) -> None:
    records = packed(photo, photo)
    answer = converse(unharmed, invocation(broken(records), f"Content-Type: {RECORDS}"))
    number = 0 if "magic" in why else 1
    there = len(records) // 2 - 8 - 100
    sentence = f"Record {number} of the request's body cannot be read: {why.format(len(photo), there)}."
    assert (answer.status, answer.error()) == (400, sentence)


@pytest.mark.parametrize("payload", [b"", b"no image", b"\2\0\0\0" + bytes(20), b"\xff" * 40], ids=brief)
def test_records_of_which_some_are_no_image(unharmed: str, photo: bytes, payload: bytes) -> None:
    expected = demo.post_image(unharmed, photo)
    answer = converse(unharmed, invocation(packed(photo, payload, photo), f"Content-Type: {RECORDS}"))
    assert answer.status == 200
    first, error, last = json.loads(answer.body)["predictions"]
    assert first == last == expected
    sentence = (
        f"Image 2 of the request's body is not an image: {not_decoded(payload)}; send a JPEG or PNG file's bytes."
    )
    assert error == {"error": sentence}


@pytest.mark.parametrize("encoded", BROKEN_FILMS.values(), ids=BROKEN_FILMS.keys())
def test_a_film_does_not_end_the_server(unharmed: str, encoded: bytes) -> None:
    assert converse(unharmed, invocation(encoded)).status in (200, 400)


def left_open(url: str, count: int, sent: bytes) -> contextlib.ExitStack:
    """Connections over which some bytes are sent, and which nobody closes or listens to."""
    host, port = url.removeprefix("http://").split(":")
    kept = contextlib.ExitStack()
    for _ in range(count):
        kept.enter_context(socket.create_connection((host, int(port)))).sendall(sent)
    return kept


@pytest.mark.parametrize("path", ["/ping", "/metrics"])
def test_whoever_has_been_answered_and_stays_keeps_nobody_waiting(unharmed: str, path: str) -> None:
    """gunicorn waits for each for two seconds, on the thread that is to accept others."""
    with left_open(unharmed, 10, head(f"GET {path} HTTP/1.1")):
        assert converse(unharmed, head(f"GET {path} HTTP/1.1"), seconds=5).status == 200


@pytest.mark.parametrize("path", ["/ping", "/metrics"])
def test_half_requests_keep_nobody_waiting(unharmed: str, path: str) -> None:
    with left_open(unharmed, 100, f"GET {path} HTTP/1.1\r\nX: ".encode()):
        assert converse(unharmed, head(f"GET {path} HTTP/1.1"), seconds=5).status == 200


@pytest.mark.parametrize("half", [b"G", b"GET /ping HTTP/1.1\r\n", head("GET /ping HTTP/1.1")[:-2]])
def test_a_half_request_whose_sender_has_ended_is_let_go(unharmed: str, half: bytes) -> None:
    """Its connection is readable for as long as it is kept, and the server would be busy with it all the while."""
    host, port = unharmed.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(half)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


FILM = encode(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)])


def fuzzed(generator: random.Random, photo: bytes) -> tuple[bytes, bool]:
    """A request that is wrong somewhere, and whether its end must be told, as its head may promise more."""
    match generator.randrange(7):
        case 0:
            return invocation(mutated(generator, generator.choice([photo, JPEG, PROGRESSIVE]))), False
        case 1:
            return invocation(mutated(generator, generator.choice([PNG, INTERLACED]))), False
        case 2:
            return invocation(with_right_sums(mutated(generator, generator.choice([PNG, INTERLACED, FILM])))), False
        case 3:
            lines = "\n".join(json.dumps(base64.b64encode(each).decode()) for each in (photo, PNG, b"")).encode()
            return invocation(mutated(generator, lines), f"Content-Type: {LINES}"), False
        case 4:
            return invocation(mutated(generator, packed(photo, PNG, b"")), f"Content-Type: {RECORDS}"), False
        case 5:
            wishes = ["Accept: application/json;annotation=1;names=1, */*;q=0.5", "Content-Type: image/jpeg; a=b"]
            line, body = invocation(photo, *wishes, f"{ATTRIBUTES}: threshold=0.5, max_detections=3").split(b"\r\n", 1)
            fields, body = body.split(b"\r\n\r\n", 1)
            return line + b"\r\n" + mutated(generator, fields) + b"\r\n\r\n" + body, True
        case _:
            path = generator.choice([b"/invocations?a=b&c=%20", b"/ping#a", b"/metrics;a", b"http://x:80/a/../b"])
            method = generator.choice([b"GET ", b"POST ", b"PUT "])
            return method + mutated(generator, path) + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", True


def test_many_wrong_requests(unharmed: str, photo: bytes) -> None:
    generator, statuses, by_us = random.Random(0), [], 0
    before = counted(unharmed)
    for _ in range(300):
        sent, ends = fuzzed(generator, photo)
        try:
            answer = converse(unharmed, sent, ends)
        except (http.client.RemoteDisconnected, ConnectionResetError):  # none is due to less than a head
            assert ends
            continue
        statuses.append(answer.status)
        by_us += answer.headers["Server"] == "gunicorn"
    assert [status for status in statuses if status >= 500 and status != 503] == []
    assert {200, 400, 404} <= set(statuses)
    assert counted(unharmed) >= before + by_us
