"""Files that a reader, or a copy made at any moment, sees whole: the old one or the new one."""

import os
from collections.abc import Callable
from pathlib import Path


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it; when writing fails, `path` is as it was.

    The content is on the disk before the name is, and the name before this returns.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        write(temporary)
        _to_disk(temporary)
        temporary.rename(path)
        _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def forget_unfinished(folder: Path) -> None:
    """Remove what a process that was killed while it wrote has left in a folder."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
