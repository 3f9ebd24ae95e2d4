"""A model.tar.gz unpacked: what it may hold, and nothing outside of the directory changes by it."""

import errno
import gzip
import os
import tarfile
import zlib
from collections.abc import Collection
from pathlib import Path

from ssd_algo.data.findings import printable
from ssd_algo.errors import UserError

# The largest model, ResNet-101 with 10,000 classes, has 9.96 GB.
MOST_BYTES = 10 * 10**9
MOST_MEMBERS = 1_000
MOST_BYTES_OF_A_HEADER = 1_000_000  # it is read into memory, and as long as the names in it say
_CHUNK = 1 << 16

# What tarfile and gzip raise over an archive that is none, or has nonsense in a header.
_DAMAGED = (
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    ValueError,
    ArithmeticError,
    LookupError,
    RecursionError,
)


def unpack(archive: Path, directory: Path, names: Collection[str]) -> None:
    """Put the files of these names into a directory; others are read over.

    Raises
    ------
    UserError
        When the archive is damaged, breaks a rule, or does not fit on the disk.
    """
    try:
        with _BoundedGzipFile(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                for count, member in enumerate(tar, 1):
                    _check_member(archive, count, member)
                    _copy_member(tar, member, directory, stream, names)
            while stream.read(_CHUNK):  # to the end, where the checksum is
                stream.after_header()
    except _DAMAGED as error:
        raise UserError(f"{archive} is damaged and cannot be unpacked; upload it again.") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"{archive} cannot be unpacked into {directory.parent} (the disk is full); use an instance with a larger "
            "volume."
        ) from error


class _BoundedGzipFile(gzip.GzipFile):
    """Refuses to go on beyond the limits: a small file can hold more than any disk."""

    def __init__(self, archive: Path) -> None:
        super().__init__(archive)
        self._archive, self._all, self._header = archive, 0, 0

    def read(self, size: int | None = -1) -> bytes:
        part = super().read(size)
        self._all += len(part)
        self._header += len(part)
        if self._all > MOST_BYTES:
            raise UserError(
                f"{self._archive} has more than {MOST_BYTES / 1e9:g} GB when unpacked, which no model has; pack a "
                "model's files alone."
            )
        if self._header > MOST_BYTES_OF_A_HEADER:
            raise UserError(
                f"{self._archive} has a member with a header of more than {MOST_BYTES_OF_A_HEADER} bytes, which no "
                "model has; pack a model's files anew."
            )
        return part

    def after_header(self) -> None:
        """What was read so far belongs to no header."""
        self._header = 0


def _check_member(archive: Path, count: int, member: tarfile.TarInfo) -> None:
    """See that a member cannot have an effect outside of the directory, nor in it but by its own bytes."""
    name = printable(member.name if len(member.name) <= 100 else f"{member.name[:99]}…")
    if count > MOST_MEMBERS:
        raise UserError(
            f"{archive} has more than {MOST_MEMBERS} members, which no model has; pack a model's files alone."
        )
    # A sparse file is large by its header, not by bytes of the archive.
    if member.issparse() or not (member.isreg() or member.isdir()):
        kind = "a link" if member.issym() or member.islnk() else "a sparse file" if member.issparse() else "a device"
        raise UserError(f'{archive}: "{name}" is {kind}, but a model has plain files only; pack them anew.')
    if member.name.startswith("/") or ".." in member.name.split("/"):
        raise UserError(
            f'{archive}: the path "{name}" is absolute or has "..", but must stay within the archive; pack a model\'s '
            "files anew."
        )


def _copy_member(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    directory: Path,
    stream: _BoundedGzipFile,
    names: Collection[str],
) -> None:
    """Write a file with one of the names into the directory; read over any other."""
    name = os.path.normpath(member.name)
    source = tar.extractfile(member)
    if source is None:  # a directory
        return
    with open(directory / name if name in names else os.devnull, "wb") as target:
        while part := source.read(_CHUNK):
            target.write(part)
            stream.after_header()
