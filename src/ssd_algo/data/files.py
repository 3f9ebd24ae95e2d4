"""The files of a channel, on a disk or in S3."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

from ssd_algo.errors import UserError

_BUFFER = 1 << 16  # most images' headers fit into one read
THREADS, _AHEAD = 16, 128

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a channel.

    Attributes
    ----------
    name : str
        Its path relative to the channel's folder, with `/`.
    size : int
        Bytes.
    open : callable
        Returns a seekable binary file.
    """

    name: str
    size: int
    open: Callable[[], BinaryIO]

    def read(self) -> bytes:
        """Its whole content."""
        with self.open() as file:
            return file.read()


@dataclass(frozen=True)
class Folder:
    """What a channel holds.

    Attributes
    ----------
    name : str
        The channel's name.
    location : str
        Its path or `s3://` address.
    files : list of File
        All files below it in the order of their names; hidden files and folders (`.name`) are left out.
    file : callable
        A file below it by its name, its size not filled in.
    """

    name: str
    location: str
    files: list[File]
    file: Callable[[str], File]

    def with_extension(self, *extensions: str) -> list[File]:
        """Files with one of the extensions (`.jpg`), in any letter case."""
        return [file for file in self.files if os.path.splitext(file.name)[1].lower() in extensions]


class ImageIndex:
    """Finds the image that the path in an annotation means.

    Parameters
    ----------
    files : list of File
    sharded : bool
        Whether others hold more images of the channel: then one that is found by a part of its path alone has to be
        called as the annotation is.
    """

    def __init__(self, files: list[File], sharded: bool = False) -> None:
        self._sharded = sharded
        self.by_name = {file.name: file for file in files}
        self._by_last_part = defaultdict(list)
        for file in files:
            self._by_last_part[file.name.rsplit("/", 1)[-1]].append(file.name)
        self.by_stem = {file.name.rsplit(".", 1)[0]: file.name for file in files}

    def find(self, path: str, own: str = "") -> tuple[str, str]:
        """The name of the image that a path means, or an empty one and what is wrong, as the end of a sentence;
        both empty for an image that others may hold.

        The path may be longer or shorter than the image's by leading folders. Of several images that it may mean, it is
        the one called `own`, without extension, as the annotation is.
        """
        found = self._all(path)
        if self.by_stem.get(own) in found:
            return self.by_stem[own], ""
        if len(found) == 1:
            return ("", "") if self._sharded and not _alike(found[0].rsplit(".", 1)[0], own) else (found[0], "")
        if found:
            return "", f"holds {len(found)} images of that name ({found[0]}, {found[1]}, ...); give the whole path."
        if self._sharded:
            return "", ""
        return "", f"holds no such image{self._near(path)}; add it, or remove the annotation."

    def _all(self, path: str) -> list[str]:
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
        for start in range(len(parts)):
            candidate = "/".join(parts[start:])
            if candidate in self.by_name:
                return [candidate]
        nested = "/".join(["", *parts])
        return [name for name in self._by_last_part.get(parts[-1] if parts else "", []) if name.endswith(nested)]

    def _near(self, path: str) -> str:
        """A question after an image of another extension or letter case; empty without one."""
        stem = _stem(path.replace("\\", "/"))
        found = next((name for name in self.by_name if _stem(name) == stem), None)
        return f" (did you mean {found}?)" if found else ""


def _alike(one: str, other: str) -> bool:
    """Whether two paths without extension are the same but for leading folders of one."""
    return f"/{one}".endswith(f"/{other}") or f"/{other}".endswith(f"/{one}")


def _stem(path: str) -> str:
    return path.rsplit("/", 1)[-1].rsplit(".", 1)[0].lower()


def list_folder(name: str, location: str | Path) -> Folder:
    """The channel `name`, below a directory or an `s3://bucket/prefix`.

    Raises
    ------
    UserError
        When there is no such directory, or S3 cannot be read.
    """
    if str(location).startswith("s3://"):
        from ssd_algo.data import s3

        found = s3.list_files(str(location))
        file = {each.name: each for each in found}.__getitem__
    else:
        if os.path.isfile(location):
            raise UserError(f"{location} is a file; give the folder that holds it.")
        if not os.path.isdir(location):
            raise UserError(f"there is no folder {location}; check the path or S3 prefix.")
        try:
            found = _walk(str(location))
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}); check its permissions.") from error
        file = partial(_file_below, str(location))
    visible = [file for file in found if not any(part.startswith(".") for part in file.name.split("/"))]
    return Folder(name, str(location), sorted(visible, key=lambda each: each.name), file)


def _file_below(top: str, name: str) -> File:
    """A file that was listed before; its size, which costs a look at it, is left out."""
    return File(name, 0, partial(_open, os.path.join(top, name)))


def list_file(path: Path) -> File:
    """One file of the disk."""
    return File(path.name, path.stat().st_size, partial(_open, path))


def _open(path: str | Path) -> BinaryIO:
    return open(path, "rb", _BUFFER)


def _walk(top: str) -> list[File]:
    """All files below a folder, through symbolic links too, but into no folder twice."""
    found, seen = [], set()

    def refuse(error: OSError) -> None:
        raise error

    for directory, inside, names in os.walk(top, onerror=refuse, followlinks=True):
        status = os.stat(directory)
        if (status.st_dev, status.st_ino) in seen:
            inside.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path):
                relative = os.path.relpath(path, top).replace(os.sep, "/")
                found.append(File(relative, os.path.getsize(path), partial(_open, path)))
    return found


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """The work's result for every item, in their order, done by threads: reading files waits for disks and networks.

    The threads are never far ahead of whoever takes the results.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(items), _AHEAD):
            yield from pool.map(work, items[start : start + _AHEAD])
