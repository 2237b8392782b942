"""A file over a network that fails: reopened at its offset with exponential backoff; nothing is lost or repeated.

with open_retrying("hf://datasets/a/b@main/x.jsonl", offset) as file:
    block = file.read(1 << 20)
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, TypeVar

from lifecycle.system.seeds import derive

T = TypeVar("T")
SKIPPED_AT_ONCE = 1 << 20

PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
NETWORK_PACKAGES = frozenset(
    "aiohttp httpx httpx2 httpcore httpcore2 requests urllib3 botocore google azure huggingface_hub".split()
)
"""Packages whose errors mean the network though they are no OSError."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """How long a read is tried: `attempts` without a byte, waits doubling from `first_s` to `most_s`, in seconds."""

    attempts: int = 10
    first_s: float = 0.5
    most_s: float = 60.0

    def wait_s(self, url: str, offset: int, attempt: int) -> float:
        """Seconds before attempt `attempt` + 1: between half and all of the doubled wait, so that processes do not
        retry at the same time."""
        jitter = derive(attempt, "retry", url, offset, os.getpid()) / (1 << 63)
        return min(self.first_s * 2 ** (attempt - 1), self.most_s) * (0.5 + 0.5 * jitter)


def open_retrying(
    url: str, offset: int = 0, *, size: int | None = None, retry: Retry | None = None, ahead: bool = True
) -> RetryingFile:
    """The file at `url`, local or any that fsspec opens, standing at byte `offset`.

    size: of the file, where known: a connection that ends before it is an error and not the end of the file. ahead:
    whether more bytes than requested may be fetched, which helps sequential reads.
    """
    return RetryingFile(url, offset, size=size, retry=retry or Retry(), ahead=ahead)


def fill(buffer: Any, read: Callable[[int], bytes]) -> int:
    """What `read` gives of as many bytes as `buffer` holds, put into it; their number."""
    view = memoryview(buffer).cast("B")
    data = read(len(view))
    view[: len(data)] = data
    return len(data)


class RetryingFile(io.RawIOBase):
    """A seekable binary file for reading. `read(n)` gives n bytes unless the file ends."""

    def __init__(self, url: str, offset: int = 0, *, size: int | None, retry: Retry, ahead: bool) -> None:
        super().__init__()
        self._url, self._offset, self._size, self._retry, self._ahead = url, offset, size, retry, ahead
        self._file: IO[bytes] | None = None
        self._tried(lambda: None)  # so that a wrong address raises here, not in the first read

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte; the next read goes there."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset}.get(whence)
        self._offset = offset + (self.size() if base is None else base)
        if self._file is not None:
            self._tried(self._align)
        return self._offset

    def size(self) -> int:
        """Bytes of the file."""
        if self._size is None:
            self._size = self._tried(self._measure)
        return self._size

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes (all of the rest for -1 and None), fewer only at the end of the file."""
        wanted = self.size() - self._offset if size is None or size < 0 else size
        parts: list[bytes] = []
        while wanted > 0:
            part = self._tried(partial(self._part, wanted))
            if not part:
                break
            parts.append(part)
            wanted -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; the number of bytes."""
        return fill(buffer, self.read)

    def close(self) -> None:
        self._drop()
        super().close()

    def _part(self, wanted: int) -> bytes:
        assert self._file is not None
        part = self._file.read(wanted)
        if not part and self._size is not None and self._offset < self._size:
            raise ConnectionError(f"ended at byte {self._offset:,} of {self._size:,}")
        self._offset += len(part)
        return part

    def _align(self) -> None:
        assert self._file is not None
        try:
            self._file.seek(self._offset)
        except ValueError:  # a server that gives files from their start only
            self._drop()
            self._file = _open(self._url, self._ahead)
            self._pass_over(self._offset)

    def _pass_over(self, size: int) -> None:
        assert self._file is not None
        while size > 0:
            part = self._file.read(min(size, SKIPPED_AT_ONCE))
            if not part:
                raise ConnectionError(f"ended {size:,} bytes before byte {self._offset:,}")
            size -= len(part)

    def _measure(self) -> int:
        assert self._file is not None
        end = self._file.seek(0, io.SEEK_END)
        self._align()
        return end

    def _tried(self, action: Callable[[], T]) -> T:
        """`action` on the open file; a failure reopens the file at our offset and tries again."""
        for attempt in range(1, self._retry.attempts + 1):
            try:
                if self._file is None:
                    self._file = _open(self._url, self._ahead)
                    self._align()
                return action()
            except Exception as error:
                if not _is_transient(error):
                    raise
                self._drop()
                if attempt == self._retry.attempts:
                    raise ConnectionError(
                        f"{self._url}: no byte after {attempt} attempts at byte {self._offset:,} (last: "
                        f"{type(error).__name__}: {error}); when the network is back, start the run again: it resumes"
                    ) from error
                wait_s = self._retry.wait_s(self._url, self._offset, attempt)
                sys.stderr.write(
                    f"warning: {self._url} at byte {self._offset:,}: {type(error).__name__}: {error}; "
                    f"attempt {attempt + 1} of {self._retry.attempts} in {wait_s:.1f} s\n"
                )
                time.sleep(wait_s)
        raise AssertionError("a retry has at least one attempt")

    def _drop(self) -> None:
        """Close the file; that closing a broken connection may fail too is ignored."""
        broken, self._file = self._file, None
        if broken is not None:
            try:
                broken.close()
            except Exception as error:
                if not _is_transient(error):
                    raise


def _open(url: str, ahead: bool) -> IO[bytes]:
    if "://" not in url:
        return open(url, "rb", buffering=0)
    import fsspec  # loads only for remote files

    fs, path = fsspec.core.url_to_fs(url)
    opened: IO[bytes] = fs.open(path, "rb") if ahead else fs.open(path, "rb", cache_type="none")
    return opened


def _is_transient(error: Exception) -> bool:
    return not isinstance(error, PERMANENT) and is_of_network(error)


def is_of_network(error: Exception) -> bool:
    """Whether the error comes from the network, a server or a disk, and not from a wrong request."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] in NETWORK_PACKAGES
