"""Requests that are wrong in some way, and the clients of benchmarks/serving.py that send them.

    python benchmarks/fuzz.py NUMBER [SEED] | nc 127.0.0.1 8080

sends one of them again: the request of a number is the same whatever the others are.
"""

import base64
import io
import re
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

from ssd_algo import demo
from ssd_algo.data import recordio

_CONNECTIONS = 8
_WHOLE_SECONDS = 30.0  # for the answer to a request that is whole
_HALF_SECONDS = 1.0  # to see whether one that may not be whole is answered, before its end is told
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")
_TYPES = ("image/jpeg", "image/png", "application/x-image", "application/jsonlines", "application/x-recordio")


class Fuzzed(NamedTuple):
    """What came of a request: the statuses of its answers, whether one was due and none came, and the first bytes."""

    number: int
    kind: str
    statuses: list[int]
    lost: bool
    excerpt: str


class _Raw(NamedTuple):
    """Bytes to send. Of a request that is whole, one answer is sure, and the connection can be used again."""

    sent: bytes
    whole: bool


def fuzz(port: int, seed: int, first: int, last: int) -> list[Fuzzed]:
    """Send the requests of these numbers over some connections at a time."""
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        begun = [
            pool.submit(_fuzz_client, port, seed, range(first + k, last, _CONNECTIONS)) for k in range(_CONNECTIONS)
        ]
        return [each for client in begun for each in client.result()]


def fuzzed(seed: int, number: int) -> tuple[str, _Raw]:
    """A kind and the request of this number, whatever the others are."""
    generator = np.random.default_rng([seed, number])
    kind = str(generator.choice(list(_KINDS)))
    return kind, _KINDS[kind](generator)


def _fuzz_client(port: int, seed: int, numbers: range) -> list[Fuzzed]:
    seen, kept = [], None
    for number in numbers:
        kind, raw = fuzzed(seed, number)
        connection = kept if kept and raw.whole else socket.create_connection(("127.0.0.1", port), _WHOLE_SECONDS)
        if kept and connection is not kept:
            kept.close()
        data, lost = _converse(connection, raw)
        kept = connection if raw.whole and not lost and _is_whole(data) and b"onnection: close" not in data else None
        if kept is None:
            connection.close()
        statuses = [int(each) for each in _STATUS.findall(data)]
        seen.append(Fuzzed(number, kind, statuses, lost, repr(data[:300])))
    return seen


def _converse(connection: socket.socket, raw: _Raw) -> tuple[bytes, bool]:
    """What comes back, and whether it is too little: no answer to a whole request, or no end of the connection."""
    data = b""
    try:
        connection.settimeout(_WHOLE_SECONDS if raw.whole else _HALF_SECONDS)
        try:
            connection.sendall(raw.sent)
        except OSError:  # the server does not take more; it may have said why
            if raw.whole:
                return data, True
        try:
            while not _is_whole(data):
                part = connection.recv(1 << 16)
                data += part
                if not part:
                    return data, raw.whole and not data
        except TimeoutError:
            if raw.whole:
                return data, True
        if raw.whole:
            return data, False
        connection.settimeout(_WHOLE_SECONDS)
        connection.shutdown(socket.SHUT_WR)
        while part := connection.recv(1 << 16):
            data += part
        return data, False
    except TimeoutError:
        return data, True
    except OSError:  # reset: the server closed the connection with bytes of ours unread
        return data, raw.whole


def _is_whole(data: bytes) -> bool:
    """Whether the bytes have an answer other than `100 Continue` with its body."""
    head, end, body = re.sub(rb"^HTTP/1\.1 100 .*?\r\n\r\n", b"", data, flags=re.DOTALL).partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return bool(end) and length is not None and len(body) >= int(length[1])


def _http(
    body: bytes,
    headers: bytes = b"Content-Type: image/jpeg\r\n",
    line: bytes = b"POST /invocations HTTP/1.1",
    length: bytes | None = None,
) -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if length is None else length
    return line + b"\r\nHost: localhost\r\n" + headers + length + b"\r\n" + body


def _image(generator: np.random.Generator) -> bytes:
    """A small JPEG or PNG of drawn shapes, of one of several kinds; a few have much behind their end."""
    return _encoded(generator) + (
        generator.bytes(int(generator.integers(300_000))) if generator.random() < 0.1 else b""
    )


def _encoded(generator: np.random.Generator) -> bytes:
    drawn, _, _ = demo.draw_sample(generator, int(generator.integers(40, 300)), int(generator.integers(40, 300)))
    if generator.random() < 0.2:
        drawn = cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY)
    if generator.random() < 0.4:
        return cv2.imencode(".png", drawn)[1].tobytes()
    return cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_PROGRESSIVE, int(generator.integers(2))])[1].tobytes()


def _noise(generator: np.random.Generator, most: int) -> bytes:
    return generator.bytes(int(generator.integers(0, most)))


def _choice(generator: np.random.Generator, *choices: bytes) -> bytes:
    return choices[int(generator.integers(len(choices)))]


def _flipped(generator: np.random.Generator, encoded: bytes) -> bytes:
    """Some bits are other ones, in half of the cases in what may be a header only."""
    changed = bytearray(encoded)
    most = len(encoded) if generator.random() < 0.5 else min(700, len(encoded))
    for place in generator.integers(0, most, int(generator.integers(1, 40))):
        changed[int(place)] ^= 1 << int(generator.integers(8))
    return bytes(changed)


def _cut(generator: np.random.Generator) -> bytes:
    encoded = _image(generator)
    return encoded[: int(generator.integers(0, len(encoded)))]


def _spliced(generator: np.random.Generator) -> bytes:
    first, second = _image(generator), _image(generator)
    return first[: int(generator.integers(len(first)))] + second[int(generator.integers(len(second))) :]


def _inflated(generator: np.random.Generator) -> bytes:
    """The header says another size, most often one for which the pixels are too few."""
    changed = bytearray(_image(generator))
    if changed.startswith(b"\x89PNG"):
        sides = generator.choice([0, 1, 300, 7000, 65535, 2**31 - 1, 2**32 - 1], 2)
        struct.pack_into(">II", changed, 16, *map(int, sides))
        struct.pack_into(">I", changed, 29, zlib.crc32(changed[12:29]))
        return bytes(changed)
    frame = re.search(rb"\xff[\xc0-\xc2]\x00[\x08-\x14]", changed)
    if frame:
        struct.pack_into(">HH", changed, frame.start() + 5, *map(int, generator.choice([0, 1, 300, 7000, 65535], 2)))
    return bytes(changed)


def _with_exif(generator: np.random.Generator) -> bytes:
    """An EXIF segment with an orientation that may be none, in a directory that may be noise."""
    entry = struct.pack("<HHIHH", 0x0112, int(generator.choice([3, 2, 4, 9])), 1, int(generator.integers(0, 12)), 0)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", int(generator.choice([1, 1, 2, 65535]))) + entry + bytes(4)
    if generator.random() < 0.5:
        exif = _flipped(generator, exif + generator.bytes(40))
    drawn, _, _ = demo.draw_sample(generator, 120, 80)
    encoded = cv2.imencode(".jpg", drawn)[1].tobytes()
    length = len(exif) + 2 if generator.random() < 0.8 else int(generator.integers(0, 65536))
    return encoded[:2] + b"\xff\xe1" + struct.pack(">H", length) + exif + encoded[2:]


def _other_kind(generator: np.random.Generator) -> bytes:
    """Bytes that begin like something, or nothing."""
    starts = (b"", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8 ", b"II*\0", b"MM\0*", b"%PDF-1.7", b"\xff\xd8", b"<svg>")
    return _choice(generator, *starts, b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0") + _noise(generator, 3000)


def _many(generator: np.random.Generator) -> bytes:
    """A body of several images, some of them wrong, as one of the types for such."""
    images = [_image(generator) if generator.random() < 0.5 else _cut(generator) for _ in range(3)]
    if generator.random() < 0.5:
        records = io.BytesIO()
        for image in images:
            recordio.write_record(records, image)
        body, kind = records.getvalue(), b"application/x-recordio"
    else:
        lines = [b'{"image": "%s"}' % base64.b64encode(each) for each in images]
        body, kind = (
            b"\n".join([*lines, b'"AAAA"', b"[" * 3000, b"null", b"1e999", b'{"image": 3}']),
            b"application/jsonlines",
        )
    return _http(_flipped(generator, body) if generator.random() < 0.7 else body, b"Content-Type: " + kind + b"\r\n")


def _text(generator: np.random.Generator, most: int = 60) -> bytes:
    """A header's value: signs that are allowed there, of all kinds."""
    signs = np.frombuffer(bytes(range(33, 127)) + bytes(range(160, 256)), dtype=np.uint8)
    return generator.choice(signs, int(generator.integers(0, most))).tobytes()


def _content_type(generator: np.random.Generator) -> bytes:
    named = generator.choice(_TYPES).encode()
    value = _choice(generator, named, named.upper(), named + b"; charset=" + _text(generator), b"", _text(generator))
    return _http(_image(generator), b"Content-Type: " + value + b"\r\n")


def _accept(generator: np.random.Generator) -> bytes:
    known = (
        b"application/json",
        b"application/jsonlines",
        b"application/json;annotation=1;names=1",
        b"*/*",
        b"text/html",
    )
    parts = [
        _choice(generator, *known, _text(generator)) + _choice(generator, b"", b";q=" + _text(generator, 5), b";q=0")
    ]
    parts += [_text(generator, 20) for _ in range(int(generator.integers(0, 4)))]
    return _http(_image(generator), b"Accept: " + b", ".join(parts) + b"\r\nContent-Type: image/png\r\n")


def _attributes(generator: np.random.Generator) -> bytes:
    values = b"0.5", b"nan", b"inf", b"-1", b"1e400", b"5", b"99999999999", b"", _text(generator)
    names = b"threshold", b"max_detections", _text(generator, 10)
    pairs = [_choice(generator, *names) + b"=" + _choice(generator, *values) for _ in range(3)]
    return _http(
        _image(generator),
        b"X-Amzn-SageMaker-Custom-Attributes: " + _choice(generator, b",", b";").join(pairs) + b"\r\n",
    )


def _length(generator: np.random.Generator) -> bytes:
    body = _image(generator)
    right = b"%d" % len(body)
    values = b"0", b"-1", b"1e3", b"+" + right, b" " + right, right + b"1", b"9" * 30, b"0x10", b"", _text(generator, 8)
    said = b"Content-Length: %s\r\n" % _choice(generator, *values)
    return _http(body, length=_choice(generator, b"", said, said, said + b"Content-Length: %s\r\n" % right))


def _chunked(generator: np.random.Generator) -> bytes:
    body = _image(generator)
    middle = int(generator.integers(1, len(body)))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in (body[:middle], body[middle:])) + b"0\r\n\r\n"
    if generator.random() < 0.6:
        start = int(generator.integers(0, 8))
        wrong = _choice(
            generator, b"-5\r\n", b"zz\r\n", b"f" * 20 + b"\r\n", b"5;" + _text(generator) + b"\r\n", b"\r\n", b""
        )
        chunks = _choice(generator, wrong + chunks, chunks[start:], chunks[:-5], _flipped(generator, chunks))
    coding = _choice(
        generator, b"chunked", b"chunked", b"gzip, chunked", b"identity", b"chunked, chunked", _text(generator)
    )
    both = _choice(generator, b"", b"", b"Content-Length: 5\r\n")
    return _http(chunks, b"Transfer-Encoding: " + coding + b"\r\nContent-Type: image/jpeg\r\n", length=both)


def _expect(generator: np.random.Generator) -> bytes:
    return _http(
        _image(generator),
        b"Expect: " + _choice(generator, b"100-continue", b"100-Continue", _text(generator)) + b"\r\n",
    )


def _long_header(generator: np.random.Generator) -> bytes:
    size = int(generator.integers(1, 100_000))
    many = b"".join(b"X-%d: %s\r\n" % (number, b"a" * 20) for number in range(int(generator.integers(50, 300))))
    names = b"X-Long", b"Accept", b"Content-Type", b"X-Amzn-SageMaker-Custom-Attributes"
    return _http(
        _image(generator), _choice(generator, many, _choice(generator, *names) + b": " + b"a" * size + b"\r\n")
    )


def _header_signs(generator: np.random.Generator) -> bytes:
    """Headers that are none."""
    name, value = _choice(generator, b"X-A", b"Accept", b"", _noise(generator, 12)), _noise(generator, 40)
    forms = (
        b"%s: %s\r\n" % (name, value),
        b"%s %s\r\n" % (name, value),
        b"%s: a\r\n %s\r\n" % (name, value),
        b"\0: \0\r\n",
    )
    return _http(_image(generator), _choice(generator, *forms))


def _path(generator: np.random.Generator) -> bytes:
    known = b"/invocations", b"/ping", b"/metrics", b"/execution-parameters", b"/", b"http://localhost/ping", b"*"
    ends = (
        b"",
        b"/",
        b"?a=%00",
        b"/../ping",
        b"%2e%2e%00",
        b"#x",
        b"?" + _text(generator),
        b"//",
        b";a=b",
        _noise(generator, 30),
    )
    method = _choice(generator, b"GET", b"POST")
    path = _choice(generator, *known, _text(generator), b"/" + b"a" * int(generator.integers(1, 9000)))
    return _http(b"", line=method + b" " + path + _choice(generator, *ends) + b" HTTP/1.1")


def _method(generator: np.random.Generator) -> bytes:
    methods = (
        b"PUT",
        b"DELETE",
        b"OPTIONS",
        b"HEAD",
        b"TRACE",
        b"CONNECT",
        b"PATCH",
        b"post",
        b"G T",
        b"",
        _text(generator),
    )
    path = _choice(generator, b"/invocations", b"/ping", b"/metrics", b"/", b"/execution-parameters", b"/static/x")
    version = _choice(
        generator, b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/9", b"", _text(generator, 9)
    )
    return _http(_image(generator), line=_choice(generator, *methods) + b" " + path + b" " + version)


def _garbage(generator: np.random.Generator) -> bytes:
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n" * 50, b""
    whole = _http(_image(generator))
    anything = _choice(generator, *hello) + _noise(generator, 2000)
    return _choice(
        generator, anything, _flipped(generator, whole), whole[: int(generator.integers(len(whole)))], whole + whole
    )


def _whole(make: Callable[[np.random.Generator], bytes]) -> Callable[[np.random.Generator], _Raw]:
    return lambda generator: _Raw(_http(make(generator), b"Content-Type: application/x-image\r\n"), True)


def _not_whole(make: Callable[[np.random.Generator], bytes]) -> Callable[[np.random.Generator], _Raw]:
    return lambda generator: _Raw(make(generator), False)


_KINDS: dict[str, Callable[[np.random.Generator], _Raw]] = {
    "image": _whole(_image),
    "image, bits flipped": _whole(lambda generator: _flipped(generator, _image(generator))),
    "image, cut": _whole(_cut),
    "image, spliced": _whole(_spliced),
    "image, other size": _whole(_inflated),
    "image, EXIF": _whole(_with_exif),
    "no image": _whole(_other_kind),
    "many images": lambda generator: _Raw(_many(generator), True),
    "content type": lambda generator: _Raw(_content_type(generator), True),
    "accept": lambda generator: _Raw(_accept(generator), True),
    "custom attributes": lambda generator: _Raw(_attributes(generator), True),
    "length": _not_whole(_length),
    "chunks": _not_whole(_chunked),
    "expect": _not_whole(_expect),
    "long header": _not_whole(_long_header),
    "header": _not_whole(_header_signs),
    "path": _not_whole(_path),
    "method": _not_whole(_method),
    "garbage": _not_whole(_garbage),
}


if __name__ == "__main__":
    sys.stdout.buffer.write(fuzzed(int(sys.argv[2]) if len(sys.argv) > 2 else 0, int(sys.argv[1]))[1].sent)
