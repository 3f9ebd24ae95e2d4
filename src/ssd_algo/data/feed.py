"""The platform's part of Pipe mode: makes a channel's FIFOs, one a pass, and writes into them; for trying a job."""

import gzip
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ssd_algo.data import recordio
from ssd_algo.data.manifest import EXTENSIONS, path_of
from ssd_algo.errors import UserError

_PIECE = 1 << 16  # bytes


@dataclass(frozen=True)
class Faults:
    """What goes wrong in every pass.

    Attributes
    ----------
    cut : int or None
        Bytes after which the stream ends.
    stall : (int, float) or None
        Bytes after which nothing comes for so many seconds.
    """

    cut: int | None = None
    stall: tuple[int, float] | None = None


def feed(
    prefix: Path,
    sources: Sequence[Path],
    attributes: Sequence[str],
    passes: int,
    compressed: bool = False,
    megabytes_a_second: float | None = None,
    faults: Faults = Faults(),
) -> None:
    """Write passes into `PREFIX_0`, `PREFIX_1`, ..., each made when the one before has ended.

    Parameters
    ----------
    prefix : Path
    sources : sequence of Path
        .rec files, one behind the other; or one manifest, whose images lie beside it.
    attributes : sequence of str
        Of a manifest, in this order.

    Raises
    ------
    UserError
        When there is something in the FIFO's place, or a source cannot be read.
    """
    for number in range(passes):
        path = prefix.with_name(f"{prefix.name}_{number}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.mkfifo(path)
        except OSError as error:
            raise UserError(f"{path} cannot be made ({error.strerror}); remove what is in its place.") from error
        try:
            with path.open("wb", buffering=0) as fifo:
                pieces = _pieces(sources, attributes)
                _write(fifo, _compressed(pieces) if compressed else pieces, megabytes_a_second, faults)
        except BrokenPipeError:
            pass  # who reads may stop early
        finally:
            path.unlink()


def _pieces(sources: Sequence[Path], attributes: Sequence[str]) -> Iterator[bytes]:
    manifests = [source for source in sources if source.suffix in EXTENSIONS]
    if manifests and len(sources) > 1:
        raise UserError(f"{manifests[0]} is a manifest, which is fed alone; give one manifest, or .rec files.")
    try:
        if manifests:
            yield from _manifest(manifests[0], attributes)
            return
        for source in sources:
            with source.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error


def _manifest(path: Path, attributes: Sequence[str]) -> Iterator[bytes]:
    """A record for each attribute of each line, as the platform makes them."""
    known: set[str] = set()
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n"), 1):
        if text.strip():
            try:
                line = dict(json.loads(text))
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}, line {number}: it is no JSON object ({error}); correct it.") from error
            known |= line.keys()
            lines.append(line)
    missing = [name for name in attributes if name not in known]
    if missing:
        raise UserError(
            f"{path}: no line has the attribute {missing[0]}; there are {', '.join(sorted(known)) or 'none'}: give "
            "those wanted with --attributes."
        )
    for line in lines:
        for name in attributes:
            record = io.BytesIO()
            recordio.write_record(record, _content(path, name, line.get(name)))
            yield record.getvalue()


def _content(manifest: Path, name: str, value: Any) -> bytes:
    if name.endswith("-ref") and isinstance(value, str):
        parts = path_of(value).split("/")
        paths = [manifest.parent / "/".join(parts[start:]) for start in range(len(parts))]
        return next((path for path in paths if path.is_file()), paths[-1]).read_bytes()
    return b"" if value is None else json.dumps(value).encode()


def _compressed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    made = io.BytesIO()
    with gzip.GzipFile(fileobj=made, mode="wb", compresslevel=1) as file:
        for piece in pieces:
            file.write(piece)
            yield made.getvalue()
            made.seek(0)
            made.truncate()
    yield made.getvalue()


def _write(fifo: BinaryIO, pieces: Iterator[bytes], megabytes_a_second: float | None, faults: Faults) -> None:
    written, begun, stalled = 0, time.monotonic(), 0.0
    for piece in pieces:
        view = memoryview(piece if faults.cut is None else piece[: faults.cut - written])
        while view:
            if faults.stall and not stalled and written >= faults.stall[0]:
                stalled = faults.stall[1]
                time.sleep(stalled)
            room = faults.stall[0] - written if faults.stall and not stalled else len(view)
            done = fifo.write(view[:room]) or 0
            view, written = view[done:], written + done
        if faults.cut is not None and written >= faults.cut:
            return
        if megabytes_a_second:
            ahead = written / (megabytes_a_second * 1e6) - (time.monotonic() - begun - stalled)
            time.sleep(max(0.0, ahead))
