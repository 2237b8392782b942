"""The bytes of a file as they are stored: of this machine from its disk, of a remote one through the cache of parts."""

from __future__ import annotations

import hashlib
import io
from typing import Any

from lifecycle.data.read.bytes.remote_parts import PART_BYTES, Parts
from lifecycle.data.read.files.listing import File, is_remote
from lifecycle.data.read.files.retrying import Retry, RetryingFile, fill, open_retrying
from lifecycle.system.cache import cache_folder

ON_THIS_MACHINE = ("file://", "local://")


def open_stored(file: File, retry: Retry | None = None) -> Stored:
    """The file, open at its first byte. A remote one without a size or a stamp is not cached in parts, for they could
    not be identified."""
    if not is_remote(file.url):
        return open_retrying(file.url, retry=retry)
    if not file.size or not file.stamp or file.url.startswith(ON_THIS_MACHINE):
        return open_retrying(file.url, size=file.size or None, retry=retry)
    return PartedFile(file, Parts(cache_folder() / "remote"), retry=retry)


class PartedFile(io.RawIOBase):
    """A seekable binary file for reading, made of parts. `read(n)` gives n bytes unless the file ends."""

    def __init__(self, file: File, parts: Parts, *, retry: Retry | None = None, part_bytes: int = PART_BYTES) -> None:
        super().__init__()
        self._file, self._parts, self._retry, self._part_bytes = file, parts, retry, part_bytes
        known = f"{file.url}\n{file.size}\n{file.stamp}\n{part_bytes}"
        self._name = hashlib.sha256(known.encode()).hexdigest()[:32]
        self._offset = 0
        self._remote: RetryingFile | None = None
        self._held: tuple[int, bytes] = (-1, b"")  # the part that was read last

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._offset

    def size(self) -> int:
        """Bytes of the file."""
        return self._file.size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a byte; the next read goes there."""
        self._offset = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._offset, io.SEEK_END: self._file.size}[whence]
        return self._offset

    def read(self, size: int | None = -1) -> bytes:
        """The next `size` bytes (all of the rest for -1 and None), fewer only at the end of the file."""
        left = max(0, self._file.size - self._offset)
        wanted = left if size is None or size < 0 else min(size, left)
        pieces: list[bytes] = []
        while wanted > 0:
            number, begin = divmod(self._offset, self._part_bytes)
            piece = self._part(number)[begin : begin + wanted]
            pieces.append(piece)
            self._offset += len(piece)
            wanted -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`; the number of bytes."""
        return fill(buffer, self.read)

    def close(self) -> None:
        if self._remote is not None:
            self._remote.close()
        super().close()

    def _part(self, number: int) -> bytes:
        if self._held[0] != number:
            start = number * self._part_bytes
            size = min(self._part_bytes, self._file.size - start)
            content = self._parts.part(f"{self._name}-{number}", size, lambda: self._fetch(start, size))
            self._held = number, content
        return self._held[1]

    def _fetch(self, start: int, size: int) -> bytes:
        if self._remote is None:
            self._remote = open_retrying(self._file.url, start, size=self._file.size, retry=self._retry, ahead=False)
        elif self._remote.tell() != start:
            self._remote.seek(start)
        return self._remote.read(size)


Stored = RetryingFile | PartedFile
"""What rows are read from."""
