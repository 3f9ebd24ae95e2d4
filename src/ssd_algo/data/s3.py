"""Files below an `s3://` prefix, read in ranges."""

import io
import time
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO, TypeVar, cast

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from ssd_algo.data.files import THREADS, File
from ssd_algo.errors import UserError

_BUFFER = 1 << 16  # one request for most annotations and images' headers
_ATTEMPTS = 5
_PAUSE = 0.2  # seconds before the second attempt at a broken answer, doubled for each further one

T = TypeVar("T")


def list_files(address: str) -> list[File]:
    """All objects below `s3://bucket/prefix`, by name relative to it.

    Raises
    ------
    UserError
        When the bucket cannot be listed.
    """
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    retries = {"mode": "standard", "max_attempts": _ATTEMPTS}
    config = Config(retries=retries, max_pool_connections=THREADS)
    client = _attempt(lambda: boto3.client("s3", config=config), address)

    def listing() -> list[dict[str, Any]]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [entry for page in pages for entry in page.get("Contents", [])]

    return [
        File(entry["Key"][len(prefix) :], entry["Size"], partial(_open, client, bucket, entry["Key"], entry["Size"]))
        for entry in _attempt(listing, address)
        if not entry["Key"].endswith("/")
    ]


def _open(client: Any, bucket: str, key: str, size: int) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Object(client, bucket, key, size), _BUFFER))


class _Object(io.RawIOBase):
    """An object as a seekable file: each read is a request for its range."""

    def __init__(self, client: Any, bucket: str, key: str, size: int) -> None:
        self._client, self._bucket, self._key, self._size, self._position = client, bucket, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), self._size - self._position)
        if count <= 0:
            return 0
        content = _attempt(lambda: self._get(self._position, count), f"s3://{self._bucket}/{self._key}")
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def _get(self, start: int, count: int) -> bytes:
        span = f"bytes={start}-{start + count - 1}"
        return bytes(self._client.get_object(Bucket=self._bucket, Key=self._key, Range=span)["Body"].read())


def _attempt(call: Callable[[], T], address: str) -> T:
    """The call's result; an answer that breaks off, which boto3 does not ask for again, is."""
    for attempt in range(_ATTEMPTS):
        try:
            return call()
        except (HTTPClientError, IncompleteReadError) as error:
            if attempt == _ATTEMPTS - 1:
                raise _refusal(address, error) from error
            time.sleep(_PAUSE * 2**attempt)
        except (ClientError, BotoCoreError, ValueError) as error:
            raise _refusal(address, error) from error
    raise AssertionError


def _refusal(address: str, error: Exception) -> UserError:
    return UserError(
        f"{address} cannot be read ({error}); check the address, the credentials and that they allow s3:ListBucket and "
        "s3:GetObject."
    )
